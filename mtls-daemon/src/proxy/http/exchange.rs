//! One connection's requests: each is brought into form, judged, sent on and answered.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;

use super::answer::{self, Judged, Payload, Record};
use super::backend::{Backend, NoAnswer};
use super::guard::MARK;
use super::in_flight::{self, Ticket};
use super::inward::{self, Cut, Inward};
use super::link::{Link, Turn};
use super::refusal::Refusal;
use super::sanitise::{self, Fields, Sanitised};
use super::tasks::Spawner;
use super::tunnel::Tunnel;
use super::{Context, io_kind};
use crate::proxy::failure::Failure;

/// Why a request is refused whose body never came whole.
const CUT: &str = "the request's body broke off";

pub struct Exchange<'a> {
    context: Context<'a>,
    backend: Backend<'a>,
    link: Arc<Link>,
    spawner: Spawner<'a>,
    http2: bool,
    tunnel: Tunnel,
    tunnels: Cell<bool>,
    /// How the tunnel broke.
    tunnel_broke: Rc<Cell<Option<Failure>>>,
    cut: Rc<Cut>,
    /// Why a request was refused after the guard had let it pass.
    refused: Cell<Option<&'static str>>,
    /// Of a request whose switch was not granted: the library leaves the stream here when the
    /// connection ends.
    not_switched: RefCell<Option<OnUpgrade>>,
}

impl<'a> Exchange<'a> {
    pub fn new(
        context: Context<'a>,
        link: Arc<Link>,
        spawner: Spawner<'a>,
        http2: bool,
        tunnel: Tunnel,
    ) -> Self {
        Self {
            context,
            backend: Backend::new(spawner.clone()),
            link,
            spawner,
            http2,
            tunnel,
            tunnels: Cell::default(),
            tunnel_broke: Rc::default(),
            cut: Rc::default(),
            refused: Cell::default(),
            not_switched: RefCell::default(),
        }
    }

    pub fn tunnels(&self) -> bool {
        self.tunnels.get()
    }

    /// No more requests will come.
    pub async fn end(&self) {
        self.backend.end();
        let left = self.not_switched.take();
        if let Some(left) = left
            && !self.tunnels()
            && let Ok(stream) = left.await
        {
            // Otherwise what was answered last would be reset.
            TokioIo::new(stream).shutdown().await.ok();
        }
    }

    /// How the connection ended.
    pub fn outcome(&self, result: hyper::Result<()>) -> Result<(), Failure> {
        if let Some(failure) = self.tunnel_broke.take() {
            return Err(failure);
        }
        if let Some(refusal) = self.link.refusal() {
            return Err(Failure::HttpRefused(refusal.reason));
        }
        let cut = self.cut.how().filter(|_| !self.http2);
        if let (Some(kind @ io::ErrorKind::ConnectionReset), Ok(())) = (cut, &result) {
            return Err(Failure::ClientReset(kind.into()));
        }
        let refused = self.refused.get().filter(|_| cut != Some(io::ErrorKind::ConnectionReset));
        if let Some(reason) = refused {
            return Err(Failure::HttpRefused(reason));
        }
        let Err(error) = result else {
            return if cut.is_some() { Err(Failure::HttpRefused(CUT)) } else { Ok(()) };
        };
        if error.is_user() {
            // The answer's body is the only thing that comes from this side.
            return Err(Failure::UpstreamReset(io::Error::other(error)));
        }
        let kind = io_kind(&error);
        match kind {
            Some(io::ErrorKind::UnexpectedEof) => Err(Failure::ClientTruncated),
            kind => {
                let kind = kind.unwrap_or(io::ErrorKind::ConnectionReset);
                Err(Failure::ClientReset(io::Error::new(kind, error)))
            }
        }
    }

