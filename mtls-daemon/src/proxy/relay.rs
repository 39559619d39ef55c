//! Moves bytes both ways between two streams, keeping half-closes and resets apart.
//!
//! An idle connection holds no buffer: bytes are read into one that its thread's connections share,
//! and only what the other side does not take at once is kept, which also is all the backpressure.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::failure::Failure;
use crate::node::dial::close_in_order;
use crate::tls::Replay;
use crate::tls::accept::ServerStream;
use crate::tls::connect::ClientStream;

/// Bytes read at once: four full TLS records.
const BUFFER: usize = 64 * 1024;

thread_local! {
    static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

/// One end of a relayed connection.
pub trait Side: AsyncRead + AsyncWrite + Unpin {
    fn tcp(&self) -> &TcpStream;
}

impl Side for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Side for Replay<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref()
    }
}

impl Side for ClientStream {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

impl Side for ServerStream {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0.get_ref()
    }
}

/// Bytes moved so far, readable also when the relay is cut short.
#[derive(Debug, Default)]
pub struct Tally {
    /// Towards the server.
    pub sent: Cell<u64>,
    /// Back to the client.
    pub received: Cell<u64>,
}

/// Relays until both sides have ended in order, or one of them broke. Either way both are closed:
/// in order after an orderly end, by reset otherwise (their linger is zero from birth).
pub async fn relay<C: Side, S: Side>(
    mut client: C,
    mut server: S,
    tally: &Tally,
) -> Result<(), Failure> {
    let mut up = Half::default();
    let mut down = Half::default();
    poll_fn(|cx| {
        // Both are polled every time: each direction registers its own wake-ups.
        let sent = up.poll(cx, &mut client, &mut server, &tally.sent);
        let received = down.poll(cx, &mut server, &mut client, &tally.received);
        match (sent, received) {
            (Poll::Ready(Err(Broken::From(error))), _) => Poll::Ready(Err(client_broke(error))),
            (Poll::Ready(Err(Broken::To(error))), _) => Poll::Ready(Err(server_broke(error))),
            (_, Poll::Ready(Err(Broken::From(error)))) => Poll::Ready(Err(server_broke(error))),
            (_, Poll::Ready(Err(Broken::To(error)))) => Poll::Ready(Err(client_broke(error))),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    })
    .await?;
    close_in_order(client.tcp()).map_err(Failure::ClientReset)?;
    close_in_order(server.tcp()).map_err(Failure::UpstreamReset)
}

fn client_broke(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Failure::Truncated,
        _ => Failure::ClientReset(error),
    }
}

fn server_broke(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Failure::Truncated,
        _ => Failure::UpstreamReset(error),
    }
}

/// Which end of a direction failed.
enum Broken {
    From(io::Error),
    To(io::Error),
}

/// One direction.
#[derive(Default)]
struct Half {
    /// Read, but not yet taken by the other side.
    pending: Vec<u8>,
    taken: usize,
    /// Something was written that the other side's stream may still hold.
    unflushed: bool,
    ended: bool,
    done: bool,
}

impl Half {
    /// Ready(Ok) when `from` has ended and `to` has been told so.
    fn poll<F: Side, T: Side>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        moved: &Cell<u64>,
    ) -> Poll<Result<(), Broken>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        loop {
            while self.taken < self.pending.len() {
                let rest = &self.pending[self.taken..];
                let count = ready!(Pin::new(&mut *to).poll_write(cx, rest))
                    .and_then(some)
                    .map_err(Broken::To)?;
                self.unflushed = true;
                self.taken += count;
                moved.set(moved.get() + count as u64);
            }
            // Given back rather than kept: connections are mostly idle, and there are many.
            self.pending = Vec::new();
            self.taken = 0;
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(Broken::To)?;
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            let read = SHARED.with_borrow_mut(|buffer| {
                let mut bytes = ReadBuf::new(buffer);
                match Pin::new(&mut *from).poll_read(cx, &mut bytes) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(Err(error)) => Poll::Ready(Err(Broken::From(error))),
                    Poll::Ready(Ok(())) => {
                        let filled = bytes.filled();
                        self.ended = filled.is_empty();
                        let count = self.write(cx, to, filled, moved)?;
                        self.pending.extend_from_slice(&filled[count..]);
                        Poll::Ready(Ok(()))
                    }
                }
            });
            match read {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Broken::To)?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Writes as much as `to` takes now. Returns how much that was.
    fn write<T: Side>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut T,
        bytes: &[u8],
        moved: &Cell<u64>,
    ) -> Result<usize, Broken> {
        let mut written = 0;
        while written < bytes.len() {
            match Pin::new(&mut *to).poll_write(cx, &bytes[written..]) {
                Poll::Pending => break,
                Poll::Ready(result) => {
                    let count = result.and_then(some).map_err(Broken::To)?;
                    self.unflushed = true;
                    written += count;
                    moved.set(moved.get() + count as u64);
                }
            }
        }
        Ok(written)
    }
}

fn some(count: usize) -> io::Result<usize> {
    if count == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(count) }
}
