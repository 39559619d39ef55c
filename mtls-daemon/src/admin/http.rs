//! A small HTTP/1.1 server: a few GETs, one request a connection, everything bounded.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::State;
use crate::telemetry::metrics;

/// More wait in the kernel's queue. Each door has its own, so that a crowd at the TCP port cannot
/// shut out `mtls-daemon status`.
pub(super) const MAX_CONNECTIONS: usize = 64;

/// A request's head has to be complete after this time,
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// and its answer taken after this one.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Hyper's least.
const MAX_HEAD: usize = 8192;

/// Which listener a request came through: what it may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// The Unix socket, root's alone.
    Socket,
    /// Anybody who reaches the address: names of workloads in metrics, and nothing more.
    Tcp,
}

pub(super) trait Listener {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>>;
}

impl Listener for TcpListener {
    type Stream = TcpStream;
    async fn accept(&self) -> io::Result<TcpStream> {
        TcpListener::accept(self).await.map(|(stream, _)| stream)
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;
    async fn accept(&self) -> io::Result<UnixStream> {
        UnixListener::accept(self).await.map(|(stream, _)| stream)
    }
}

/// Answers until it is dropped.
pub(super) async fn serve<L: Listener>(listener: &L, door: Door, state: Arc<State>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok(stream) => {
                let state = state.clone();
                tokio::spawn(connection(stream, door, state, Arc::new(place)));
            }
            Err(error) => {
                tracing::warn!(%error, ?door, "cannot accept an admin connection");
                // Mostly out of descriptors: those do not come back faster by asking.
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn connection<S>(stream: S, door: Door, state: Arc<State>, place: Arc<OwnedSemaphorePermit>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let (state, place) = (state.clone(), place.clone());
        async move {
            let (method, path) = (request.method(), request.uri().path());
            Ok::<_, Infallible>(answer(method, path, door, state, place).await)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .max_headers(64)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, ?door, "an admin request failed"),
        Err(_) => tracing::debug!(?door, "an admin answer was not taken in time"),
    }
}

async fn answer(
    method: &Method,
    path: &str,
    door: Door,
    state: Arc<State>,
    place: Arc<OwnedSemaphorePermit>,
) -> Response<Full<Bytes>> {
    // Hyper leaves the body of an answer to HEAD away.
    if method != Method::GET && method != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".into());
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match (path, door) {
        ("/metrics", _) => off_runtime(place, move || metrics(&state)).await,
        ("/healthz/live", _) => text(StatusCode::OK, "live\n".into()),
        ("/healthz/ready", _) => off_runtime(place, move || readiness(&state)).await,
        ("/status", Door::Socket) => off_runtime(place, move || status(&state)).await,
        _ => {
            let status = if door == Door::Socket { " /status" } else { "" };
            let known = format!("there is /metrics /healthz/ready /healthz/live{status}\n");
            text(StatusCode::NOT_FOUND, known)
        }
    }
}

/// Makes an answer on the blocking pool: it asks the kernel, and waits for whoever changes it. The
/// connection's place is held to the end of that, even if the client has gone: answers that are stuck
/// fill a door's places, and never the pool.
async fn off_runtime(
    place: Arc<OwnedSemaphorePermit>,
    make: impl FnOnce() -> Response<Full<Bytes>> + Send + 'static,
) -> Response<Full<Bytes>> {
    let made = tokio::task::spawn_blocking(move || {
        let response = make();
        drop(place);
        response
    });
    made.await.unwrap_or_else(|error| {
        tracing::error!(%error, "an admin answer could not be made");
        text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))
    })
}

fn metrics(state: &State) -> Response<Full<Bytes>> {
    reply(StatusCode::OK, metrics::CONTENT_TYPE, state.metrics.encode())
}

fn readiness(state: &State) -> Response<Full<Bytes>> {
    let awaited = state.readiness.awaited();
    if awaited.is_empty() {
        return text(StatusCode::OK, "ready\n".into());
    }
    text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", awaited.join(", ")))
}

fn status(state: &State) -> Response<Full<Bytes>> {
    match serde_json::to_string(&(state.status)()) {
        Ok(json) => reply(StatusCode::OK, "application/json", json),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=utf-8", body)
}

fn reply(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let content_type = hyper::header::HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
