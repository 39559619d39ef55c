//! Between the client and the HTTP library: hands on only requests that read the same to everybody,
//! refuses the rest in its turn, and closes so that the last answer arrives.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::framing::Body;
use super::head;
use super::link::{Link, Turn};
use super::refusal::Refusal;
use crate::node::dial::close_in_order;
use crate::proxy::relay::{Side, Watch, broken};

/// Begins the method of the request that stands for a refused one. No client's method may.
pub const MARK: u8 = b'!';
/// Stands where the refused request stood, so that it is answered in its turn.
const REFUSED: &[u8] = b"!REFUSED / HTTP/1.1\r\nhost: refused\r\n\r\n";
/// Bytes read at once while a head is looked for.
const STEP: usize = 8 * 1024;
/// How long, and how much, a client may go on sending before it reads the last answer.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1024 * 1024;

/// What the next bytes are.
enum State {
    Head {
        scanned: usize,
    },
    Body {
        body: Body,
        switches: bool,
    },
    /// A request asked for another protocol: what follows depends on the answer.
    Held,
    /// Not HTTP/1: handed on as it comes.
    Open,
    Refused,
}

/// A client's stream, guarded.
pub struct Guard<S> {
    stream: S,
    link: Arc<Link>,
    state: State,
    /// Requests handed on.
    requests: u64,
    /// Read, and not yet judged from `start` on.
    buffer: Vec<u8>,
    start: usize,
    /// Judged, and not yet read: so many bytes of the buffer.
    passed: usize,
    head_time: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    eof: bool,
    shut: bool,
    lingered: usize,
    /// Whoever reads waits for the client itself, and hears of it when it breaks off.
    listening: bool,
    watch: Watch,
}

impl<S: Side> Guard<S> {
    /// HTTP/1.
    pub fn http1(stream: S, link: Arc<Link>, head_time: Duration) -> Self {
        Self::new(stream, link, State::Head { scanned: 0 }, head_time)
    }

    /// HTTP/2, whose frames leave no room for two readings.
    pub fn http2(stream: S, link: Arc<Link>) -> Self {
        Self::new(stream, link, State::Open, Duration::MAX)
    }

    fn new(stream: S, link: Arc<Link>, state: State, head_time: Duration) -> Self {
        Self {
            stream,
            link,
            state,
            requests: 0,
            buffer: Vec::new(),
            start: 0,
            passed: 0,
            head_time,
            timer: None,
            eof: false,
            shut: false,
            lingered: 0,
            listening: false,
            watch: Watch::default(),
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.link.refuse(refusal);
        self.buffer = REFUSED.to_vec();
        self.start = 0;
        self.passed = REFUSED.len();
        self.timer = None;
        self.state = State::Refused;
    }

    /// Judges what has been read. False: more has to be read first, or an answer awaited.
    fn judge(&mut self) -> Result<bool, Refusal> {
        let unjudged = &self.buffer[self.start + self.passed..];
        match &mut self.state {
            State::Head { scanned } => {
                if *scanned == 0 {
                    // Empty lines before a request are nobody's (RFC 9112 §2.2).
                    let empty = unjudged.chunks_exact(2).take_while(|two| two == b"\r\n").count();
                    if empty > 0 {
                        self.buffer.drain(self.start..self.start + 2 * empty);
                        return Ok(self.start < self.buffer.len());
                    }
                }
                let Some(end) = head::end(unjudged, scanned)? else { return Ok(false) };
                let judged = head::check(&unjudged[..end])?;
                self.requests += 1;
                self.timer = None;
                self.passed += end;
                self.state = match Body::of(judged.framing) {
                    Some(body) => State::Body { body, switches: judged.switches },
                    None if judged.switches => State::Held,
                    None => State::Head { scanned: 0 },
                };
                Ok(true)
            }
            State::Body { body, switches } => {
                if unjudged.is_empty() {
                    return Ok(false);
                }
                let switches = *switches;
                let (count, ended) = body.take(unjudged)?;
                self.passed += count;
                if ended {
                    self.state = if switches { State::Held } else { State::Head { scanned: 0 } };
                }
                Ok(true)
            }
            State::Open => {
                let all = unjudged.len();
                self.passed += all;
                Ok(all > 0)
            }
            State::Held | State::Refused => Ok(false),
        }
    }

    /// Reads into the buffer. False: the client has ended.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        let old = self.buffer.len();
        self.buffer.resize(old + STEP, 0);
        let mut piece = ReadBuf::new(&mut self.buffer[old..]);
        let result = Pin::new(&mut self.stream).poll_read(cx, &mut piece);
        let count = piece.filled().len();
        self.buffer.truncate(old + count);
        if self.buffer.is_empty() {
            // An idle connection holds no buffer.
            self.buffer = Vec::new();
        }
        self.listening = result.is_pending();
        ready!(result)?;
        self.link.traffic.sent(count);
        self.ended_if(count == 0)?;
        Poll::Ready(Ok(count > 0))
    }

    fn ended_if(&mut self, ended: bool) -> io::Result<()> {
        if ended {
            self.eof = true;
            if self.shut {
                close_in_order(self.stream.tcp())?;
            }
        }
        Ok(())
    }

