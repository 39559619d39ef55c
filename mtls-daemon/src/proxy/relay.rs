//! Moves bytes both ways between two streams, keeping half-closes and resets apart.
//!
//! An idle connection holds no buffer: bytes are read into one that its thread's connections share,
//! and only what the other side does not take at once is kept, which also is all the backpressure.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::failure::Failure;
use super::http_error::Begun;
use super::never_http::LateRequest;
use crate::node::dial::close_in_order;
use crate::tls::accept::ServerStream;
use crate::tls::connect::ClientStream;
use crate::tls::{HandshakeError, Replay};

/// Bytes read at once: four full TLS records.
const BUFFER: usize = 64 * 1024;
/// Buffers that one direction moves before others have their turn.
const TURNS: u32 = 8;

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

impl<S: Side> Side for Replay<S> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().tcp()
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
    /// What the client has said, kept until the server says something. None: nobody wants to know.
    begun: RefCell<Option<Begun>>,
}

impl Tally {
    /// For a client that is to be answered if its server never says anything.
    pub fn answering() -> Self {
        Self { begun: RefCell::new(Some(Begun::default())), ..Self::default() }
    }

    /// What the client has said, unless the server has said something.
    pub fn unanswered(&self) -> Option<Begun> {
        if self.received.get() > 0 { None } else { self.begun.take() }
    }

    fn note(&self, bytes: &[u8]) {
        if let Some(begun) = &mut *self.begun.borrow_mut() {
            begun.note(bytes);
        }
    }

    /// Whether the client speaks HTTP, and was not answered yet.
    fn owes_answer(&self) -> bool {
        let owes = self.begun.borrow().as_ref().is_some_and(Begun::is_http);
        if self.received.get() > 0 {
            self.begun.take();
            return false;
        }
        owes
    }
}

/// Relays until both sides have ended in order, or one of them broke. After an orderly end both
/// may be closed; otherwise closing them resets them (their linger is zero from birth). `address` is
/// the server's, for failures: a socket that was reset no longer knows it.
pub async fn relay<C: Side, S: Side>(
    client: &mut C,
    server: &mut S,
    address: SocketAddr,
    tally: &Tally,
) -> Result<(), Failure> {
    let server_broke = |error| server_broke(error, address);
    let mut up = Half::default();
    let mut down = Half::default();
    let mut watch = Watch::default();
    // A server may answer and hang up while the client still sends: what it answered is delivered.
    let mut hung_up: Option<io::Error> = None;
    let result = poll_fn(|cx| {
        // Both are polled every time: each direction registers its own wake-ups.
        let sent = if hung_up.is_some() {
            Poll::Pending
        } else {
            up.poll(cx, client, server, &tally.sent, |bytes| tally.note(bytes), false)
        };
        let sent_all = matches!(sent, Poll::Ready(Ok(())));
        match sent {
            Poll::Ready(Err(Broken::From(error))) => return Poll::Ready(Err(client_broke(error))),
            // A client owes nothing.
            Poll::Ready(Err(Broken::Silent)) => {}
            Poll::Ready(Err(Broken::To(error))) => {
                hung_up = Some(error);
                watch.begin(LAST_ANSWER);
            }
            _ => {}
        }
        let owes = tally.owes_answer();
        let received = down.poll(cx, server, client, &tally.received, |_| {}, owes);
        match (received, &mut hung_up) {
            (Poll::Ready(Err(Broken::Silent)), _) => return Poll::Ready(Err(Failure::NoAnswer)),
            (Poll::Ready(Err(Broken::To(error))), _) => {
                return Poll::Ready(Err(client_broke(error)));
            }
            (Poll::Ready(Err(Broken::From(error))), _) => {
                return Poll::Ready(Err(server_broke(error)));
            }
            (Poll::Ready(Ok(())), Some(error)) => {
                let error = std::mem::replace(error, io::ErrorKind::BrokenPipe.into());
                // The client has the whole answer, and its end.
                close_in_order(client.tcp()).ok();
                return Poll::Ready(Err(server_broke(error)));
            }
            (Poll::Ready(Ok(())), None) if sent_all => return Poll::Ready(Ok(())),
            _ => {}
        }
        let unwatched = up.is_deaf() || down.is_deaf() || hung_up.is_some();
        if watch.is_due(cx, unwatched) {
            if let Some(error) = hung_up.take() {
                return Poll::Ready(Err(server_broke(error)));
            }
            if let Some(error) = broken(client.tcp()) {
                return Poll::Ready(Err(client_broke(error)));
            }
            if let Some(error) = broken(server.tcp()) {
                return Poll::Ready(Err(server_broke(error)));
            }
        }
        Poll::Pending
    })
    .await;
    result?;
    close_in_order(client.tcp()).map_err(Failure::ClientReset)?;
    close_in_order(server.tcp()).map_err(Failure::UpstreamReset)
}

/// How long a server that no longer reads may take to finish its answer.
const LAST_ANSWER: Duration = Duration::from_secs(2);
/// How often a side that is not being read is asked whether it was reset: readiness does not tell
/// that to somebody who does not read.
const ASK: Duration = Duration::from_secs(2);

/// A timer that exists only while one side is not being read.
#[derive(Default)]
pub struct Watch(Option<Pin<Box<Sleep>>>);

impl Watch {
    fn begin(&mut self, after: Duration) {
        self.0 = Some(Box::pin(sleep(after)));
    }

    /// Whether it is time to ask; begins to count when it is `needed`.
    pub fn is_due(&mut self, cx: &mut Context<'_>, needed: bool) -> bool {
        if !needed {
            self.0 = None;
            return false;
        }
        let mut due = false;
        loop {
            let timer = self.0.get_or_insert_with(|| Box::pin(sleep(ASK)));
            if timer.as_mut().poll(cx).is_pending() {
                return due;
            }
            due = true;
            self.0 = None;
        }
    }
}

/// A reset that arrived while nobody read.
pub fn broken(stream: &TcpStream) -> Option<io::Error> {
    SockRef::from(stream).take_error().ok().flatten()
}

fn client_broke(error: io::Error) -> Failure {
    let late = error.get_ref().and_then(|error| error.downcast_ref::<LateRequest>());
    if let Some(LateRequest(reason)) = late {
        return Failure::HttpRefused(reason);
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Failure::ClientTruncated,
        _ => Failure::ClientReset(error),
    }
}

fn server_broke(error: io::Error, address: SocketAddr) -> Failure {
    if let Some(refusal) = HandshakeError::from_established(&error) {
        return Failure::UpstreamHandshake { address, error: refusal };
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Failure::Truncated,
        _ => Failure::UpstreamReset(error),
    }
}

/// Which end of a direction failed.
enum Broken {
    From(io::Error),
    To(io::Error),
    /// It ended in order, and owed an answer.
    Silent,
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
    /// Whether nobody reads the side that this direction comes from: it has ended, or the other side
    /// does not take what was read.
    fn is_deaf(&self) -> bool {
        self.ended || !self.pending.is_empty()
    }

    /// Ready(Ok) when `from` has ended and `to` has been told so.
    fn poll<F: Side, T: Side>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        moved: &Cell<u64>,
        mut seen: impl FnMut(&[u8]),
        owes: bool,
    ) -> Poll<Result<(), Broken>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..TURNS {
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
                if owes && moved.get() == 0 {
                    return Poll::Ready(Err(Broken::Silent));
                }
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
                        seen(filled);
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
        // Others on this thread, and the other direction, have their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
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
