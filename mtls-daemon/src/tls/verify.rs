//! Who is at the other end: the SVID rules (X509-SVID §4, §5) on top of webpki's chain building.

use crate::identity::SpiffeId;

/// A peer whose SVID was verified. Only this module can make one.
#[derive(Debug, Clone)]
pub struct AuthenticatedPeer {
    id: SpiffeId,
}

impl AuthenticatedPeer {
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }
}

/// What was negotiated, for the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSummary {
    /// For example `TLSv1.3`.
    pub version: &'static str,
    pub cipher: &'static str,
    pub group: &'static str,
}
