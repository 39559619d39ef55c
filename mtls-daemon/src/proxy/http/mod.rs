//! HTTP on the server's side: every request is read strictly, brought into one form, judged, told who
//! its client is, and only then sent to the application (docs/http.md; policy.md 4.6, 4.10, 5).
//!
//! A caller terminates TLS, decides that a port speaks HTTP ([`sniff`] where nobody declared it),
//! makes a [`Context`] and awaits [`serve`]:
//!
//! ```ignore
//! let traffic = Arc::new(Traffic::default());
//! let connect = || Box::pin(self.reach_application()) as Connecting<'_>;
//! let context = Context {
//!     connection,                              // policy::authz::Connection, remote = source
//!     own_uri: Some(own.id().as_str()),        // None in the clear
//!     client: Some(client_of(&peer)),          // None in the clear
//!     forward_client_cert: true, trusted_forwarders: &[], trusted_proxies: 0,
//!     normalisation: Normalisation::Base,
//!     authorize: &policies,                    // asked for every request: loads the snapshot itself
//!     connect: &connect, connected: application.into(),
//!     report: Rc::new(telemetry.requests(&flow)), in_flight, traffic: traffic.clone(), head_time, leaving,
//! };
//! let result = http::serve(Replay::new(tls_stream), context).await;
//! tally.sent.set(traffic.total_sent());        // also after the future was dropped
//! ```
//!
//! Dropping the future resets both connections.

mod answer;
mod backend;
pub mod detect;
mod exchange;
pub mod framing;
mod guard;
pub mod head;
mod in_flight;
mod inward;
mod link;
mod refusal;
mod sanitise;
mod tasks;
#[cfg(test)]
mod tests;
mod tunnel;
mod unavailable;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncRead;
use tokio::net::TcpStream;
use tokio::time::timeout;

pub use answer::{Failed, Finished, Judged, Report};
pub use in_flight::InFlight;
pub use link::Traffic;
pub use refusal::Refusal;
pub use unavailable::unavailable;

use super::age::Leaving;
use super::failure::Failure;
use super::relay::Side;
use crate::policy::Normalisation;
use crate::policy::authz::{Connection, Request as Asked, Verdict, WorkloadAuthorization};
use crate::policy::xfcc::Client;
use crate::tls::{AuthenticatedPeer, Replay};
use detect::Spoken;
use exchange::Exchange;
use guard::Guard;
use link::Link;
use tasks::Tasks;

/// Who is asked whether a request may pass. For every request anew: connections outlive policies.
pub trait Authorize {
    fn request(&self, connection: &Connection<'_>, request: &Asked<'_>) -> Verdict;
}

impl Authorize for WorkloadAuthorization {
    fn request(&self, connection: &Connection<'_>, request: &Asked<'_>) -> Verdict {
        self.request(connection, request)
    }
}

/// A connection to the application that is being made.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = Result<TcpStream, Failure>> + 'a>>;

/// What one inbound connection is.
pub struct Context<'a> {
    pub connection: Connection<'a>,
    /// The URI SAN of the certificate that was shown to the client.
    pub own_uri: Option<&'a str>,
    /// The authenticated client. None: the connection is not mTLS.
    pub client: Option<Client>,
    /// Whether the application is told of its client. The client's own header never reaches it
    /// unless the client is one of `trusted_forwarders`.
    pub forward_client_cert: bool,
    /// Principals without `spiffe://`, or `prefix*`, `*suffix`, `*`: what they forward is kept.
    pub trusted_forwarders: &'a [String],
    /// Proxies in front whose X-Forwarded-For is believed. 0: the header means nothing.
    pub trusted_proxies: usize,
    pub normalisation: Normalisation,
    pub authorize: &'a dyn Authorize,
    /// Reaches the application: not before a request is allowed, and again when it has hung up.
    pub connect: &'a dyn Fn() -> Connecting<'a>,
    /// A connection to the application that had to be made beforehand.
    pub connected: RefCell<Option<TcpStream>>,
    pub report: Rc<dyn Report>,
    /// Where requests are while they last, so that others can have them judged again.
    pub in_flight: Rc<InFlight>,
    pub traffic: Arc<Traffic>,
    /// How long a request's head may take from its first byte.
    pub head_time: Duration,
    /// Says when clients are to take their next requests elsewhere.
    pub leaving: Leaving<'a>,
}

/// What the header says of an authenticated client.
pub fn client_of(peer: &AuthenticatedPeer) -> Client {
    Client {
        hash: peer.certificate_sha256(),
        subject: Some(peer.subject().to_owned()),
        uri: Some(peer.id().to_string()),
        certificate: None,
        dns_names: peer.dns_names().to_vec(),
    }
}

