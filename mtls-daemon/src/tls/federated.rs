//! Other trust domains' CA certificates, shared by all identities of the node and replaced in place:
//! whoever is taken out is refused by the next handshake, whatever SVID that is made with.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls_pki_types::TrustAnchor;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::HandshakeError;
use super::refusal::Refusal;
use super::verify::{Anchors, AuthenticatedPeer};
use crate::identity::Bundle;

/// Stands for one CA certificate: its name and its key.
pub(super) type AnchorPrint = [u8; 32];

#[derive(Debug)]
pub struct Federated {
    anchors: ArcSwap<Anchors>,
    changed: watch::Sender<()>,
}

impl Default for Federated {
    /// Trusts nobody.
    fn default() -> Self {
        Self { anchors: ArcSwap::from_pointee(Anchors::none()), changed: watch::Sender::new(()) }
    }
}

impl Federated {
    /// These and no others from now on.
    ///
    /// # Errors
    /// One has a CA certificate that cannot be used; what was trusted before still is.
    pub fn replace(&self, bundles: &[Bundle]) -> Result<(), HandshakeError> {
        self.anchors.store(Arc::new(Anchors::new(bundles)?));
        self.changed.send_replace(());
        Ok(())
    }

    /// Whenever open connections have to be judged again.
    pub fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Whether a connection with `peer` may go on: the CA that it was verified with is still its trust
    /// domain's. Peers of the own trust domain have none here, and may.
    ///
    /// # Errors
    /// The CA was taken away since.
    pub fn check_open(&self, peer: &AuthenticatedPeer) -> Result<(), HandshakeError> {
        let Some(verified_with) = peer.federated() else { return Ok(()) };
        let anchors = self.anchors.load();
        let known = anchors.of(peer.id());
        if known.is_ok_and(|known| known.anchors().iter().any(|it| print(it) == *verified_with)) {
            return Ok(());
        }
        Err(Refusal::NoLongerFederated(peer.id().clone()).into())
    }

    pub(super) fn anchors(&self) -> arc_swap::Guard<Arc<Anchors>> {
        self.anchors.load()
    }
}

pub(super) fn print(anchor: &TrustAnchor<'_>) -> AnchorPrint {
    let mut hash = Sha256::new();
    for part in [&anchor.subject[..], &anchor.subject_public_key_info[..]] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}
