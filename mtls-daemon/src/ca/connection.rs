//! One connection: TLS, HTTP/2, requests, and when it has to end.
//!
//! Whoever connects and says nothing would keep a place for ever, and there is a number of them: a
//! connection is for those who ask.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::http::{Request, Response};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::server::NamedService;
use tower_service::Service;

use super::issue::Ca;
use super::service::{Connection, Services};
use crate::grpc::istio_v1_auth::istio_certificate_service_server::IstioCertificateServiceServer;
use crate::grpc::mtls_ca_v1::node_service_server::NodeServiceServer;
use crate::tls::HandshakeError;

const HANDSHAKE: Duration = Duration::from_secs(10);
const STREAMS: u32 = 1024;
/// A CSR and a token; what is larger is nobody's.
const LONGEST_MESSAGE: usize = 64 * 1024;
const LONGEST_HEADERS: u32 = 32 * 1024;
/// A client that is gone without a word is found out.
const PING: Duration = Duration::from_secs(30);
/// A request from its head to its answer; whoever sends its body slowly is cut off.
const REQUEST: Duration = Duration::from_secs(90);

type Istio = IstioCertificateServiceServer<Services>;
type Node = NodeServiceServer<Services>;

/// How long a connection may be.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// From the handshake to the first request; HTTP/2's own greeting is part of it.
    pub first: Duration,
    /// Without a request. A node of ours keeps one for a minute.
    pub idle: Duration,
    /// At all: a client's certificate, and its way here, are looked at again then.
    pub age: Duration,
    /// For the end of requests that are under way when the CA ends.
    pub farewell: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(10),
            idle: Duration::from_secs(150),
            age: Duration::from_secs(600),
            farewell: Duration::from_secs(5),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("no handshake within {HANDSHAKE:?}")]
    Slow,
    #[error("nothing was asked within {0:?}")]
    Silent(Duration),
    #[error("it did not end in time")]
    Lingers,
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

/// What is known of a connection's requests.
#[derive(Clone)]
struct Use(Arc<Mutex<Used>>);

struct Used {
    under_way: u32,
    asked: bool,
    last: Instant,
}

/// One request. It counts until this is dropped, also if its stream is reset.
struct UnderWay(Use);

impl Use {
    fn begin(&self) -> UnderWay {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        used.under_way += 1;
        used.asked = true;
        UnderWay(self.clone())
    }

    fn asked(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).asked
    }

    /// When it ends if nothing more is asked.
    fn end(&self, begun: Instant, times: &Times) -> Instant {
        let used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let quiet = match (used.under_way, used.asked) {
            (0, false) => used.last + times.first,
            (0, true) => used.last + times.idle,
            // Bounded by itself.
            _ => Instant::now() + times.idle,
        };
        quiet.min(begun + times.age)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut used = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        used.under_way -= 1;
        used.last = Instant::now();
    }
}

/// Serves one connection until it ends, has to end, or `stop` turns true.
pub async fn serve(
    ca: Arc<Ca>,
    stream: TcpStream,
    peer: SocketAddr,
    times: Times,
    mut stop: watch::Receiver<bool>,
) -> Result<(), ConnectionError> {
    stream.set_nodelay(true).ok();
    let server = ca.signing().server.clone();
    let accepted = tokio::select! {
        accepted = tokio::time::timeout(HANDSHAKE, server.accept(stream)) => accepted,
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    };
    let (stream, client) = accepted.map_err(|_| ConnectionError::Slow)??;
    let connection = Connection { peer, client };
    let services = Services(ca);
    let istio = Istio::new(services.clone()).max_decoding_message_size(LONGEST_MESSAGE);
    let node = Node::new(services).max_decoding_message_size(LONGEST_MESSAGE);
    let begun = Instant::now();
    let uses = Use(Arc::new(Mutex::new(Used { under_way: 0, asked: false, last: begun })));
    let counted = uses.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(connection.clone());
        let (mut istio, mut node) = (istio.clone(), node.clone());
        let under_way = counted.begin();
        async move {
            let answered =
                tokio::time::timeout(REQUEST, route(request, &mut istio, &mut node)).await;
            drop(under_way);
            let late =
                |_| tonic::Status::deadline_exceeded("the request took too long").into_http();
            Ok::<_, Infallible>(answered.unwrap_or_else(late))
        }
    });
    let serving = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(LONGEST_HEADERS)
        .keep_alive_interval(PING)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    loop {
        let end = uses.end(begun, &times);
        tokio::select! {
            ended = &mut serving => return Ok(ended?),
            _ = stop.wait_for(|stop| *stop) => {
                if !uses.asked() {
                    return Ok(());
                }
                break;
            }
            () = tokio::time::sleep_until(end) => {
                // Something may have been asked meanwhile.
                if uses.end(begun, &times) <= Instant::now() {
                    break;
                }
            }
        }
    }
    if !uses.asked() {
        return Err(ConnectionError::Silent(times.first));
    }
    // What is under way is answered; the client asks for more on another connection.
    serving.as_mut().graceful_shutdown();
    let stopped = async {
        stop.wait_for(|stop| *stop).await.ok();
        tokio::time::sleep(times.farewell).await;
    };
    tokio::select! {
        ended = &mut serving => Ok(ended?),
        () = tokio::time::sleep(REQUEST) => Err(ConnectionError::Lingers),
        () = stopped => Err(ConnectionError::Lingers),
    }
}

async fn route(request: Request<Incoming>, istio: &mut Istio, node: &mut Node) -> Response<Body> {
    let service = request.uri().path().split('/').nth(1).unwrap_or_default();
    let answered = if service == Istio::NAME {
        istio.call(request).await
    } else if service == Node::NAME {
        node.call(request).await
    } else {
        return tonic::Status::unimplemented("no such service").into_http();
    };
    // Infallible.
    answered.unwrap_or_else(|never| match never {})
}
