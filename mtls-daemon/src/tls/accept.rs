//! The server side: reads a ClientHello, lets policy decide, then shakes hands or gives the bytes
//! back untouched.

use tokio::net::TcpStream;

use super::verify::{AuthenticatedPeer, TlsSummary};
use super::{HandshakeError, Replay, TlsIdentity};

pub type ServerStream = tokio_rustls::server::TlsStream<Replay<TcpStream>>;

/// What a connection's first bytes turned out to be.
pub enum FirstBytes {
    /// Not a TLS ClientHello; every byte read so far is replayed.
    NotTls(Replay<TcpStream>),
    Tls(PendingHandshake),
    /// The client closed before sending anything.
    Closed(Replay<TcpStream>),
}

/// A parsed ClientHello that is not answered yet.
pub struct PendingHandshake {}

impl PendingHandshake {
    /// The client offered one of Istio's mesh ALPN protocols (`istio`, `istio-peer-exchange`,
    /// `istio-http/1.0`, `istio-http/1.1`, `istio-h2`): POLICY 3.4's test in PERMISSIVE.
    pub fn is_mesh(&self) -> bool {
        todo!()
    }

    pub fn sni(&self) -> Option<&str> {
        todo!()
    }

    /// Terminates: requires and verifies the client's SVID. Answers no ALPN.
    pub async fn accept(
        self,
        _own: &TlsIdentity,
    ) -> Result<(ServerStream, AuthenticatedPeer, TlsSummary), HandshakeError> {
        todo!()
    }

    /// Gives the connection back with every byte of the ClientHello replayed.
    pub fn into_untouched(self) -> Replay<TcpStream> {
        todo!()
    }
}

/// Reads until the first bytes are known to be a ClientHello or not. Bytes that only look like TLS
/// at first are `NotTls`. Bounded in size; the caller bounds it in time (cancel-safe is not needed,
/// but on timeout `Replay` must be recoverable: so this takes `&mut Replay`).
pub async fn first_bytes(_stream: Replay<TcpStream>) -> Result<FirstBytes, HandshakeError> {
    todo!()
}
