//! An SVID made ready for handshakes: configurations are made once per SVID, never per connection.

use std::sync::Arc;

use super::HandshakeError;
use crate::identity::{Bundle, SpiffeId, Svid};

/// One identity's TLS configurations, both directions.
pub struct TlsIdentity {
    id: SpiffeId,
}

impl TlsIdentity {
    /// `bundles`: the own trust domain's and its aliases' (same anchors under another name), later
    /// also federated ones; a peer's chain is verified against its own trust domain's only.
    pub fn new(_svid: &Svid, _bundles: &[Bundle]) -> Result<Arc<Self>, HandshakeError> {
        todo!()
    }

    pub fn id(&self) -> &SpiffeId {
        &self.id
    }
}
