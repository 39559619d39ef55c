//! TLS 1.3 with SPIFFE identities, both directions. The only place that names rustls.

pub mod accept;
pub mod connect;
pub mod error;
pub mod identity;
pub mod replay;
pub mod verify;

pub use error::HandshakeError;
pub use identity::TlsIdentity;
pub use replay::Replay;
pub use verify::AuthenticatedPeer;
