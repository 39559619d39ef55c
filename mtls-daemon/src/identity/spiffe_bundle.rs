//! SPIFFE bundle documents: a JWK set with the CA certificates of one trust domain (SPIFFE Trust
//! Domain and Bundle §4, X509-SVID §6.2; policy.md 6.3).
//!
//! The document does not say whose it is: whoever configures where it comes from says so.

use std::time::Duration;

use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use serde_json::Value;

use super::encoding::{self, EncodingError};
use super::{Bundle, TrustDomain};

/// How often a bundle is looked at that gives no hint of its own.
pub const DEFAULT_REFRESH: Duration = Duration::from_secs(300);

/// Kinds of public keys (`kty`) that JWK knows.
const KINDS: [&str; 3] = ["EC", "RSA", "OKP"];

/// One version of a trust domain's bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpiffeBundle {
    /// What X.509 SVIDs are verified against. Empty: every earlier one is revoked.
    pub bundle: Bundle,
    /// Grows with every change. A smaller number than a known one's is an older document.
    pub sequence: Option<u64>,
    /// How often its owner wants it to be looked at.
    pub refresh_hint: Option<Duration>,
    /// Keys for JWT-SVIDs: counted, and of no use here.
    pub jwt_authorities: usize,
}

/// Why a document is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("it is not a JWK set: {0}")]
    Document(#[from] serde_json::Error),
    #[error("key {number} is for x509-svid, and its x5c is no list of texts")]
    Certificates { number: usize },
    #[error("key {number} is for x509-svid, and its x5c is not base64: {error}")]
    Base64 { number: usize, error: data_encoding::DecodeError },
    #[error("key {number} is for x509-svid, and its x5c is unusable: {error}")]
    Certificate { number: usize, error: EncodingError },
}

/// What is not named is passed over, as the standard wants: other uses and other members come.
#[derive(Deserialize)]
struct Document {
    keys: Vec<Key>,
    #[serde(default)]
    spiffe_sequence: Option<u64>,
    #[serde(default)]
    spiffe_refresh_hint: Option<u64>,
}

#[derive(Deserialize)]
struct Key {
    #[serde(default)]
    kty: Value,
    #[serde(default, rename = "use")]
    usage: Value,
    #[serde(default)]
    kid: Value,
    #[serde(default)]
    x5c: Value,
}

impl SpiffeBundle {
    /// Reads a document that is known to be `trust_domain`'s.
    pub fn parse(trust_domain: TrustDomain, document: &[u8]) -> Result<Self, BundleError> {
        let document: Document = serde_json::from_slice(document)?;
        let mut anchors = Vec::new();
        let mut jwt_authorities = 0;
        for (index, key) in document.keys.iter().enumerate() {
            // Of a kind of key that is not known, nothing else is (RFC 7517 §5).
            if !key.kty.as_str().is_some_and(|kty| KINDS.contains(&kty)) {
                continue;
            }
            match key.usage.as_str() {
                Some("x509-svid") => anchors.extend(certificate(key, index + 1)?),
                // Without an ID no token can name it.
                Some("jwt-svid") if key.kid.is_string() => jwt_authorities += 1,
                _ => {}
            }
        }
        Ok(Self {
            bundle: Bundle::new(trust_domain, anchors),
            sequence: document.spiffe_sequence,
            refresh_hint: document.spiffe_refresh_hint.map(Duration::from_secs),
            jwt_authorities,
        })
    }

    /// Whether it may take the place of `known`: never if its number is smaller, so that nobody can
    /// bring back a root that was taken away.
    pub fn succeeds(&self, known: &Self) -> bool {
        match (self.sequence, known.sequence) {
            (Some(new), Some(old)) => new >= old,
            (None, Some(_)) => false,
            (_, None) => true,
        }
    }
}

/// The first value of `x5c`; further ones are ignored, and so is an entry without any (X509-SVID
/// §6.2).
fn certificate(key: &Key, number: usize) -> Result<Option<CertificateDer<'static>>, BundleError> {
    let first = match &key.x5c {
        Value::Null => None,
        Value::Array(values) => values.first(),
        _ => return Err(BundleError::Certificates { number }),
    };
    let Some(first) = first else { return Ok(None) };
    let text = first.as_str().ok_or(BundleError::Certificates { number })?;
    let der = data_encoding::BASE64
        .decode(text.as_bytes())
        .map_err(|error| BundleError::Base64 { number, error })?;
    let unusable = |error| BundleError::Certificate { number, error };
    let mut certificates = encoding::certificates_from_der(&der).map_err(unusable)?;
    let certificate = certificates.pop();
    match certificates.is_empty() {
        true => Ok(certificate),
        false => {
            let why = "bytes follow it".to_owned();
            Err(unusable(EncodingError::Certificate { number: 1, why }))
        }
    }
}

#[cfg(test)]
#[path = "spiffe_bundle_tests.rs"]
mod tests;
