//! Small HTTP/1.1 requests: to the admin socket, to the metrics address.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait::patience;

const LIMIT: Duration = Duration::from_secs(5);

/// Status code and body.
pub type Answer = (u16, String);

/// A GET over a Unix socket.
///
/// # Errors
/// When nobody answers there.
pub fn get_unix(socket: &Path, path: &str) -> Result<Answer> {
    let stream =
        UnixStream::connect(socket).with_context(|| format!("connecting {}", socket.display()))?;
    stream.set_read_timeout(Some(patience(LIMIT)))?;
    get(stream, path)
}

/// A GET over TCP, in the calling thread's network namespace.
///
/// # Errors
/// When nobody answers there.
pub fn get_tcp(address: SocketAddr, path: &str) -> Result<Answer> {
    let stream = TcpStream::connect_timeout(&address, patience(LIMIT))
        .with_context(|| format!("connecting {address}"))?;
    stream.set_read_timeout(Some(patience(LIMIT)))?;
    get(stream, path)
}

fn get(mut stream: impl Read + Write, path: &str) -> Result<Answer> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer).context("an answer in UTF-8")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
    let code = head.split(' ').nth(1).context("a status code")?.parse()?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { dechunk(body).context("a chunked body")? } else { body.to_owned() };
    Ok((code, body))
}

fn dechunk(mut body: &str) -> Option<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n")?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        if size == 0 {
            return Some(whole);
        }
        whole.push_str(rest.get(..size)?);
        body = rest.get(size + 2..)?;
    }
}