    /// A body goes straight to its reader, and only what follows it stays here.
    fn read_body(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, out);
        self.listening = result.is_pending();
        ready!(result)?;
        let fresh = &out.filled()[before..];
        let count = fresh.len();
        self.link.traffic.sent(count);
        self.ended_if(count == 0)?;
        let fresh = &out.filled()[before..];
        if let State::Body { body, switches } = &mut self.state {
            let (taken, ended) = match body.take(fresh) {
                Ok(taken) => taken,
                Err(refusal) => {
                    out.set_filled(before);
                    return Poll::Ready(Err(self.broken_body(refusal)));
                }
            };
            if taken < count {
                self.buffer = fresh[taken..].to_vec();
                self.start = 0;
                out.set_filled(before + taken);
            }
            if ended {
                let switches = *switches;
                self.state = if switches { State::Held } else { State::Head { scanned: 0 } };
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Part of the request is with the application already: it is cut off, and never completed.
    fn broken_body(&mut self, refusal: Refusal) -> io::Error {
        self.link.refuse(refusal);
        self.state = State::Refused;
        self.buffer = Vec::new();
        self.start = 0;
        self.passed = 0;
        io::Error::new(io::ErrorKind::InvalidData, refusal.reason)
    }

    fn deliver(&mut self, out: &mut ReadBuf<'_>) {
        let count = self.passed.min(out.remaining());
        out.put_slice(&self.buffer[self.start..self.start + count]);
        self.start += count;
        self.passed -= count;
        if self.start == self.buffer.len() {
            self.buffer = Vec::new();
            self.start = 0;
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        loop {
            self.deliver(out);
            if out.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if matches!(self.state, State::Held) {
                match self.link.poll_turn(cx, self.requests) {
                    Poll::Ready(Turn::Http) => self.state = State::Head { scanned: 0 },
                    Poll::Ready(Turn::Tunnel) => self.state = State::Open,
                    Poll::Pending if out.filled().len() > before => return Poll::Ready(Ok(())),
                    Poll::Pending => return Poll::Pending,
                }
            }
            match self.judge() {
                Ok(true) => continue,
                Ok(false) => {}
                Err(refusal) if matches!(self.state, State::Body { .. }) => {
                    if out.filled().len() > before {
                        // Comes again, and then has nothing before it.
                        return Poll::Ready(Ok(()));
                    }
                    return Poll::Ready(Err(self.broken_body(refusal)));
                }
                Err(refusal) => {
                    self.refuse(refusal);
                    continue;
                }
            }
            if out.filled().len() > before || matches!(self.state, State::Refused) || self.eof {
                return Poll::Ready(Ok(()));
            }
            match self.state {
                State::Body { .. } if self.start == self.buffer.len() => {
                    return self.read_body(cx, out);
                }
                State::Open if self.start == self.buffer.len() => {
                    ready!(Pin::new(&mut self.stream).poll_read(cx, out))?;
                    let count = out.filled().len() - before;
                    self.link.traffic.sent(count);
                    return Poll::Ready(self.ended_if(count == 0));
                }
                _ => {}
            }
            match self.fill(cx) {
                Poll::Ready(result) => {
                    let more = result?;
                    let half = self.start < self.buffer.len();
                    if !more && half && matches!(self.state, State::Head { .. }) {
                        self.refuse(Refusal::bad("a head that breaks off"));
                        continue;
                    }
                    if !more {
                        return Poll::Ready(Ok(()));
                    }
                }
                Poll::Pending => {
                    // A connection may be idle for as long as it likes, a head may not be half.
                    let half = self.start < self.buffer.len();
                    if half && matches!(self.state, State::Head { .. }) {
                        let time = self.head_time;
                        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(time)));
                        ready!(timer.as_mut().poll(cx));
                        self.refuse(Refusal::TOO_SLOW);
                        continue;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Closing with unread bytes would reset, and the reset can overtake the last answer.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut rest = [0; 4096];
        while !self.eof && self.lingered < LINGER_BYTES {
            let mut piece = ReadBuf::new(&mut rest);
            match Pin::new(&mut self.stream).poll_read(cx, &mut piece) {
                Poll::Ready(Ok(())) if !piece.filled().is_empty() => {
                    self.lingered += piece.filled().len();
                }
                Poll::Ready(_) => self.eof = true,
                Poll::Pending => {
                    ready!(timer.as_mut().poll(cx));
                    return Poll::Ready(());
                }
            }
        }
        Poll::Ready(())
    }
}

impl<S: Side> Side for Guard<S> {
    fn tcp(&self) -> &TcpStream {
        self.stream.tcp()
    }
}

impl<S: Side> AsyncRead for Guard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.listening = false;
        self.poll_next(cx, out)
    }
}

impl<S: Side> AsyncWrite for Guard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.link.traffic.received(count);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices))?;
        self.link.traffic.received(count);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // While a request is being answered the library reads no further, and flushes whenever it
        // is woken: a client that has gone meanwhile wants no answer.
        let deaf = !self.listening && !matches!(self.state, State::Open);
        if self.watch.is_due(cx, deaf)
            && let Some(error) = broken(self.stream.tcp())
        {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.shut = true;
            self.timer = None;
        }
        let tunnels = matches!(self.state, State::Open) && self.requests > 0;
        if !tunnels {
            ready!(self.poll_linger(cx));
        }
        // In a tunnel the other half may still be open: until it has ended, a close is a cut.
        if self.eof || !tunnels {
            close_in_order(self.stream.tcp())?;
        }
        Poll::Ready(Ok(()))
    }
}
