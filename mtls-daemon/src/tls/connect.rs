//! The client side: mTLS to a server whose identity is known beforehand.

use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::handshake;
use super::verify::{AuthenticatedPeer, TlsSummary};
use super::{HandshakeError, TlsIdentity};
use crate::identity::SpiffeId;

pub type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;

/// Shakes hands with ALPN `istio`. The server's SVID must be one of `expected` (exact match).
///
/// Not bounded in time: the caller does that. The server may still refuse *us* after this returns
/// (see [`HandshakeError::from_established`]).
pub async fn connect(
    stream: TcpStream,
    own: &TlsIdentity,
    expected: &Arc<[SpiffeId]>,
    sni: &str,
) -> Result<(ClientStream, AuthenticatedPeer, TlsSummary), HandshakeError> {
    let name = ServerName::try_from(sni.to_owned()).map_err(|_| {
        HandshakeError::Own(format!("{sni:?} is no name to send as SNI: correct the rule's `sni`"))
    })?;
    own.certificate().check(SystemTime::now())?;
    let shake = TlsConnector::from(own.client()).connect(name, stream);
    let (stream, peer) = handshake::run(Some(expected.clone()), shake).await?;
    let summary = TlsSummary::of(stream.get_ref().1);
    Ok((stream, peer, summary))
}
