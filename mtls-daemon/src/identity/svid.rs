//! An X.509 SVID with its private key.

use std::fmt;
use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroize;

use super::SpiffeId;

/// Certificate chain (leaf first) and key of one identity. The key is wiped when this is dropped.
pub struct Svid {
    pub id: SpiffeId,
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    /// Lower-case hex.
    pub serial: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl Drop for Svid {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl fmt::Debug for Svid {
    /// Never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("id", &self.id)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}
