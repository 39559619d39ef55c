//! What an agent gives at one moment, read out of its messages.

use std::collections::BTreeMap;

use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::Others;
use crate::identity::encoding::certificates_from_der;
use crate::identity::{Bundle, SpiffeId, TrustDomain};
use crate::tls::svid::parse_svid;

#[derive(Default)]
pub(super) struct Offer {
    pub svids: Vec<Offered>,
    /// What was given and cannot be used, in words.
    pub problems: Vec<String>,
    /// Other trust domains.
    pub others: Others,
}

pub(super) struct Offered {
    pub id: SpiffeId,
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8.
    pub key: Zeroizing<Vec<u8>>,
    /// The own trust domain's.
    pub bundle: Vec<CertificateDer<'static>>,
}

impl Offered {
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: Zeroizing<Vec<u8>>,
        bundle: Vec<CertificateDer<'static>>,
    ) -> Result<Self, String> {
        let facts = parse_svid(&chain).map_err(|error| error.to_string())?;
        Ok(Self { id: facts.id, chain, key, bundle })
    }
}

impl Offer {
    /// An SVID or why it is none, called as the agent calls it. Of two for one identity the first counts.
    pub fn add(&mut self, called: &str, offered: Result<Offered, String>) {
        match offered {
            Ok(offered) if !called.is_empty() && offered.id.as_str() != called => {
                self.problems.push(format!("{called:?}: its certificate is {}'s", offered.id));
            }
            Ok(offered) => self.svids.push(offered),
            Err(why) => self.problems.push(format!("{called:?}: {why}")),
        }
    }

    /// The bundle of a trust domain, called by its name or its ID.
    pub fn add_bundle(&mut self, called: &str, der: &[u8]) {
        match bundle(called, der) {
            Ok(bundle) => {
                self.others.insert(bundle.trust_domain.clone(), bundle);
            }
            Err(why) => self.problems.push(format!("the bundle of {called:?}: {why}")),
        }
    }

    /// What stands for each identity's SVID and its bundle.
    pub fn fingerprints(&self) -> BTreeMap<SpiffeId, [u8; 32]> {
        let mut prints = BTreeMap::new();
        for offered in &self.svids {
            let mut hash = Sha256::new();
            for certificate in offered.chain.iter().chain(&offered.bundle) {
                hash.update((certificate.len() as u64).to_be_bytes());
                hash.update(certificate);
            }
            hash.update((offered.chain.len() as u64).to_be_bytes());
            prints.entry(offered.id.clone()).or_insert_with(|| hash.finalize().into());
        }
        prints
    }
}

/// `der` may be empty: nothing of that domain is trusted.
pub(super) fn bundle(called: &str, der: &[u8]) -> Result<Bundle, String> {
    let name = called.strip_prefix("spiffe://").unwrap_or(called);
    let domain = TrustDomain::parse(name).map_err(|error| error.to_string())?;
    let anchors = if der.is_empty() {
        Vec::new()
    } else {
        certificates_from_der(der).map_err(|error| error.to_string())?
    };
    Ok(Bundle::new(domain, anchors))
}
