//! A stream whose first bytes have been looked at and are read again by whoever comes next.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One read's worth: a ClientHello with a post-quantum key share (1.7 KB) comes in one piece.
const PEEK_STEP: usize = 4096;

/// Bytes already looked at, then the stream itself. Nothing that was looked at is ever lost: a
/// peek that is cancelled has read nothing or has kept what it read.
#[derive(Debug)]
pub struct Replay<S> {
    stream: S,
    prefix: Vec<u8>,
    /// How much of `prefix` has been read again.
    position: usize,
}

impl<S> Replay<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, prefix: Vec::new(), position: 0 }
    }

    /// As if `prefix` had been peeked at.
    pub fn with_prefix(stream: S, prefix: Vec<u8>) -> Self {
        Self { stream, prefix, position: 0 }
    }

    /// What has been peeked at and not been read yet.
    pub fn peeked(&self) -> &[u8] {
        &self.prefix[self.position..]
    }

    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Reading from the stream itself skips the peeked bytes: for socket options and the like.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// The stream, and what was peeked at and not read.
    pub fn into_parts(mut self) -> (S, Vec<u8>) {
        self.prefix.drain(..self.position);
        (self.stream, self.prefix)
    }
}

impl<S: AsyncRead + Unpin> Replay<S> {
    /// Waits for more bytes and keeps them for the reader. 0: the peer has closed its side.
    pub async fn peek_more(&mut self) -> io::Result<usize> {
        poll_fn(|cx| self.poll_peek_more(cx)).await
    }

    fn poll_peek_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut piece = [0; PEEK_STEP];
        let mut piece = ReadBuf::new(&mut piece);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut piece))?;
        self.prefix.extend_from_slice(piece.filled());
        Poll::Ready(Ok(piece.filled().len()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replay<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, out);
        }
        let kept = self.peeked();
        let count = kept.len().min(out.remaining());
        out.put_slice(&kept[..count]);
        self.position += count;
        if self.position == self.prefix.len() {
            // Gives the memory back: a connection lives much longer than its first bytes.
            self.prefix = Vec::new();
            self.position = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replay<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
