//! What a client is answered, by the application or in its place, and who hears of it.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Response, StatusCode};

use super::in_flight::Ticket;
use super::refusal::Refusal;
use crate::policy::authz::Verdict;
use crate::proxy::failure::Failure;

/// What clients of Istio know a denial by (policy.md 4.10).
const DENIED: &str = "RBAC: access denied";

const GRPC_STATUS: &str = "grpc-status";

/// A request that was answered.
#[derive(Debug, Clone, Copy)]
pub struct Finished {
    pub code: u16,
    pub grpc: bool,
    /// gRPC's own outcome, 0 to 16, whose HTTP status is 200 all the same. None: it said none.
    pub grpc_status: Option<u8>,
    /// Envoy's response flag, `-` for none.
    pub flag: &'static str,
    pub elapsed: Duration,
}

/// A request that policy denied, or took a note of.
#[derive(Debug, Clone, Copy)]
pub struct Judged<'a> {
    pub method: &'a str,
    /// Normalised, without its query.
    pub path: &'a str,
    pub host: &'a str,
    pub verdict: &'a Verdict,
}

/// A request that policy let pass and the application did not answer.
#[derive(Debug, Clone, Copy)]
pub struct Failed<'a> {
    pub method: &'a str,
    /// As [`Judged`] has it.
    pub path: &'a str,
    pub host: &'a str,
    pub failure: &'a Failure,
}

/// Hears of requests. Never blocks.
pub trait Report {
    fn finished(&self, finished: &Finished);
    /// Before the client is answered in the application's place.
    fn failed(&self, failed: &Failed<'_>);
    /// Whatever the access log has a line for: a denial, or a match of AUDIT or of a dry run.
    fn judged(&self, judged: &Judged<'_>);
}

/// Reports a request once, when its answer ends or is given up.
pub struct Record {
    report: Rc<dyn Report>,
    began: Instant,
    finished: Finished,
    ticket: Option<Rc<Ticket>>,
}

impl Record {
    pub fn new(report: Rc<dyn Report>, grpc: bool) -> Self {
        let elapsed = Duration::ZERO;
        let finished = Finished { code: 0, grpc, grpc_status: None, flag: "DC", elapsed };
        Self { report, began: Instant::now(), finished, ticket: None }
    }

    /// Policy let it pass; it is in flight until this record ends.
    pub fn lasts(&mut self, ticket: Rc<Ticket>) {
        self.ticket = Some(ticket);
    }

    fn failed(&self, failure: &Failure) {
        let Some(ticket) = &self.ticket else { return };
        ticket.show(|method, path, host| {
            self.report.failed(&Failed { method, path, host, failure });
        });
    }

    /// Of the headers where there is nothing else, or of the trailers.
    fn note_grpc_status(&mut self, headers: &HeaderMap) {
        if self.finished.grpc
            && let Some(status) = headers.get(GRPC_STATUS)
        {
            let known = status.to_str().ok().and_then(|text| text.parse().ok());
            // Any other is Unknown to its client.
            self.finished.grpc_status = Some(known.filter(|known| *known <= 16).unwrap_or(2));
        }
    }

    fn answered(&mut self, code: StatusCode, flag: &'static str) {
        self.finished.code = code.as_u16();
        self.finished.flag = flag;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.finished.elapsed = self.began.elapsed();
        self.report.finished(&self.finished);
    }
}

/// The body of an answer.
pub enum Payload {
    Application { body: Incoming, record: Option<Record> },
    Own { text: Option<Bytes>, _record: Record },
}

impl Body for Payload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Self::Application { body, record } => {
                let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
                let flag = match &frame {
                    None => "-",
                    Some(Err(_)) => "UC",
                    // Nobody asks again after the last one.
                    Some(Ok(frame)) if frame.is_trailers() || body.is_end_stream() => "-",
                    Some(Ok(_)) => return Poll::Ready(frame),
                };
                if let Some(mut record) = record.take() {
                    record.finished.flag = flag;
                    if let Some(trailers) =
                        frame.iter().flatten().find_map(|frame| frame.trailers_ref())
                    {
                        record.note_grpc_status(trailers);
                    }
                }
                Poll::Ready(frame)
            }
            Self::Own { text, .. } => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Application { body, .. } => body.is_end_stream(),
            Self::Own { text, .. } => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Application { body, .. } => body.size_hint(),
            Self::Own { text, .. } => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
        }
    }
}

/// The application's own answer.
pub fn application(response: Response<Incoming>, mut record: Record) -> Response<Payload> {
    let status = response.status();
    record.note_grpc_status(response.headers());
    response.map(|body| {
        // An empty body may never be asked for.
        let flag = if body.is_end_stream() { "-" } else { "DC" };
        record.answered(status, flag);
        Payload::Application { body, record: Some(record) }
    })
}

/// 403, or gRPC's PermissionDenied.
pub fn denied(record: Record) -> Response<Payload> {
    own(StatusCode::FORBIDDEN, "7", DENIED.to_owned(), "-", record)
}

/// 503, 502 or gRPC's Unavailable: the application was not reached, broke off, or answered what is no
/// answer.
pub fn failed(failure: &Failure, record: Record) -> Response<Payload> {
    record.failed(failure);
    let (status, flag) = match failure {
        Failure::BadAnswer(_) => (StatusCode::BAD_GATEWAY, "UC"),
        Failure::UpstreamReset(_) | Failure::NoAnswer => (StatusCode::SERVICE_UNAVAILABLE, "UC"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "UF"),
    };
    let text = format!("upstream failure ({}): {failure}\n", failure.code());
    own(status, "14", text, flag, record)
}

/// Nothing of the request is passed on, and nothing more is read from the connection.
pub fn refused(refusal: Refusal, last: bool, record: Record) -> Response<Payload> {
    let mut response = own(refusal.status, "3", format!("{refusal}\n"), "DPE", record);
    if last {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn own(
    status: StatusCode,
    grpc_status: &'static str,
    text: String,
    flag: &'static str,
    mut record: Record,
) -> Response<Payload> {
    let mut headers = HeaderMap::new();
    let (status, text) = if record.finished.grpc {
        // A gRPC client reads trailers alone, which may be the only headers.
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from_static(grpc_status));
        record.note_grpc_status(&headers);
        let message = HeaderValue::from_str(text.trim_end());
        headers.insert(
            "grpc-message",
            message.unwrap_or_else(|_| HeaderValue::from_static("upstream failure")),
        );
        (StatusCode::OK, None)
    } else {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        (status, Some(Bytes::from(text)))
    };
    record.answered(status, flag);
    let mut response = Response::new(Payload::Own { text, _record: record });
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Whether a client wants its answers in gRPC's form.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(CONTENT_TYPE) else { return false };
    match kind.as_bytes().strip_prefix(b"application/grpc") {
        Some([]) => true,
        Some([next, ..]) => *next == b'+' || *next == b';',
        None => false,
    }
}
