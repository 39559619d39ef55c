//! What an application gets when its connection cannot be made, or its server never answers: a 503
//! that says why if it speaks HTTP, a reset otherwise.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::failure::Failure;
use super::http;
use super::http::detect::PREFACE;
use super::relay::Tally;
use crate::node::dial::close_in_order;
use crate::tls::Replay;

/// A request line longer than this is not waited for.
const LONGEST_LINE: usize = 8 * 1024;
/// What an HTTP/2 client has said beyond this is not kept, and it is reset.
const LONGEST_BEGINNING: usize = 64 * 1024;
/// How long a client that has connected may take to show what it speaks.
const FIRST_BYTES: Duration = Duration::from_secs(1);
/// How long, and how much, a client may go on sending before it reads the answer.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 1024 * 1024;

/// What a client has said, as far as it matters for telling it that nobody answers.
#[derive(Debug)]
pub enum Begun {
    /// Not enough to tell.
    Unfinished(Vec<u8>),
    Http1,
    /// From its preface on: whoever answers has to read it again.
    Http2(Vec<u8>),
    Other,
}

impl Default for Begun {
    fn default() -> Self {
        Self::Unfinished(Vec::new())
    }
}

impl Begun {
    pub fn is_http(&self) -> bool {
        matches!(self, Self::Http1 | Self::Http2(_))
    }

    pub fn note(&mut self, bytes: &[u8]) {
        match self {
            Self::Http1 | Self::Other => {}
            Self::Http2(kept) if kept.len() + bytes.len() > LONGEST_BEGINNING => {
                *self = Self::Other
            }
            Self::Http2(kept) => kept.extend_from_slice(bytes),
            Self::Unfinished(kept) => {
                kept.extend_from_slice(bytes);
                let common = kept.len().min(PREFACE.len());
                if kept[..common] == PREFACE[..common] {
                    if common == PREFACE.len() {
                        *self = Self::Http2(std::mem::take(kept));
                    }
                    return;
                }
                match request_line(kept) {
                    RequestLine::Http1 => *self = Self::Http1,
                    RequestLine::Unfinished if kept.len() <= LONGEST_LINE => {}
                    RequestLine::Unfinished | RequestLine::Other => *self = Self::Other,
                }
            }
        }
    }
}

/// Ends `client` because of `failure`. Unless it is answered here, dropping it resets it.
pub async fn refuse(mut client: TcpStream, failure: &Failure) {
    if let Ok(Ok(begun)) = timeout(FIRST_BYTES, beginning(&mut client)).await {
        answer(client, failure, begun).await;
    }
}

/// Ends `client` once it was relayed, if the server broke off before it said anything.
pub async fn answer_for_server(client: TcpStream, result: &Result<(), Failure>, tally: &Tally) {
    let Err(
        failure @ (Failure::UpstreamHandshake { .. }
        | Failure::Origination { .. }
        | Failure::UpstreamReset(_)
        | Failure::Truncated
        | Failure::NoAnswer),
    ) = result
    else {
        return;
    };
    match tally.unanswered() {
        // The server refused the handshake before the client has said anything.
        Some(Begun::Unfinished(said)) if said.is_empty() => refuse(client, failure).await,
        Some(begun) => answer(client, failure, begun).await,
        None => {}
    }
}

async fn answer(client: TcpStream, failure: &Failure, begun: Begun) {
    let answered = match begun {
        Begun::Http1 => timeout(LINGER, answer_http1(client, failure)).await,
        Begun::Http2(said) => {
            let client = Replay::with_prefix(client, said);
            timeout(LINGER, http::unavailable(client, failure)).await
        }
        Begun::Unfinished(_) | Begun::Other => return,
    };
    if let Ok(Err(error)) = answered {
        tracing::debug!(%error, "could not deliver a 503");
    }
}

/// Reads until the client shows what it speaks.
async fn beginning(client: &mut TcpStream) -> io::Result<Begun> {
    let mut begun = Begun::default();
    let mut piece = Vec::with_capacity(512);
    while matches!(begun, Begun::Unfinished(_)) {
        piece.clear();
        if client.read_buf(&mut piece).await? == 0 {
            return Ok(Begun::Other);
        }
        begun.note(&piece);
    }
    Ok(begun)
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

async fn answer_http1(mut client: TcpStream, failure: &Failure) -> io::Result<()> {
    let body = format!("upstream failure ({}): {failure}\n", failure.code());
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    client.write_all(head.as_bytes()).await?;
    client.write_all(body.as_bytes()).await?;
    client.shutdown().await?;
    // Closing with unread bytes would reset, and the reset can overtake the answer.
    let mut rest = (&mut client).take(LINGER_BYTES);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
    close_in_order(&client)
}

#[cfg(test)]
mod tests {
    use super::{Begun, PREFACE, RequestLine, request_line};

    #[test]
    fn a_beginning_is_told_in_whatever_pieces_it_comes() {
        let begun = |bytes: &[u8]| {
            let mut begun = Begun::default();
            bytes.iter().for_each(|byte| begun.note(&[*byte]));
            begun
        };
        assert!(matches!(begun(b"\r\nGET / HTTP/1.1\r\nHost: a"), Begun::Http1));
        let said = [PREFACE, b"frames"].concat();
        assert!(matches!(begun(&said), Begun::Http2(kept) if kept == said));
        assert!(matches!(begun(&PREFACE[..20]), Begun::Unfinished(_)));
        assert!(matches!(begun(b"PRI * HTTP/2.1\r\n"), Begun::Other));
        assert!(matches!(begun(&vec![b'A'; 10_000]), Begun::Other));
        let long = [PREFACE, &vec![0; 70_000]].concat();
        assert!(matches!(begun(&long), Begun::Other));
    }

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
