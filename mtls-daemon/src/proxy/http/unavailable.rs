//! On the client's side: an HTTP/2 client whose server cannot be had, or never answered, is told so.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use super::answer::is_grpc;
use super::guard::Guard;
use super::link::Link;
use super::tasks::Tasks;
use crate::proxy::failure::Failure;
use crate::proxy::relay::Side;
use crate::tls::Replay;

/// Answers what `client` has asked, from its preface on, and ends the connection. Not bounded in
/// time: a client may ask nothing.
///
/// # Errors
/// The client could not be told.
pub async fn unavailable<S: Side>(client: Replay<S>, failure: &Failure) -> io::Result<()> {
    let text = format!("upstream failure ({}): {failure}", failure.code());
    let answered = Cell::new(false);
    let service = service_fn(|request: Request<Incoming>| {
        answered.set(true);
        let answer = answer(&request, &text);
        async move { Ok::<_, Infallible>(answer) }
    });
    let link = Arc::new(Link::new(Arc::default()));
    let stream = TokioIo::new(Guard::http2(client, link));
    let mut tasks = Tasks::default();
    let server = hyper::server::conn::http2::Builder::new(tasks.spawner.clone());
    let mut server = pin!(server.serve_connection(stream, service));
    let mut leaving = false;
    let whole = std::future::poll_fn(|cx| {
        let result = server.as_mut().poll(cx);
        if result.is_pending() && answered.get() && !std::mem::replace(&mut leaving, true) {
            server.as_mut().graceful_shutdown();
            // Polled once more: leaving has something to say, too.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        result
    });
    tasks.run(whole).await.map_err(io::Error::other)
}

fn answer(request: &Request<Incoming>, text: &str) -> Response<Full<Bytes>> {
    if is_grpc(request.headers()) {
        let mut response = Response::new(Full::default());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static("14"));
        if let Ok(message) = HeaderValue::from_str(text) {
            headers.insert("grpc-message", message);
        }
        return response;
    }
    let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}
