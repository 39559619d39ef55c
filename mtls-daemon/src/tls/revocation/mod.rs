//! Whether somebody took a certificate back: the CA's signed list, and revocation lists in files.
//!
//! Asked by every handshake once its chain has verified, and again of open connections whenever an
//! answer may have changed. No lock: one load of each list.

mod crl;
mod files;

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use tokio::sync::watch;
use webpki::{Cert, VerifiedPath};

pub use crl::{Crl, CrlFacts};
pub use files::{Crls, CrlsError};

use super::{Federated, svid_rules};
use crate::identity::SpiffeId;
use crate::identity::revocations::{Certificate, NotBelieved, Revocations, Rules, normal_serial};

/// All that is asked. One per daemon.
#[derive(Debug)]
pub struct Checks {
    list: Arc<Revocations>,
    crls: Option<Crls>,
    /// Whom to believe of other trust domains.
    federated: Arc<Federated>,
}

/// One certificate of a verified path, as lists name it.
#[derive(Debug, Clone)]
pub(super) struct Link {
    /// As [`normal_serial`] writes it.
    serial: Box<str>,
    /// The authority key identifier in lower-case hex, where there is one.
    issuer: Option<Box<str>>,
    /// What only lists in files ask for.
    signed: Option<Box<Signed>>,
}

/// By whom a certificate was signed.
#[derive(Debug, Clone)]
struct Signed {
    /// As DER has it.
    serial: Box<[u8]>,
    issuer: Box<[u8]>,
    key: SubjectPublicKeyInfoDer<'static>,
}

impl Checks {
    /// The CA's list alone.
    pub fn new(list: Arc<Revocations>) -> Arc<Self> {
        Arc::new(Self { list, crls: None, federated: Arc::default() })
    }

    /// Nothing is ever revoked: for who verifies outside of the data path.
    pub fn none() -> Arc<Self> {
        Self::new(Revocations::new(Rules::default()))
    }

    /// With the lists in `place`, a file or a directory, which are followed from now on.
    ///
    /// # Errors
    /// A list there cannot be used.
    pub fn with_files(list: Arc<Revocations>, place: &Path) -> Result<Arc<Self>, CrlsError> {
        let crls = Some(Crls::open(place)?);
        Ok(Arc::new(Self { list, crls, federated: Arc::default() }))
    }

    /// Reads files that changed, and notes what became too old. Blocks; to be called now and then.
    pub fn tick(&self, now: SystemTime) {
        self.list.tick(now);
        if self.crls.as_ref().is_some_and(|crls| crls.refresh(now)) {
            self.list.judge_again();
        }
    }

    /// Whenever open connections have to be judged again.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.list.changed()
    }

    /// What is still missing before anybody can be believed.
    pub fn awaited(&self) -> Option<String> {
        let none = self.list.current().is_none();
        if none && self.list.rules().max_age.is_some() {
            return Some("the CA's revocation list".to_owned());
        }
        let missing = self.crls.is_none() && none;
        (self.list.is_required() && missing).then(|| "a revocation list".to_owned())
    }

    pub fn list(&self) -> &Arc<Revocations> {
        &self.list
    }

    pub fn federated(&self) -> &Arc<Federated> {
        &self.federated
    }

    pub fn crls(&self) -> Option<&Crls> {
        self.crls.as_ref()
    }

    /// `links`: the path from the leaf, which is `id`'s, to below the root.
    pub(super) fn check(
        &self,
        id: &SpiffeId,
        links: &[Link],
        now: SystemTime,
    ) -> Result<(), NotBelieved> {
        let Some((leaf, signers)) = links.split_first() else {
            return Err(self.list.unknown(id));
        };
        let certificate = Certificate { serial: &leaf.serial, issuer: leaf.issuer.as_deref(), id };
        let mut covered = self.list.covers(certificate, now)?;
        for signer in signers {
            self.list.check_signer(&signer.serial, signer.issuer.as_deref(), id)?;
        }
        if let Some(crls) = &self.crls {
            let mut all = true;
            for (index, link) in links.iter().enumerate() {
                all &= crls.covers(id, link, index == 0, now)?;
            }
            covered |= all;
        }
        if covered || !self.list.is_required() { Ok(()) } else { Err(self.list.unknown(id)) }
    }

    /// The certificates of a path that has verified. `anchor_key` is its root's.
    pub(super) fn links(
        &self,
        path: &VerifiedPath<'_>,
        anchor_key: Option<&SubjectPublicKeyInfoDer<'static>>,
    ) -> Box<[Link]> {
        let leaf: &Cert<'_> = path.end_entity();
        let certificates: Vec<&Cert<'_>> =
            std::iter::once(leaf).chain(path.intermediate_certificates()).collect();
        let keys = certificates.iter().skip(1).map(|it| Some(it.subject_public_key_info()));
        let keys = keys.chain(std::iter::once(anchor_key.cloned()));
        let links = certificates.iter().zip(keys).map(|(certificate, key)| {
            let signed = key.filter(|_| self.crls.is_some()).map(|key| {
                let (serial, issuer) = (certificate.serial().into(), certificate.issuer().into());
                Box::new(Signed { serial, issuer, key })
            });
            Link { signed, ..Link::of(certificate.serial(), &certificate.der()) }
        });
        links.collect()
    }
}

impl Link {
    fn of(serial: &[u8], der: &CertificateDer<'_>) -> Self {
        let serial = normal_serial(&hex(serial)).into();
        let issuer = svid_rules::authority_key_id(der).map(|id| hex(&id).into());
        Self { serial, issuer, signed: None }
    }

    /// A leaf whose path is not known.
    pub(super) fn of_leaf(leaf: &CertificateDer<'_>, serial: &str) -> Self {
        let issuer = svid_rules::authority_key_id(leaf).map(|id| hex(&id).into());
        Self { serial: normal_serial(serial).into(), issuer, signed: None }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
