//! SVIDs outside of a handshake: what a command line or a source of SVIDs asks, answered by the very
//! rules that handshakes apply.

use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use webpki::KeyUsage;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::refusal::Refusal;
use super::svid_rules::{self, Leaf};
use super::verify::{Anchors, SvidVerifier};
use super::{Checks, HandshakeError, identity, subject};
use crate::identity::{Bundle, SpiffeId};

/// What a chain that keeps the rules says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SvidFacts {
    pub id: SpiffeId,
    /// In RFC 4514 words; empty for Istio's SVIDs.
    pub subject: String,
    /// They identify nobody.
    pub dns_names: Vec<String>,
    /// Lower-case hex.
    pub serial: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// Why peers refuse it, although it can be read: an extension that should be critical is not.
    pub warning: Option<String>,
}

/// Which rule refuses it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct SvidError(String);

/// A chain (leaf first) as its owner reads it: every certificate in it keeps the rules (policy.md 6.2),
/// but for [`SvidFacts::warning`]. Neither time nor signatures are looked at.
pub fn parse_svid(chain: &[CertificateDer<'_>]) -> Result<SvidFacts, SvidError> {
    Ok(svid_rules::chain(chain)?.into())
}

/// Whether `key` is the leaf's, and of a kind that handshakes can use.
pub fn check_key(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'_>,
) -> Result<(), SvidError> {
    match identity::certified(chain, key) {
        Ok(_) => Ok(()),
        Err(error) => Err(SvidError(format!("its key cannot be used: {error}"))),
    }
}

/// What a peer makes of `chain` at the time `at`, as a server's and as a client's: its signatures end
/// in the bundle of the leaf's own trust domain, and it is one of `accepted` (None: anybody).
pub fn verify_svid(
    chain: &[CertificateDer<'_>],
    bundles: &[Bundle],
    accepted: Option<&[SpiffeId]>,
    at: SystemTime,
) -> Result<SvidFacts, SvidError> {
    let (leaf, intermediates) = chain.split_first().ok_or(Refusal::NoCertificate)?;
    let now = UnixTime::since_unix_epoch(
        at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO),
    );
    let verifier = SvidVerifier::new(bundles, &Checks::none())?;
    for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
        verifier.verify(leaf, intermediates, now, usage, accepted)?;
    }
    Ok(svid_rules::leaf(leaf)?.into())
}

/// The distinguished name of a leaf's signer, as RFC 2253 writes it.
pub fn issuer(chain: &[CertificateDer<'_>]) -> String {
    identity::issuer(chain)
}

/// The distinguished name of a certificate's owner.
pub fn subject(certificate: &CertificateDer<'_>) -> String {
    let parsed = X509Certificate::from_der(certificate);
    parsed.map(|(_, it)| subject::rfc2253(it.subject())).unwrap_or_default()
}

/// Whether every CA in the bundle is one that chains can end in. What takes bundles from elsewhere
/// asks first: an identity with an unusable bundle is refused as a whole.
pub fn check_bundle(bundle: &Bundle) -> Result<(), SvidError> {
    Anchors::new(std::slice::from_ref(bundle))?;
    Ok(())
}

impl From<Leaf> for SvidFacts {
    fn from(leaf: Leaf) -> Self {
        let warning = leaf.not_critical().map(ToString::to_string);
        let Leaf { id, subject, dns_names, serial, not_before, not_after, .. } = leaf;
        Self { id, subject, dns_names, serial, not_before, not_after, warning }
    }
}

impl From<Refusal> for SvidError {
    fn from(refusal: Refusal) -> Self {
        Self(refusal.to_string())
    }
}

impl From<HandshakeError> for SvidError {
    fn from(error: HandshakeError) -> Self {
        Self(error.to_string())
    }
}
