//! What a connection becomes once the application has granted `Upgrade` or `CONNECT`: bytes, relayed
//! like those of any other connection.

use std::io;

use futures_util::future::LocalBoxFuture;
use hyper::rt::{Read, Write};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use super::backend::Application;
use super::guard::Guard;
use crate::proxy::failure::Failure;
use crate::proxy::relay::{self, Side, Tally};
use crate::tls::Replay;

/// [`run`] for one kind of client.
pub type Tunnel = fn(OnUpgrade, OnUpgrade) -> LocalBoxFuture<'static, Result<(), Failure>>;

/// Relays between a client and an application that have both switched.
///
/// # Errors
/// Which of the two broke off.
pub fn run<S: Side + Send + 'static>(
    client: OnUpgrade,
    application: OnUpgrade,
) -> LocalBoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        // The client's stream fails together with its connection, which says why.
        let (Ok(client), application) = tokio::join!(client, application) else { return Ok(()) };
        let application =
            application.map_err(|error| Failure::UpstreamReset(io::Error::other(error)))?;
        let mut client = stream::<Guard<Replay<S>>>(client)?;
        let mut application = stream::<Application>(application)?;
        let address = application.tcp().peer_addr().map_err(Failure::UpstreamReset)?;
        relay::relay(&mut client, &mut application, address, &Tally::default()).await
    })
}

/// The same for a stream of HTTP/2, whose end says nothing of its connection's.
pub fn run_stream(
    client: OnUpgrade,
    application: OnUpgrade,
) -> LocalBoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        let (Ok(client), Ok(application)) = tokio::join!(client, application) else {
            return Ok(());
        };
        let (mut client, mut application) = (TokioIo::new(client), TokioIo::new(application));
        if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut application).await {
            tracing::debug!(%error, "a tunnel broke");
        }
        Ok(())
    })
}

/// The stream that the library was given, and what it has read of it and not used.
fn stream<T: Side + Send + 'static>(upgraded: Upgraded) -> Result<Replay<T>, Failure>
where
    TokioIo<T>: Read + Write,
{
    let parts = upgraded
        .downcast::<TokioIo<T>>()
        .map_err(|_| Failure::Internal("a tunnel is of another kind than its client".to_owned()))?;
    Ok(Replay::with_prefix(parts.io.into_inner(), parts.read_buf.into()))
}
