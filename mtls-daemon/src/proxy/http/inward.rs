//! A request's body on its way to the application.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Mutex;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::Request;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

use super::in_flight::Ticket;
use super::{io_kind, sanitise};

/// How long a client that asked to be told is not told anything, as such clients themselves wait.
const EXPECTED: Duration = Duration::from_secs(1);

/// Passes frames on as they are asked for: what is not asked for stays with the client.
pub struct Inward {
    body: Incoming,
    gate: Option<Gate>,
    /// Until the body has ended its request is in flight, also when it is answered earlier.
    ticket: Option<Rc<Ticket>>,
    cut: Rc<Cut>,
}

impl Inward {
    pub fn new(body: Incoming, ticket: Rc<Ticket>, cut: Rc<Cut>) -> Self {
        let ticket = (!body.is_end_stream()).then_some(ticket);
        Self { body, gate: None, ticket, cut }
    }
}

/// How a body of one connection broke off, if one did.
#[derive(Default)]
pub struct Cut(Cell<Option<io::ErrorKind>>);

impl Cut {
    pub fn how(&self) -> Option<io::ErrorKind> {
        self.0.get()
    }
}

/// Closed until the application says `100 Continue`: asking for the body is what tells the client.
struct Gate {
    /// None: there is an answer already, and the body is not wanted.
    open: Option<oneshot::Receiver<()>>,
    limit: Pin<Box<Sleep>>,
}

impl Gate {
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(open) = &mut self.open else { return Poll::Pending };
        match Pin::new(open).poll(cx) {
            Poll::Ready(Ok(())) => return Poll::Ready(()),
            // The sender goes when there is an answer.
            Poll::Ready(Err(_)) => {
                self.open = None;
                return Poll::Pending;
            }
            Poll::Pending => {}
        }
        self.limit.as_mut().poll(cx)
    }
}

/// Has `request` wait with its body for the application's word.
pub fn expect_continue(request: &mut Request<Inward>) {
    let (sender, open) = oneshot::channel();
    let sender = Mutex::new(Some(sender));
    hyper::ext::on_informational(request, move |response| {
        if response.status() == hyper::StatusCode::CONTINUE
            && let Ok(mut sender) = sender.lock()
            && let Some(sender) = sender.take()
        {
            sender.send(()).ok();
        }
    });
    request.body_mut().gate = Some(Gate { open: Some(open), limit: Box::pin(sleep(EXPECTED)) });
}

impl Body for Inward {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(gate) = &mut self.gate {
            ready!(gate.poll_open(cx));
            self.gate = None;
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Err(error)) = &frame {
            self.cut.0.set(Some(io_kind(error).unwrap_or(io::ErrorKind::UnexpectedEof)));
        }
        if !matches!(frame, Some(Ok(_))) || self.body.is_end_stream() {
            self.ticket = None;
        }
        Poll::Ready(frame.map(|frame| {
            frame.map(|mut frame| {
                if let Some(trailers) = frame.trailers_mut() {
                    sanitise::trailers(trailers);
                }
                frame
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