/// Whether the client of `stream`, whose port nobody declared, speaks HTTP: at most 8 KiB of its
/// first bytes are awaited for `limit`, and all of them stay in `stream`.
///
/// # Errors
/// The client broke the connection.
pub async fn sniff<S: AsyncRead + Unpin>(
    stream: &mut Replay<S>,
    limit: Duration,
) -> io::Result<bool> {
    let look = async {
        loop {
            if let Some(answer) = detect::is_http(stream.peeked()) {
                return Ok(answer);
            }
            if stream.peek_more().await? == 0 {
                return Ok(false);
            }
        }
    };
    timeout(limit, look).await.unwrap_or(Ok(false))
}

/// Serves every request of one connection, HTTP/1 or, where the client begins with its preface,
/// HTTP/2. Returns when the client and all that was asked for it have ended.
///
/// # Errors
/// Why the connection did not end in order.
pub async fn serve<S>(mut client: Replay<S>, context: Context<'_>) -> Result<(), Failure>
where
    S: Side + Send + 'static,
{
    let mut first: Option<Instant> = None;
    let http2 = loop {
        match detect::spoken(client.peeked()) {
            Spoken::Http2 => break true,
            Spoken::Unfinished if detect::PREFACE.starts_with(client.peeked()) => {}
            _ => break false,
        }
        // The guard has the clock of a head, and answers when it runs out.
        let limit = if client.peeked().is_empty() {
            Duration::MAX
        } else {
            context.head_time.saturating_sub(first.get_or_insert_with(Instant::now).elapsed())
        };
        let Ok(more) = timeout(limit, client.peek_more()).await else { break false };
        match more {
            Ok(0) if client.peeked().is_empty() => return Ok(()),
            Ok(0) => break false,
            Ok(_) => {}
            Err(error) => return Err(Failure::ClientReset(error)),
        }
    };
    let mut tasks = Tasks::default();
    let link = Arc::new(Link::new(context.traffic.clone()));
    let (head_time, leaving) = (context.head_time, context.leaving);
    let tunnel: tunnel::Tunnel = if http2 { tunnel::run_stream } else { tunnel::run::<S> };
    let exchange =
        Rc::new(Exchange::new(context, link.clone(), tasks.spawner.clone(), http2, tunnel));
    let result = {
        let exchange = exchange.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let exchange = exchange.clone();
            async move { Ok::<_, std::convert::Infallible>(exchange.handle(request).await) }
        });
        if http2 {
            let stream = TokioIo::new(Guard::http2(client, link.clone()));
            let server = http2_server(tasks.spawner.clone()).serve_connection(stream, service);
            let (mut server, mut due) = (pin!(server), pin!(leaving.due()));
            let mut told = false;
            let whole = poll_fn(|cx| {
                if !told && due.as_mut().poll(cx).is_ready() {
                    told = true;
                    server.as_mut().graceful_shutdown();
                }
                server.as_mut().poll(cx)
            });
            tasks.run(whole).await
        } else {
            let stream = TokioIo::new(Guard::http1(client, link.clone(), head_time));
            let server = http1_server().serve_connection(stream, service).with_upgrades();
            tasks.run(server).await
        }
    };
    exchange.end().await;
    if exchange.tunnels() {
        tasks.finish().await;
    } else {
        // Idle connections to the application are closed in order; one in use is cut off.
        timeout(PARTING, tasks.finish()).await.ok();
    }
    exchange.outcome(result)
}

/// The system's own word in a chain of errors.
fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<io::ErrorKind> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        next = error.source();
    }
    None
}

/// How long connections to the application may take to end once the client is gone.
const PARTING: Duration = Duration::from_millis(100);

fn http1_server() -> hyper::server::conn::http1::Builder {
    let mut server = hyper::server::conn::http1::Builder::new();
    // The guard has limits of its own, which it answers; these only must not be in its way.
    server
        .half_close(true)
        .header_read_timeout(None)
        .max_headers(head::MAX_HEADERS + 1)
        .preserve_header_case(true)
        .auto_date_header(false);
    // Never `pipeline_flush`: behind a request that waits, it keeps the whole answer in memory.
    server
}

fn http2_server(
    spawner: tasks::Spawner<'_>,
) -> hyper::server::conn::http2::Builder<tasks::Spawner<'_>> {
    let mut server = hyper::server::conn::http2::Builder::new(spawner);
    server
        .max_concurrent_streams(1000)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_header_list_size(u32::try_from(head::MAX_HEAD).unwrap_or(u32::MAX))
        .auto_date_header(false);
    server
}
