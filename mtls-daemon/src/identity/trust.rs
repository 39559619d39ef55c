//! Whom this node's identities believe, for `status`: shows how far a new root has come.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::slot::Roots;
use crate::tls::svid::subject;

/// The CAs of the own trust domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustStatus {
    pub roots: Vec<RootStatus>,
    /// Of this node, that have an SVID.
    pub identities: usize,
    /// Why a restarted daemon will not know them, or this one does not.
    pub trouble: Option<String>,
}

/// One certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootStatus {
    /// Distinguished name.
    pub subject: String,
    /// Of the whole certificate, lower-case hex.
    pub sha256: String,
    pub not_after: Option<SystemTime>,
    /// How many of the node's identities believe it.
    pub identities: usize,
}

impl TrustStatus {
    /// `each`: by identity.
    pub(super) fn of(each: impl Iterator<Item = Roots>, trouble: Option<String>) -> Self {
        let mut counted: Vec<(CertificateDer<'static>, usize)> = Vec::new();
        let mut identities = 0;
        for roots in each {
            identities += 1;
            for root in roots.iter() {
                match counted.iter_mut().find(|(known, _)| known == root) {
                    Some((_, count)) => *count += 1,
                    None => counted.push((root.clone(), 1)),
                }
            }
        }
        let roots = counted.iter().map(|(root, count)| RootStatus::of(root, *count)).collect();
        Self { roots, identities, trouble }
    }
}

impl RootStatus {
    fn of(certificate: &CertificateDer<'_>, identities: usize) -> Self {
        let parsed = X509Certificate::from_der(certificate).ok().map(|(_, parsed)| parsed);
        let digest = Sha256::digest(certificate);
        Self {
            subject: subject(certificate),
            sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            not_after: parsed.map(|it| it.validity().not_after.to_datetime().into()),
            identities,
        }
    }
}
