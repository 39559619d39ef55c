//! The applications' other end: what a test does by hand, on a thread inside a pod.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use crate::apps::{Meter, Noise};
use crate::wait::patience;

/// How long a client waits for anything.
pub const LIMIT: Duration = Duration::from_secs(20);

/// How a connection ended, as the application sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// An orderly end: all that was sent has arrived.
    Clean,
    /// A reset (ECONNRESET), or the kernel's abort of the socket (ECONNABORTED, EPIPE).
    Broken,
    /// Neither within [`LIMIT`].
    Silent,
}

impl End {
    /// What an error of a read or a write says about the connection.
    ///
    /// # Errors
    /// When it says something else: a test then tests something else.
    pub fn of(error: std::io::Error) -> Result<Self> {
        match error.kind() {
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
                Ok(Self::Broken)
            }
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(Self::Silent),
            _ => Err(error).context("neither an end nor a reset"),
        }
    }
}

/// Connects, with time limits on everything that follows.
///
/// # Errors
/// When the connection fails.
pub fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, patience(LIMIT))
        .with_context(|| format!("connecting {to}"))?;
    limited(stream)
}

/// A plain socket to be bent before [`connect_socket`].
///
/// # Errors
/// When the kernel has no such sockets.
pub fn socket(to: SocketAddr, protocol: Option<Protocol>) -> Result<Socket> {
    Socket::new(Domain::for_address(to), Type::STREAM, protocol).context("a socket")
}

/// Connects a socket that was made by hand.
///
/// # Errors
/// When the connection fails.
pub fn connect_socket(socket: Socket, to: SocketAddr) -> Result<TcpStream> {
    socket
        .connect_timeout(&to.into(), patience(LIMIT))
        .with_context(|| format!("connecting {to}"))?;
    limited(socket.into())
}

fn limited(stream: TcpStream) -> Result<TcpStream> {
    // MPTCP sockets learned these options one by one, the last with Linux 5.17. Without them a connection
    // that hangs is ended by the limit of the whole run.
    let supported = |result: std::io::Result<()>| match result {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        result => result,
    };
    supported(stream.set_read_timeout(Some(patience(LIMIT))))?;
    supported(stream.set_write_timeout(Some(patience(LIMIT))))?;
    supported(stream.set_nodelay(true))?;
    Ok(stream)
}

/// Sends `text` and reads as many bytes back.
///
/// # Errors
/// When they do not come, or are others.
pub fn ping(stream: &mut TcpStream, text: &str) -> Result<()> {
    stream.write_all(text.as_bytes()).context("sending")?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).context("receiving the echo")?;
    ensure!(back == text.as_bytes(), "another echo: {:?}", String::from_utf8_lossy(&back));
    Ok(())
}

/// Reads until the connection ends; the bytes, and how it ended.
///
/// # Errors
/// When it fails in another way.
pub fn read_to_end(stream: &mut TcpStream) -> Result<(Vec<u8>, End)> {
    let mut all = Vec::new();
    let mut bytes = [0; 1 << 16];
    let deadline = Instant::now() + patience(LIMIT);
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return Ok((all, End::Clean)),
            Ok(read) => all.extend_from_slice(&bytes[..read]),
            Err(error) => return Ok((all, End::of(error)?)),
        }
        if Instant::now() > deadline {
            return Ok((all, End::Silent));
        }
    }
}

/// Reads until something comes, at most `length` bytes.
///
/// # Errors
/// When the connection ends first.
pub fn read_some(stream: &mut TcpStream, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let read = stream.read(&mut bytes).context("receiving")?;
    ensure!(read > 0, "the connection ended before a byte came");
    bytes.truncate(read);
    Ok(bytes)
}

/// Sends `length` bytes to a sink and half-closes: what was sent, and what the server says it got.
///
/// # Errors
/// When the transfer fails.
pub fn upload(to: SocketAddr, length: u64) -> Result<(Value, Value)> {
    let mut stream = connect(to)?;
    let mut meter = Meter::default();
    let mut noise = Noise::new(length);
    while let Some(piece) = noise.piece() {
        stream.write_all(piece).with_context(|| format!("after {} bytes", meter.bytes))?;
        meter.take(piece);
    }
    stream.shutdown(Shutdown::Write)?;
    let (answer, end) = read_to_end(&mut stream)?;
    ensure!(end == End::Clean, "the answer ended {end:?}");
    Ok((meter.summary(), serde_json::from_slice(&answer).context("the sink's answer")?))
}

/// Asks a source for `length` bytes: what was received.
///
/// # Errors
/// When the transfer fails.
pub fn download(to: SocketAddr, length: u64) -> Result<Value> {
    let mut stream = connect(to)?;
    stream.write_all(format!("{length}\n").as_bytes())?;
    let mut meter = Meter::default();
    let mut bytes = vec![0; 1 << 18];
    loop {
        match stream.read(&mut bytes).with_context(|| format!("after {} bytes", meter.bytes))? {
            0 => return Ok(meter.summary()),
            read => meter.take(&bytes[..read]),
        }
    }
}

/// The noise's own summary, without sending it anywhere.
pub fn summary_of_noise(length: u64) -> Value {
    let mut meter = Meter::default();
    let mut noise = Noise::new(length);
    while let Some(piece) = noise.piece() {
        meter.take(piece);
    }
    meter.summary()
}

/// As many descriptors as the system lets us have.
pub fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Whether a whole conversation through a new connection is possible, or how it fails.
///
/// # Errors
/// When it fails in a way that is neither refusal, reset nor silence.
pub fn converse(to: SocketAddr, text: &str) -> Result<Conversation> {
    let stream = match TcpStream::connect_timeout(&to, Duration::from_secs(3)) {
        Ok(stream) => stream,
        Err(_) => return Ok(Conversation::NoConnection),
    };
    let mut stream = limited(stream)?;
    stream.set_read_timeout(Some(patience(Duration::from_secs(5))))?;
    if let Err(error) = stream.write_all(text.as_bytes()) {
        return Ok(Conversation::Ended(End::of(error)?));
    }
    let mut back = vec![0; text.len()];
    let mut held = 0;
    while held < back.len() {
        match stream.read(&mut back[held..]) {
            Ok(0) => return Ok(Conversation::Ended(End::Clean)),
            Ok(read) => held += read,
            Err(error) => return Ok(Conversation::Ended(End::of(error)?)),
        }
    }
    ensure!(back == text.as_bytes(), "another echo: {:?}", String::from_utf8_lossy(&back));
    Ok(Conversation::Echoed {
        local: crate::apps::plain(stream.local_addr()?),
        peer: crate::apps::plain(stream.peer_addr()?),
    })
}

/// What came of [`converse`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conversation {
    /// The echo came back; the client's getsockname and getpeername.
    Echoed { local: SocketAddr, peer: SocketAddr },
    /// Connected, and then ended without the echo.
    Ended(End),
    /// connect() failed or timed out.
    NoConnection,
}

impl Conversation {
    pub fn worked(self) -> bool {
        matches!(self, Self::Echoed { .. })
    }
}

/// Ports that somebody listens on in the calling thread's network namespace.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn listening_ports() -> Result<Vec<u16>> {
    let mut ports = Vec::new();
    for table in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{table}"))?;
        for line in text.lines().skip(1) {
            let mut fields = line.split_whitespace();
            let (local, state) = (fields.nth(1), fields.nth(1));
            if state == Some("0A")
                && let Some((_, port)) = local.and_then(|local| local.rsplit_once(':'))
            {
                ports.push(u16::from_str_radix(port, 16)?);
            }
        }
    }
    Ok(ports)
}
