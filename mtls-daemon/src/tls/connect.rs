//! The client side: mTLS to a server whose identity is known beforehand.

use std::sync::Arc;

use tokio::net::TcpStream;

use super::verify::{AuthenticatedPeer, TlsSummary};
use super::{HandshakeError, TlsIdentity};
use crate::identity::SpiffeId;

pub type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;

/// Shakes hands with ALPN `istio`. The server's SVID must be one of `expected` (exact match).
pub async fn connect(
    _stream: TcpStream,
    _own: &TlsIdentity,
    _expected: &Arc<[SpiffeId]>,
    _sni: &str,
) -> Result<(ClientStream, AuthenticatedPeer, TlsSummary), HandshakeError> {
    todo!()
}
