//! The CA certificates that a trust domain's SVIDs are verified against.

use rustls_pki_types::CertificateDer;

use super::TrustDomain;

/// Trust anchors of one trust domain. Empty: trusts nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    pub trust_domain: TrustDomain,
    pub anchors: Vec<CertificateDer<'static>>,
}

impl Bundle {
    /// The same anchors for another name of the same trust domain.
    pub fn under_alias(&self, alias: &TrustDomain) -> Self {
        Self { trust_domain: alias.clone(), anchors: self.anchors.clone() }
    }
}
