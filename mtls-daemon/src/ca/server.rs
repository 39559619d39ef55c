//! The port: TLS, then HTTP/2, then the services.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hyper::body::Incoming;
use hyper::http::{Request, Response};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::server::NamedService;
use tower_service::Service;

use super::issue::Ca;
use super::issued;
use super::service::{Connection, Services};
use crate::grpc::istio_v1_auth::istio_certificate_service_server::IstioCertificateServiceServer;
use crate::grpc::mtls_ca_v1::node_service_server::NodeServiceServer;
use crate::tls::HandshakeError;

const HANDSHAKE: Duration = Duration::from_secs(10);
const CONNECTIONS: usize = 4096;
const STREAMS: u32 = 1024;
/// A CSR and a token; what is larger is nobody's.
const LONGEST_MESSAGE: usize = 64 * 1024;
const LONGEST_HEADERS: u32 = 32 * 1024;
/// A client that is gone without a word is found out.
const PING: Duration = Duration::from_secs(30);
/// How soon a change in the CA's files takes effect.
const REFRESH: Duration = Duration::from_secs(1);

/// How often what has expired is forgotten.
const COMPACT: Duration = Duration::from_secs(3600);

type Istio = IstioCertificateServiceServer<Services>;
type Node = NodeServiceServer<Services>;

/// Serves until `stop` resolves.
pub async fn serve(ca: Arc<Ca>, listener: TcpListener, stop: impl Future<Output = ()>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // With this function ends whatever it serves.
    let mut connections = JoinSet::new();
    let accepting = async {
        loop {
            while connections.try_join_next().is_some() {}
            // Before accepting: what finds no place waits in the kernel's queue.
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let ca = ca.clone();
                    connections.spawn(async move {
                        if let Err(error) = connection(ca, stream, peer).await {
                            tracing::info!(%peer, %error, "a connection ended");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = refresh(&ca) => {}
        () = stop => {}
    }
}

async fn refresh(ca: &Arc<Ca>) {
    let mut failed = None;
    let mut compacted = Instant::now();
    loop {
        tokio::time::sleep(REFRESH).await;
        let compact = compacted.elapsed() > COMPACT;
        if compact {
            compacted = Instant::now();
        }
        let ca = ca.clone();
        let refresh = move || {
            let now = SystemTime::now();
            if compact {
                issued::compact(ca.directory(), now)?;
            }
            ca.refresh(now)
        };
        let refreshed = tokio::task::spawn_blocking(refresh).await;
        let error = match refreshed {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        // Once for each fault, not every second.
        if let Some(error) = &error
            && failed.as_ref() != Some(error)
        {
            tracing::error!(%error, "the CA goes on with the roots that it has");
        }
        failed = error;
    }
}

#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("no handshake within {HANDSHAKE:?}")]
    Slow,
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

async fn connection(
    ca: Arc<Ca>,
    stream: TcpStream,
    peer: SocketAddr,
) -> Result<(), ConnectionError> {
    stream.set_nodelay(true).ok();
    let server = ca.signing().server.clone();
    let accepted = tokio::time::timeout(HANDSHAKE, server.accept(stream)).await;
    let (stream, client) = accepted.map_err(|_| ConnectionError::Slow)??;
    let connection = Connection { peer, client };
    let services = Services(ca);
    let istio = Istio::new(services.clone()).max_decoding_message_size(LONGEST_MESSAGE);
    let node = Node::new(services).max_decoding_message_size(LONGEST_MESSAGE);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(connection.clone());
        let (mut istio, mut node) = (istio.clone(), node.clone());
        async move { Ok::<_, Infallible>(route(request, &mut istio, &mut node).await) }
    });
    http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(LONGEST_HEADERS)
        .keep_alive_interval(PING)
        .serve_connection(TokioIo::new(stream), service)
        .await?;
    Ok(())
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