    pub async fn handle(&self, request: Request<Incoming>) -> Response<Payload> {
        let grpc = answer::is_grpc(request.headers());
        let mut record = Record::new(self.context.report.clone(), grpc);
        let mut turn = Turn::Http;
        let mut response = match self.pass(request, &mut turn, &mut record).await {
            Ok(response) => answer::application(response, record),
            Err(Stop::Refused(refusal)) => {
                // A stream of HTTP/2 may be given up at any time.
                if !(self.http2 && refusal.reason == CUT) {
                    self.refused.set(Some(refusal.reason));
                }
                answer::refused(refusal, !self.http2, record)
            }
            Err(Stop::Denied) => answer::denied(record),
            Err(Stop::Failed(failure)) => answer::failed(&failure, record),
        };
        if !self.http2 && turn == Turn::Http && self.context.leaving.is_due() {
            // The client asks its next request of somebody else, or of the next daemon.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.link.answer(turn);
        response
    }

    async fn pass(
        &self,
        mut request: Request<Incoming>,
        turn: &mut Turn,
        record: &mut Record,
    ) -> Result<Response<Incoming>, Stop> {
        if request.method().as_str().as_bytes()[0] == MARK && !self.http2 {
            let refusal = self.link.refusal();
            return Err(Stop::Refused(refusal.unwrap_or(Refusal::bad("a malformed request"))));
        }
        let wants = !self.http2 && request.extensions().get::<OnUpgrade>().is_some();
        let client = hyper::upgrade::on(&mut request);
        if wants {
            *self.not_switched.borrow_mut() = Some(client.clone());
        }
        let (mut parts, body) = request.into_parts();
        let sanitised = sanitise::request(&mut parts, &self.context).map_err(Stop::Refused)?;
        let ticket = Rc::new(self.judge(&parts, &sanitised)?);
        record.lasts(ticket.clone());
        let body = Inward::new(body, ticket.clone(), self.cut.clone());
        let mut request = Request::from_parts(parts, body);
        if sanitised.expects_continue {
            inward::expect_continue(&mut request);
        }
        let sent = if self.http2 {
            self.backend.send_http2(&self.context, request).await
        } else {
            self.backend.send_http1(&self.context, request).await
        };
        let response = sent.map_err(|error| self.no_answer(error))?;
        self.settle(response, &sanitised, client, ticket, turn)
    }

    /// Whether policy allows it. Once it does, it is asked again whenever it changes.
    fn judge(&self, parts: &hyper::http::request::Parts, is: &Sanitised) -> Result<Ticket, Stop> {
        let mut connection = self.context.connection;
        connection.remote =
            sanitise::remote(&parts.headers, connection.source, self.context.trusted_proxies);
        let headers = Fields(&parts.headers);
        let asked = in_flight::request(&parts.method, &parts.uri, &is.host, &headers);
        let verdict = self.context.authorize.request(&connection, &asked);
        if !verdict.allowed || verdict.audit.is_some() || verdict.dry_run.is_some() {
            let path = parts.uri.path();
            let judged = Judged { method: asked.method, path, host: &is.host, verdict: &verdict };
            self.context.report.judged(&judged);
        }
        match verdict.allowed {
            true => Ok(self.context.in_flight.enter(parts, &is.host, connection.remote)),
            false => Err(Stop::Denied),
        }
    }

    fn no_answer(&self, error: NoAnswer) -> Stop {
        match error {
            NoAnswer::Unreachable(failure) => Stop::Failed(failure),
            NoAnswer::Broken(error) if error.is_incomplete_message() => {
                Stop::Failed(Failure::NoAnswer)
            }
            NoAnswer::Broken(error) if error.is_parse() => {
                Stop::Failed(Failure::BadAnswer(error.to_string()))
            }
            // Its body comes from the client's side: it broke off, or two readers could have read
            // it differently.
            NoAnswer::Broken(error) if error.is_user() => {
                Stop::Refused(self.link.refusal().unwrap_or(Refusal::bad(CUT)))
            }
            NoAnswer::Broken(error) => {
                Stop::Failed(Failure::UpstreamReset(io::Error::other(error)))
            }
        }
    }

    /// Bytes are tunnelled only after an answer that grants what was asked for.
    fn settle(
        &self,
        mut response: Response<Incoming>,
        is: &Sanitised,
        client: OnUpgrade,
        ticket: Rc<Ticket>,
        turn: &mut Turn,
    ) -> Result<Response<Incoming>, Stop> {
        let status = response.status();
        let switching = status == StatusCode::SWITCHING_PROTOCOLS;
        let granted = response.headers().get(UPGRADE).cloned();
        sanitise::response(response.headers_mut());
        if !self.http2 {
            // The application's version is its own connection's.
            *response.version_mut() = hyper::Version::HTTP_11;
        }
        if switching {
            let asked =
                granted.as_ref().and_then(|granted| granted.to_str().ok()).is_some_and(|granted| {
                    is.protocols.iter().any(|asked| asked.eq_ignore_ascii_case(granted.trim()))
                });
            if !asked {
                let reason = "it switched to a protocol that was not asked for".to_owned();
                return Err(Stop::Failed(Failure::BadAnswer(reason)));
            }
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        } else if !(is.connect && status.is_success()) {
            return Ok(response);
        }
        let application = hyper::upgrade::on(&mut response);
        *turn = Turn::Tunnel;
        self.not_switched.take();
        self.tunnels.set(true);
        let (tunnel, broke) = ((self.tunnel)(client, application), self.tunnel_broke.clone());
        self.spawner.spawn(async move {
            broke.set(tunnel.await.err());
            drop(ticket);
        });
        Ok(response)
    }
}

/// Why a request was not answered by the application.
enum Stop {
    Refused(Refusal),
    Denied,
    Failed(Failure),
}
