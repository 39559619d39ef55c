//! A client's connection: one HTTP/2 connection over a stream that somebody else made.

use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::http::{Request, Response, Uri, uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::body::Body;
use tower_service::Service;

/// Sends requests over one connection. Clones share it.
#[derive(Debug, Clone)]
pub struct Channel {
    requests: SendRequest<Body>,
    scheme: uri::Scheme,
    authority: uri::Authority,
}

impl Channel {
    /// To a service of this host, over its socket.
    pub async fn unix(path: &std::path::Path) -> std::io::Result<Self> {
        let stream = tokio::net::UnixStream::connect(path).await?;
        let authority = uri::Authority::from_static("localhost");
        let channel = Self::open(stream, authority).await.map_err(std::io::Error::other)?;
        Ok(Self { scheme: uri::Scheme::HTTP, ..channel })
    }

    /// HTTP/2's own greeting; the connection lives on a task of this runtime for as long as a clone
    /// of the channel does, or until the peer ends it.
    pub async fn open<S>(stream: S, authority: uri::Authority) -> Result<Self, hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (requests, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        // A broken connection shows in the requests that are under way.
        tokio::spawn(async move { connection.await.ok() });
        Ok(Self { requests, scheme: uri::Scheme::HTTPS, authority })
    }

    /// Nothing can be sent any more.
    pub fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.requests.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // gRPC clients know the path alone; HTTP/2 needs the rest of the address.
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
        Box::pin(self.requests.send_request(request))
    }
}
