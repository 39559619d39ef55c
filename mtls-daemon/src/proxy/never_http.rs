//! A client that was too slow, or too late, to be taken for one that speaks HTTP. If its beginning
//! turns out to be a request after all, nothing would have judged that or taken forged headers out of
//! it: the connection breaks instead.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::http::detect;
use super::relay::Side;

/// What the connection breaks with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LateRequest(pub &'static str);

const LATE: LateRequest = LateRequest(
    "it came after the connection had been taken for another protocol's; declare the port HTTP",
);

pub struct NeverHttp<S> {
    stream: S,
    /// What the client has begun with. None: it is settled.
    beginning: Option<Vec<u8>>,
}

impl<S> NeverHttp<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, beginning: Some(Vec::new()) }
    }
}

impl<S: Side> Side for NeverHttp<S> {
    fn tcp(&self) -> &TcpStream {
        self.stream.tcp()
    }
}

impl<S: Side> AsyncRead for NeverHttp<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, out))?;
        if let Some(beginning) = &mut this.beginning {
            beginning.extend_from_slice(&out.filled()[before..]);
            match detect::is_http(beginning) {
                None => {}
                Some(false) => this.beginning = None,
                Some(true) => {
                    out.set_filled(before);
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, LATE)));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Side> AsyncWrite for NeverHttp<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// What of `pieces` gets through.
    async fn through(pieces: &[&[u8]]) -> io::Result<Vec<u8>> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut far = NeverHttp::new(listener.accept().await.unwrap().0);
        let mut got = Vec::new();
        for piece in pieces {
            near.write_all(piece).await.unwrap();
            got.resize(got.len() + piece.len(), 0);
            let start = got.len() - piece.len();
            far.read_exact(&mut got[start..]).await?;
        }
        Ok(got)
    }

    #[tokio::test]
    async fn a_request_in_pieces_breaks_and_everything_else_passes() {
        for pieces in [
            &[&b"FOO"[..], b" / HTTP/1.1\r\n"][..],
            &[b"GET / HTTP/1.1\r\n"],
            &[b"\r\n", b"P", b"RI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
        ] {
            let error = through(pieces).await.expect_err("a request");
            assert!(error.get_ref().is_some_and(|error| error.is::<LateRequest>()), "{error}");
        }
        for pieces in [
            &[&b"hello"[..], b" world\r\n", b"GET / HTTP/1.1\r\n"][..],
            &[b"\x00\x01", b"GET / HTTP/1.1\r\n"],
        ] {
            assert_eq!(through(pieces).await.unwrap(), pieces.concat());
        }
    }
}
