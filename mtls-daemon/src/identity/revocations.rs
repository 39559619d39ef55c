//! Which certificates are not to be believed any more, although they have not expired.
//!
//! The CA numbers and signs its list; a node keeps the newest that it has verified. The check itself is
//! pure and without a lock: every handshake makes it, and open connections make it again when
//! [`Revocations::changed`] says so.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{NodeName, SpiffeId, TrustDomain};

/// What a list's bytes are signed behind, so that no other signed text can pass for one.
pub const SIGNED_PREFIX: &[u8] = b"mtls-daemon revocation list, version 1\n";

/// What the CA signs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevocationList {
    pub trust_domain: String,
    /// Grows with every change. A node never goes back.
    pub number: u64,
    /// When this was signed, in seconds since 1970: an unchanged list is signed again and again.
    pub issued: u64,
    pub entries: Vec<Revoked>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    pub what: What,
    /// In seconds since 1970.
    pub at: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// In seconds since 1970. From then on the certificate has expired by itself, and the entry goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// One certificate, by its serial number (as [`normal_serial`] writes it) and the key identifier
    /// of its issuer in hex; without the latter, any issuer's.
    Certificate { serial: String, issuer: Option<String> },
    /// Every certificate for this SPIFFE ID.
    Identity(String),
    /// A node's own certificates. What it obtained for workloads is listed one by one.
    Node(NodeName),
}

/// What a certificate is asked about by.
#[derive(Debug, Clone, Copy)]
pub struct Certificate<'a> {
    /// As [`normal_serial`] writes it.
    pub serial: &'a str,
    /// The authority key identifier in lower-case hex, where there is one.
    pub issuer: Option<&'a str>,
    pub id: &'a SpiffeId,
}

/// Why a certificate is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotBelieved {
    #[error("{id}: its certificate (serial {serial}) was revoked{}", because(reason))]
    Certificate { id: String, serial: String, reason: Arc<str> },
    #[error("{id} was revoked{}", because(reason))]
    Identity { id: String, reason: Arc<str> },
    #[error(
        "no revocation list was ever had from the CA, and one is required: can this node reach the CA?"
    )]
    NoList,
    #[error(
        "the revocation list is {} old, and at most {} are allowed: can this node reach the CA?",
        humantime::format_duration(*age),
        humantime::format_duration(*most)
    )]
    TooOld { age: Duration, most: Duration },
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

/// The issuer's key identifier, if only that one's certificate is meant, and the reason.
type Listed = (Option<Box<str>>, Arc<str>);

/// One list, ready to be asked.
#[derive(Debug)]
pub struct Compiled {
    number: u64,
    issued: SystemTime,
    entries: usize,
    /// By serial number: usually one issuer each.
    certificates: HashMap<Box<str>, Vec<Listed>>,
    identities: HashMap<Box<str>, Arc<str>>,
}

impl Compiled {
    pub fn new(list: &RevocationList, trust_domain: &TrustDomain) -> Self {
        let mut certificates: HashMap<_, Vec<_>> = HashMap::new();
        let mut identities = HashMap::new();
        for entry in &list.entries {
            let reason: Arc<str> = entry.reason.as_str().into();
            match &entry.what {
                What::Certificate { serial, issuer } => {
                    let issuer = issuer.as_deref().map(Box::from);
                    certificates
                        .entry(normal_serial(serial).into())
                        .or_default()
                        .push((issuer, reason));
                }
                What::Identity(id) => {
                    identities.insert(id.as_str().into(), reason);
                }
                What::Node(name) => {
                    // A name that makes no ID is nobody's.
                    if let Ok(id) = name.id(trust_domain) {
                        identities.insert(id.as_str().into(), reason);
                    }
                }
            }
        }
        let issued = SystemTime::UNIX_EPOCH + Duration::from_secs(list.issued);
        Self { number: list.number, issued, entries: list.entries.len(), certificates, identities }
    }

    /// # Errors
    /// The certificate is on the list.
    pub fn check(&self, certificate: Certificate<'_>) -> Result<(), NotBelieved> {
        let id = certificate.id.as_str();
        if let Some(reason) = self.identities.get(id) {
            return Err(NotBelieved::Identity { id: id.to_owned(), reason: reason.clone() });
        }
        let listed = self.certificates.get(certificate.serial).into_iter().flatten();
        let hit = listed.into_iter().find(|(issuer, _)| match (issuer, certificate.issuer) {
            // An unnamed issuer on either side fits: refusing one too many is the safe mistake.
            (Some(listed), Some(own)) => **listed == *own,
            _ => true,
        });
        match hit {
            Some((_, reason)) => Err(NotBelieved::Certificate {
                id: id.to_owned(),
                serial: certificate.serial.to_owned(),
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether `next` may take this one's place: a higher number, or this very list signed anew.
    pub fn may_be_followed_by(&self, next: &Self) -> bool {
        (next.number, next.issued) >= (self.number, self.issued)
    }

    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Since it was last signed.
    pub fn age(&self, now: SystemTime) -> Duration {
        now.duration_since(self.issued).unwrap_or_default()
    }
}

/// The node's current list, asked by every handshake. Read without a lock.
#[derive(Debug)]
pub struct Revocations {
    current: ArcSwapOption<Compiled>,
    max_age: Option<Duration>,
    changed: watch::Sender<u64>,
}

impl Revocations {
    /// `max_age`: an older list, or none, refuses everybody. Without it an absent CA breaks nothing.
    pub fn new(max_age: Option<Duration>) -> Arc<Self> {
        let (current, changed) = (ArcSwapOption::empty(), watch::Sender::new(0));
        Arc::new(Self { current, max_age, changed })
    }

    /// # Errors
    /// Why the certificate is not to be believed.
    pub fn check(&self, certificate: Certificate<'_>, now: SystemTime) -> Result<(), NotBelieved> {
        let current = self.current.load();
        let Some(list) = current.as_ref() else {
            return if self.max_age.is_some() { Err(NotBelieved::NoList) } else { Ok(()) };
        };
        if let Some(most) = self.max_age {
            let age = Duration::from_secs(list.age(now).as_secs());
            if age > most {
                return Err(NotBelieved::TooOld { age, most });
            }
        }
        list.check(certificate)
    }

    /// The caller has verified the list and seen that it is no older one.
    pub fn replace(&self, list: Compiled) {
        let number = list.number();
        self.current.store(Some(Arc::new(list)));
        // Only a change of content is a reason to judge open connections again.
        self.changed.send_if_modified(|seen| std::mem::replace(seen, number) != number);
    }

    pub fn current(&self) -> Option<Arc<Compiled>> {
        self.current.load_full()
    }

    /// The list's number whenever that changes.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// A serial number as lists write it: lower-case hex without colons and leading zeros.
pub fn normal_serial(serial: &str) -> String {
    let digits: String =
        serial.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
    let digits = digits.strip_prefix("0x").unwrap_or(&digits).trim_start_matches('0');
    if digits.is_empty() { "0".to_owned() } else { digits.to_owned() }
}

#[cfg(test)]
#[path = "revocations_tests.rs"]
mod tests;
