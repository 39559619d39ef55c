//! What an application gets when its connection cannot be made: a 503 that says why if it speaks
//! HTTP/1, a reset otherwise.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::failure::Failure;
use crate::node::dial::close_in_order;

/// A request line longer than this is not waited for.
const LONGEST_LINE: usize = 8 * 1024;
/// How long a client that has connected may take to show what it speaks.
const FIRST_BYTES: Duration = Duration::from_secs(1);
/// How long, and how much, a client may go on sending before it reads the answer.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 1024 * 1024;

/// Ends `client` because of `failure`. Unless it is answered here, dropping it resets it.
pub async fn refuse(mut client: TcpStream, failure: &Failure) {
    if let Ok(Ok(true)) = timeout(FIRST_BYTES, speaks_http1(&mut client)).await {
        unavailable(client, failure).await;
    }
}

/// Answers an HTTP/1 request, of which at least the first line was read, and ends `client`.
pub async fn unavailable(mut client: TcpStream, failure: &Failure) {
    if let Ok(Err(error)) = timeout(LINGER, answer(&mut client, failure)).await {
        tracing::debug!(%error, "could not deliver a 503");
    }
}

/// Whether a client's first bytes are a whole HTTP/1 request line.
pub fn is_http1_request(bytes: &[u8]) -> bool {
    request_line(bytes) == RequestLine::Http1
}

/// Reads the first line. True: it is an HTTP/1 request line.
async fn speaks_http1(client: &mut TcpStream) -> io::Result<bool> {
    let mut line = Vec::with_capacity(512);
    loop {
        if client.read_buf(&mut line).await? == 0 {
            return Ok(false);
        }
        match request_line(&line) {
            RequestLine::Http1 => return Ok(true),
            RequestLine::Other => return Ok(false),
            RequestLine::Unfinished if line.len() > LONGEST_LINE => return Ok(false),
            RequestLine::Unfinished => {}
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum RequestLine {
    Http1,
    Other,
    Unfinished,
}

/// RFC 9112 §3: method SP request-target SP HTTP-version CRLF; §2.2: an empty line may come first.
fn request_line(bytes: &[u8]) -> RequestLine {
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
    let Some(bytes) = start.map(|start| &bytes[start..]) else { return RequestLine::Unfinished };
    let method =
        bytes.iter().take_while(|byte| byte.is_ascii_uppercase() || **byte == b'-').count();
    match bytes.get(method) {
        _ if method > 32 => return RequestLine::Other,
        None => return RequestLine::Unfinished,
        Some(b' ') if method > 0 => {}
        Some(_) => return RequestLine::Other,
    }
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return RequestLine::Unfinished;
    };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    if line.len() > 9 && line[..line.len() - 1].ends_with(b" HTTP/1.") {
        RequestLine::Http1
    } else {
        RequestLine::Other
    }
}

async fn answer(client: &mut TcpStream, failure: &Failure) -> io::Result<()> {
    let body = format!("upstream failure ({}): {failure}\n", failure.code());
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    client.write_all(head.as_bytes()).await?;
    client.write_all(body.as_bytes()).await?;
    client.shutdown().await?;
    // Closing with unread bytes would reset, and the reset can overtake the answer.
    let mut rest = client.take(LINGER_BYTES);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
    close_in_order(client)
}

#[cfg(test)]
mod tests {
    use super::{RequestLine, request_line};

    #[test]
    fn only_http1_request_lines_are_answered_as_http() {
        let check = |bytes: &[u8], expected| {
            assert_eq!(request_line(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        };
        check(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", RequestLine::Http1);
        check(b"\r\nPOST /x?y HTTP/1.0\n", RequestLine::Http1);
        check(b"M-SEARCH * HTTP/1.1\r\n", RequestLine::Http1);
        check(b"PRI * HTTP/2.0\r\n", RequestLine::Other);
        check(b"GET /\r\n", RequestLine::Other);
        check(b"GE", RequestLine::Unfinished);
        check(b"GET /long", RequestLine::Unfinished);
        check(b"", RequestLine::Unfinished);
        check(b"\r\n", RequestLine::Unfinished);
        check(b"*1\r\n$4\r\nPING\r\n", RequestLine::Other);
        check(&[0x16, 3, 1, 2, 0], RequestLine::Other);
        check(b" GET / HTTP/1.1\r\n", RequestLine::Other);
        check(b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", RequestLine::Other);
    }
}
