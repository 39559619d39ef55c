//! An application that keeps a record of all that reaches it: what a daemon refused must not be in
//! it. Its sockets are a pod's; its threads are the test's own.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, SockRef, Socket, Type};

use crate::bed::Pod;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Which connection, from 0.
    pub connection: usize,
    /// The head as it was written, without the empty line.
    pub head: String,
    /// Bytes of the body, without what frames them.
    pub body: u64,
    pub trailers: Vec<String>,
}

impl Seen {
    /// The request line.
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    /// Every value of a header, in order.
    pub fn header(&self, name: &str) -> Vec<&str> {
        let headers = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        headers.filter(|(is, _)| is.eq_ignore_ascii_case(name)).map(|(_, is)| is.trim()).collect()
    }
}

#[derive(Default)]
struct State {
    /// None: ended.
    streams: Vec<Option<TcpStream>>,
    requests: Vec<Seen>,
    /// Of whatever protocol.
    bytes: u64,
}

/// Answers HTTP/1.1 and echoes what begins with no capital letter. Grants every `Upgrade` and
/// `CONNECT`, and then echoes; `/reset` breaks off, `/trailers` answers in chunks with a trailer.
pub struct Recorder {
    listener: TcpListener,
    state: Arc<Mutex<State>>,
}

impl Recorder {
    /// Listens on both families in `pod`.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub fn start(pod: &Pod, port: u16) -> Result<Self> {
        let listener = pod.inside(|| {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
            socket.set_only_v6(false)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
            socket.listen(128)?;
            Ok(TcpListener::from(socket))
        });
        let listener = listener.with_context(|| format!("port {port} of {}", pod.name))?;
        let state = Arc::<Mutex<State>>::default();
        let (accepting, shared) = (listener.try_clone()?, state.clone());
        std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let Ok(kept) = stream.try_clone() else { break };
                let number = {
                    let mut state = lock(&shared);
                    state.streams.push(Some(kept));
                    state.streams.len() - 1
                };
                let shared = shared.clone();
                std::thread::spawn(move || {
                    // How a connection ends is its client's to judge.
                    converse(number, stream, &shared).ok();
                    // The last handle: now it is closed, or reset.
                    lock(&shared).streams[number] = None;
                });
            }
        });
        Ok(Self { listener, state })
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        lock(&self.state).streams.len()
    }

    /// How many bytes have come in all.
    pub fn bytes(&self) -> u64 {
        lock(&self.state).bytes
    }

    /// The requests from number `mark` on.
    pub fn requests(&self, mark: usize) -> Vec<Seen> {
        lock(&self.state).requests.get(mark..).unwrap_or_default().to_vec()
    }

    /// How many requests there were: a mark for [`Recorder::requests`].
    pub fn mark(&self) -> usize {
        lock(&self.state).requests.len()
    }

    /// The newest request.
    ///
    /// # Errors
    /// When there was none.
    pub fn last(&self) -> Result<Seen> {
        lock(&self.state).requests.last().cloned().context("no request has come")
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // Its threads end with their sockets.
        SockRef::from(&self.listener).shutdown(Shutdown::Both).ok();
        for stream in lock(&self.state).streams.iter().flatten() {
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts what is read.
struct Counted<'a>(TcpStream, &'a Mutex<State>);

impl Read for Counted<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.0.read(into)?;
        lock(self.1).bytes += read as u64;
        Ok(read)
    }
}

type Reader<'a> = BufReader<Counted<'a>>;

fn converse(number: usize, mut out: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::with_capacity(1 << 16, Counted(out.try_clone()?, state));
    loop {
        match reader.fill_buf()?.first() {
            None => return Ok(()),
            Some(first) if !first.is_ascii_uppercase() => return echo(&mut reader, &mut out),
            Some(_) => {}
        }
        let head = lines(&mut reader)?.join("\n");
        let mut seen = Seen { connection: number, head, body: 0, trailers: Vec::new() };
        let words: Vec<String> = seen.line().split(' ').map(str::to_owned).collect();
        let upgrade = seen.header("upgrade").first().map(|&protocol| protocol.to_owned());
        let path = words.get(1).map(String::as_str).unwrap_or_default();
        if path.starts_with("/reset") {
            lock(state).requests.push(seen);
            return SockRef::from(&out).set_linger(Some(Duration::ZERO));
        }
        if let Some(protocol) = upgrade {
            lock(state).requests.push(seen);
            write!(
                out,
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
            )?;
            return echo(&mut reader, &mut out);
        }
        if words[0] == "CONNECT" {
            lock(state).requests.push(seen);
            out.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            return echo(&mut reader, &mut out);
        }
        if seen.header("expect") == ["100-continue"] {
            out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        body(&mut reader, &mut seen)?;
        let text = format!("{}\n", seen.body);
        lock(state).requests.push(seen);
        if path.starts_with("/trailers") {
            write!(
                out,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                 {:x}\r\n{text}\r\n0\r\nX-Sum: 42\r\n\r\n",
                text.len()
            )?;
        } else {
            // In one piece: pieces wait for each other's acknowledgement.
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
            out.write_all(answer.as_bytes())?;
        }
    }
}

fn body(reader: &mut Reader<'_>, seen: &mut Seen) -> std::io::Result<()> {
    if seen.header("transfer-encoding") == ["chunked"] {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size)?;
            let size = size.split(';').next().unwrap_or_default().trim().to_owned();
            let size = u64::from_str_radix(&size, 16)
                .map_err(|error| std::io::Error::new(ErrorKind::InvalidData, error))?;
            if size == 0 {
                seen.trailers = lines(reader)?;
                return Ok(());
            }
            seen.body += skip(reader, size)?;
            reader.read_line(&mut String::new())?;
        }
    }
    let length = seen.header("content-length").first().and_then(|length| length.parse().ok());
    seen.body = skip(reader, length.unwrap_or(0))?;
    Ok(())
}

fn skip(reader: &mut Reader<'_>, length: u64) -> std::io::Result<u64> {
    let got = std::io::copy(&mut reader.take(length), &mut std::io::sink())?;
    if got == length { Ok(got) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

/// Lines up to an empty one.
fn lines(reader: &mut Reader<'_>) -> std::io::Result<Vec<String>> {
    let mut all = Vec::new();
    loop {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let line = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
        if line.is_empty() {
            return Ok(all);
        }
        all.push(line);
    }
}

fn echo(reader: &mut Reader<'_>, out: &mut TcpStream) -> std::io::Result<()> {
    std::io::copy(reader, out)?;
    out.shutdown(Shutdown::Write)
}
