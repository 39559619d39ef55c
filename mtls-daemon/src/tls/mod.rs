//! TLS 1.3 with SPIFFE identities, both directions, and TLS originated for applications. The only
//! place that names rustls.

pub mod accept;
pub mod authority;
pub mod connect;
pub mod error;
pub mod federated;
mod handshake;
pub mod hello;
pub mod identity;
pub mod originate;
pub mod provider;
mod refusal;
pub mod replay;
pub mod revocation;
mod sessions;
mod signatures;
pub mod statement;
mod subject;
pub mod svid;
mod svid_rules;
pub mod verify;
pub mod web;

pub use accept::{Kind, ServerStream, accept, first_bytes};
pub use connect::{ClientStream, connect};
pub use error::HandshakeError;
pub use federated::Federated;
pub use identity::{HandshakeSettings, OwnCertificate, TlsIdentity};
pub use originate::{OriginationError, Originations};
pub use replay::Replay;
pub use revocation::Checks;
pub use verify::{AuthenticatedPeer, TlsSummary};

#[cfg(test)]
mod tests;
