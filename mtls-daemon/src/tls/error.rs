//! Why a handshake failed, and whose fault it was.

/// A failed handshake or an unusable identity.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer's certificate is not one we accept. The text says which rule it broke.
    #[error("the peer's certificate is refused: {0}")]
    PeerRefused(String),
    /// The peer refused us, or broke the protocol.
    #[error("the peer ended the handshake: {0}")]
    Peer(String),
    #[error("the connection broke during the handshake: {0}")]
    Io(#[from] std::io::Error),
    /// Our own key, certificate or configuration.
    #[error("own identity is not usable: {0}")]
    Own(String),
}
