//! The client side: mTLS to a server whose identity is known beforehand.

use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::handshake::{self, Verified};
use super::sessions::Whom;
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
    let address = stream.peer_addr()?;
    let whom = Whom { expected: expected.clone(), address, sni: sni.into() };
    let kept = own.client(whom);
    let shake = TlsConnector::from(kept.config.clone()).connect(name, stream);
    let (stream, verified) = handshake::run_client(expected.clone(), shake).await?;
    let connection = stream.get_ref().1;
    let summary = TlsSummary::of(connection);
    let peer = match verified {
        Some(Verified { peer, resumed: false }) if !summary.resumed && peer.is_of(connection) => {
            kept.verified(&peer);
            peer
        }
        // The library asked nobody.
        None if summary.resumed => {
            let shown = connection.peer_certificates().unwrap_or_default();
            own.verify_again(shown, expected).inspect_err(|_| kept.forget())?
        }
        _ => return Err(handshake::nobody()),
    };
    Ok((stream, peer, summary))
}
