//! An X.509 SVID with its private key.

use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::SpiffeId;

/// Certificate chain (leaf first) and key of one identity.
pub struct Svid {
    pub id: SpiffeId,
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    /// Lower-case hex.
    pub serial: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}
