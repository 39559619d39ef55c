//! The CA certificates that a trust domain's SVIDs are verified against.

use rustls_pki_types::CertificateDer;

use super::TrustDomain;
use super::encoding::{self, EncodingError};

/// Trust anchors of one trust domain. Empty: trusts nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    pub trust_domain: TrustDomain,
    pub anchors: Vec<CertificateDer<'static>>,
}

impl Bundle {
    /// `anchors` without repetitions.
    pub fn new(trust_domain: TrustDomain, anchors: Vec<CertificateDer<'static>>) -> Self {
        let mut bundle = Self { trust_domain, anchors: Vec::with_capacity(anchors.len()) };
        for anchor in anchors {
            if !bundle.anchors.contains(&anchor) {
                bundle.anchors.push(anchor);
            }
        }
        bundle
    }

    /// The certificates of a PEM file. A file of blanks alone is an empty bundle, which trusts
    /// nothing; one with anything else and no certificate is an error.
    pub fn from_pem(trust_domain: TrustDomain, text: &[u8]) -> Result<Self, EncodingError> {
        let anchors = match text.trim_ascii() {
            [] => Vec::new(),
            text => encoding::certificates_from_pem(text)?,
        };
        Ok(Self::new(trust_domain, anchors))
    }

    /// The same anchors for another name of the same trust domain.
    pub fn under_alias(&self, alias: &TrustDomain) -> Self {
        Self { trust_domain: alias.clone(), anchors: self.anchors.clone() }
    }
}
