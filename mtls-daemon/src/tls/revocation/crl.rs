//! One certificate revocation list (RFC 5280 §5).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls_pki_types::SubjectPublicKeyInfoDer;
use webpki::{CertRevocationList, OwnedCertRevocationList, RawPublicKeyEntity};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::super::provider::provider;

/// Keys that a list's signature was tried with. They come from verified paths, so they are few.
const MOST_KEYS: usize = 64;

/// What a list says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrlFacts {
    pub file: Arc<str>,
    /// In words.
    pub issuer: Arc<str>,
    pub entries: usize,
    pub this_update: SystemTime,
    pub next_update: SystemTime,
}

/// Well-formed. Whose it really is shows when it is asked with an issuer's key.
#[derive(Debug)]
pub struct Crl {
    facts: CrlFacts,
    /// As DER has it.
    pub(super) issuer: Box<[u8]>,
    list: CertRevocationList<'static>,
    signed: Box<[u8]>,
    signature: Box<[u8]>,
    /// By key: whether it made the signature.
    tried: ArcSwap<HashMap<Box<[u8]>, bool>>,
}

impl Crl {
    /// # Errors
    /// Why it cannot be used, in words.
    pub fn parse(der: &[u8], file: &Arc<str>) -> Result<Self, String> {
        // The strict reading: no delta lists, no unknown critical extensions, nextUpdate is there.
        let list = OwnedCertRevocationList::from_der(der)
            .map_err(|error| format!("a revocation list cannot be used: {error}"))?;
        let list = CertRevocationList::from(list);
        if list.issuing_distribution_point().is_some() {
            return Err(
                "a revocation list speaks only of a part of what its issuer signed (issuing \
                        distribution point), and such lists are not used"
                    .to_owned(),
            );
        }
        let parsed = match CertificateRevocationList::from_der(der) {
            Ok(([], parsed)) => parsed,
            Ok(_) => return Err("a revocation list is followed by other bytes".to_owned()),
            Err(error) => return Err(format!("a revocation list cannot be parsed: {error}")),
        };
        let next_update = parsed.next_update().ok_or("a revocation list has no nextUpdate")?;
        let issuer = parsed.issuer().to_string();
        let facts = CrlFacts {
            file: file.clone(),
            issuer: if issuer.is_empty() { "a CA without a name".into() } else { issuer.into() },
            entries: parsed.iter_revoked_certificates().count(),
            this_update: parsed.last_update().to_datetime().into(),
            next_update: next_update.to_datetime().into(),
        };
        Ok(Self {
            issuer: list.issuer().into(),
            signed: parsed.tbs_cert_list.as_ref().into(),
            signature: parsed.signature_value.data.as_ref().into(),
            list,
            facts,
            tried: ArcSwap::default(),
        })
    }

    pub fn facts(&self) -> &CrlFacts {
        &self.facts
    }

    pub fn has_expired(&self, now: SystemTime) -> bool {
        now >= self.facts.next_update
    }

    /// Byte for byte.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.signed == other.signed && self.signature == other.signature
    }

    /// Whether `key` signed it. Costs a signature's verification once for each key.
    pub(super) fn is_signed_by(&self, key: &SubjectPublicKeyInfoDer<'_>) -> bool {
        if let Some(known) = self.tried.load().get(key.as_ref()) {
            return *known;
        }
        let verifies = self.verify(key);
        if !verifies {
            // Also while a CA's key is being replaced under one name.
            tracing::warn!(issuer = %self.facts.issuer, file = %self.facts.file,
                "a revocation list is not signed with the key of a CA of its issuer's name: it does \
                 not speak of what that one signed");
        }
        self.tried.rcu(|tried| {
            let mut tried = HashMap::clone(tried);
            if tried.len() < MOST_KEYS {
                tried.insert(key.as_ref().into(), verifies);
            }
            tried
        });
        verifies
    }

    fn verify(&self, key: &SubjectPublicKeyInfoDer<'_>) -> bool {
        let Ok(key) = RawPublicKeyEntity::try_from(key) else { return false };
        // Whichever of the algorithms fits the key: what the list itself names proves nothing.
        let algorithms = provider().signature_verification_algorithms.all;
        let fits = |it: &&dyn rustls_pki_types::SignatureVerificationAlgorithm| {
            key.verify_signature(*it, &self.signed, &self.signature).is_ok()
        };
        algorithms.iter().any(fits)
    }

    /// `serial` as DER has it.
    pub(super) fn names(&self, serial: &[u8]) -> bool {
        // What cannot be read was refused when the list was parsed.
        !matches!(self.list.find_serial(serial), Ok(None))
    }
}
