//! The node's SVIDs: one per identity, shared by its workloads, renewed before they expire.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::SpiffeId;
use super::source::SvidSource;
use crate::tls::TlsIdentity;

/// All identities that this node holds.
pub struct SvidStore {}

/// One identity's current SVID, replaced in place by rotation. Read without a lock.
pub struct IdentitySlot {}

impl IdentitySlot {
    pub fn id(&self) -> &SpiffeId {
        todo!()
    }

    /// None until the first SVID has been issued, and after the last one has expired.
    pub fn current(&self) -> Option<Arc<TlsIdentity>> {
        todo!()
    }
}

impl SvidStore {
    pub fn new(_source: Arc<dyn SvidSource>) -> Arc<Self> {
        todo!()
    }

    /// The slot of `id`; made (and its SVID asked for) when it is not there yet.
    pub fn slot(&self, _id: &SpiffeId) -> Arc<IdentitySlot> {
        todo!()
    }

    /// Keeps exactly `ids`; keys of the others are dropped (zeroized).
    pub fn retain(&self, _ids: &BTreeSet<SpiffeId>) {
        todo!()
    }

    /// Issues what is missing and renews at half life with jitter, until cancelled. Runs as one
    /// task on the main runtime; issuing itself runs on the blocking pool.
    pub async fn run(self: Arc<Self>) {
        todo!()
    }
}
