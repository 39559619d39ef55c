//! Connections to the application: made when a request may pass, kept while both sides keep them.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};

use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::Context;
use super::inward::Inward;
use super::tasks::Spawner;
use crate::node::dial::close_in_order;
use crate::proxy::failure::Failure;
use crate::proxy::relay::Side;

/// Why the application gave no answer.
pub enum NoAnswer {
    /// It was not reached.
    Unreachable(Failure),
    /// It broke off before its answer was whole.
    Broken(hyper::Error),
}

pub struct Backend<'a> {
    spawner: Spawner<'a>,
    http1: RefCell<Option<http1::SendRequest<Inward>>>,
    /// Locked while it is being made: requests of one client come at once.
    http2: Mutex<Option<http2::SendRequest<Inward>>>,
}

impl<'a> Backend<'a> {
    pub fn new(spawner: Spawner<'a>) -> Self {
        Self { spawner, http1: RefCell::default(), http2: Mutex::default() }
    }

    /// Lets go of idle connections.
    pub fn end(&self) {
        self.http1.take();
        if let Ok(mut http2) = self.http2.try_lock() {
            http2.take();
        }
    }

    /// One request at a time.
    pub async fn send_http1(
        &self,
        context: &Context<'a>,
        mut request: Request<Inward>,
    ) -> Result<Response<Incoming>, NoAnswer> {
        loop {
            let mut kept = self.http1.take();
            if let Some(sender) = &mut kept
                && sender.ready().await.is_err()
            {
                kept = None;
            }
            let fresh = kept.is_none() && context.connected.borrow().is_none();
            let mut sender = match kept {
                Some(sender) => sender,
                None => self.connect_http1(context).await?,
            };
            match sender.try_send_request(request).await {
                Ok(response) => {
                    *self.http1.borrow_mut() = Some(sender);
                    return Ok(response);
                }
                // The application closed an idle connection at this very moment: nothing was sent.
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !fresh => request = unsent,
                    _ => return Err(NoAnswer::Broken(error.into_error())),
                },
            }
        }
    }

    pub async fn send_http2(
        &self,
        context: &Context<'a>,
        mut request: Request<Inward>,
    ) -> Result<Response<Incoming>, NoAnswer> {
        for last in [false, true] {
            let mut sender = {
                let mut kept = self.http2.lock().await;
                match &*kept {
                    Some(sender) if !sender.is_closed() => sender.clone(),
                    _ => kept.insert(self.connect_http2(context).await?).clone(),
                }
            };
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(response),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !last => {
                        request = unsent;
                        self.http2.lock().await.take_if(|sender| sender.is_closed());
                    }
                    _ => return Err(NoAnswer::Broken(error.into_error())),
                },
            }
        }
        unreachable!("the second round returns")
    }

    async fn connect_http1(
        &self,
        context: &Context<'a>,
    ) -> Result<http1::SendRequest<Inward>, NoAnswer> {
        let stream = reach(context).await?;
        let (sender, connection) = http1::Builder::new()
            .preserve_header_case(true)
            .max_headers(512)
            .handshake(stream)
            .await
            .map_err(NoAnswer::Broken)?;
        self.spawner.spawn(async move {
            // The request that it fails says so.
            connection.with_upgrades().await.ok();
        });
        Ok(sender)
    }

    async fn connect_http2(
        &self,
        context: &Context<'a>,
    ) -> Result<http2::SendRequest<Inward>, NoAnswer> {
        let stream = reach(context).await?;
        let (sender, connection) = http2::Builder::new(self.spawner.clone())
            .initial_stream_window_size(256 * 1024)
            .initial_connection_window_size(1024 * 1024)
            .handshake(stream)
            .await
            .map_err(NoAnswer::Broken)?;
        self.spawner.spawn(async move {
            connection.await.ok();
        });
        Ok(sender)
    }
}

async fn reach(context: &Context<'_>) -> Result<TokioIo<Application>, NoAnswer> {
    let made = context.connected.take();
    let stream = match made {
        Some(stream) => stream,
        None => (context.connect)().await.map_err(NoAnswer::Unreachable)?,
    };
    stream.set_nodelay(true).ok();
    Ok(TokioIo::new(Application(stream)))
}

/// The application's end. Dropped without having been shut down, it resets.
pub struct Application(TcpStream);

impl Side for Application {
    fn tcp(&self) -> &TcpStream {
        &self.0
    }
}

impl AsyncRead for Application {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, out)
    }
}

impl AsyncWrite for Application {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.0).poll_shutdown(cx))?;
        Poll::Ready(close_in_order(&self.0))
    }
}
