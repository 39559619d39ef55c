//! Which certificates are not to be believed any more, although they have not expired.
//!
//! The CA numbers and signs its list; a node keeps the newest that it has verified. The check itself is
//! pure and without a lock: every handshake makes it, and open connections make it again when
//! [`Revocations::changed`] says so.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::{NodeName, SpiffeId, TrustDomain};

/// What a list's bytes are signed behind, so that no other signed text can pass for one.
pub const SIGNED_PREFIX: &[u8] = b"mtls-daemon revocation list, version 1\n";

/// By how much the CA's clock may be ahead of ours.
const AHEAD: Duration = Duration::from_secs(5 * 60);

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
    #[error("{id}: a CA's certificate above it (serial {serial}) was revoked{}", because(reason))]
    Signer { id: String, serial: String, reason: Arc<str> },
    #[error("{id}: {whose} certificate (serial {serial}) is on the revocation list of {issuer}")]
    OnCrl { id: String, whose: &'static str, serial: String, issuer: Arc<str> },
    #[error(
        "the revocation list of {issuer} ({file}) should have been followed by another at {}: is what \
         fetches it running?",
        humantime::format_rfc3339_seconds(*next_update)
    )]
    CrlExpired { issuer: Arc<str>, file: Arc<str>, next_update: SystemTime },
    #[error(
        "no revocation list that speaks of {0} was ever had, and one is required: can this node reach \
         the CA, or is a file of its issuer missing from --crl-file?"
    )]
    NoList(String),
    #[error(
        "the revocation list is {} old, and at most {} are allowed: can this node reach the CA?",
        humantime::format_duration(*age),
        humantime::format_duration(*most)
    )]
    TooOld { age: Duration, most: Duration },
    #[error(
        "the revocation list was signed at {}, which is yet to come here: is one of the two clocks wrong?",
        humantime::format_rfc3339_seconds(*issued)
    )]
    FromTheFuture { issued: SystemTime },
}

/// Why a list does not take the place of the one in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepBack {
    #[error("it has number {number} and is older than ours, which has {ours}")]
    Older { number: u64, ours: u64 },
    #[error("it has number {0} as ours has, and other entries")]
    Another(u64),
}

/// What can be wrong beside the list that is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// The one of an earlier run cannot be used.
    Restored,
    /// What the CA says now is not taken.
    Refused,
    /// It is in force, and a restarted daemon will not have it.
    Unkept,
    /// The CA has no lists any more.
    Unserved,
    /// The CA does not answer.
    Unasked,
}

impl What {
    /// Two entries with the same name the same.
    fn digest(&self) -> [u8; 32] {
        let text = match self {
            Self::Certificate { serial, issuer } => {
                let issuer = issuer.as_deref().unwrap_or("any");
                format!("certificate {} {issuer}", normal_serial(serial))
            }
            Self::Identity(id) => format!("identity {id}"),
            Self::Node(name) => format!("node {name}"),
        };
        Sha256::digest(text).into()
    }
}

impl NotBelieved {
    /// Somebody took it back. Otherwise that cannot be told, and may be so.
    pub fn is_revoked(&self) -> bool {
        match self {
            Self::Certificate { .. }
            | Self::Identity { .. }
            | Self::Signer { .. }
            | Self::OnCrl { .. } => true,
            Self::CrlExpired { .. }
            | Self::NoList(_)
            | Self::TooOld { .. }
            | Self::FromTheFuture { .. } => false,
        }
    }
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

/// The issuer's key identifier, if only that one's certificate is meant, and the reason.
type Listed = (Option<Box<str>>, Arc<str>);

/// One list, ready to be asked.
#[derive(Debug)]
pub struct Compiled {
    trust_domain: Box<str>,
    number: u64,
    issued: SystemTime,
    /// When it was put in force, by a clock that nobody sets, and its age then.
    confirmed: Option<(Instant, Duration)>,
    /// By a digest of what they name: until when.
    entries: HashMap<[u8; 32], Option<u64>>,
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
        let entries = list.entries.iter().map(|it| (it.what.digest(), it.until)).collect();
        let number = list.number;
        let trust_domain = trust_domain.as_str().into();
        let confirmed = None;
        Self { trust_domain, number, issued, confirmed, entries, certificates, identities }
    }

    /// # Errors
    /// The certificate is on the list.
    pub fn check(&self, certificate: Certificate<'_>) -> Result<(), NotBelieved> {
        let id = certificate.id.as_str();
        self.identity(id, id)?;
        match self.listed(certificate.serial, certificate.issuer) {
            Some(reason) => Err(NotBelieved::Certificate {
                id: id.to_owned(),
                serial: certificate.serial.to_owned(),
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }

    /// `id` is refused if `named`, which is it or stands for it, is on the list.
    fn identity(&self, named: &str, id: &str) -> Result<(), NotBelieved> {
        match self.identities.get(named) {
            Some(reason) => {
                Err(NotBelieved::Identity { id: id.to_owned(), reason: reason.clone() })
            }
            None => Ok(()),
        }
    }

    fn listed(&self, serial: &str, issuer: Option<&str>) -> Option<&Arc<str>> {
        let listed = self.certificates.get(serial).into_iter().flatten();
        let hit = listed.into_iter().find(|(named, _)| match (named, issuer) {
            // An unnamed issuer on either side fits: refusing one too many is the safe mistake.
            (Some(named), Some(own)) => **named == *own,
            _ => true,
        });
        hit.map(|(_, reason)| reason)
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether `next` may take this one's place: a higher number, or this very list signed anew.
    ///
    /// # Errors
    /// It would be a step back.
    pub fn check_next(&self, next: &Self, now: SystemTime) -> Result<(), StepBack> {
        // A signature from the future is from before a clock was put right: the CA's, which may now be
        // behind ours by as much as it may be ahead.
        let issued = self.issued.min(now - AHEAD);
        if (next.number, next.issued) < (self.number, issued) {
            return Err(StepBack::Older { number: next.number, ours: self.number });
        }
        if next.number == self.number && !(self.holds(next) && next.holds(self)) {
            return Err(StepBack::Another(self.number));
        }
        Ok(())
    }

    /// Whether it has all entries of `other` but what had expired when it was signed.
    fn holds(&self, other: &Self) -> bool {
        let issued = self.issued.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let expired = |until: &Option<u64>| until.is_some_and(|until| until <= issued.as_secs());
        other.entries.iter().all(|(what, until)| self.entries.contains_key(what) || expired(until))
    }

    /// By a clock that is far ahead: it would never become too old.
    pub fn is_from_the_future(&self, now: SystemTime) -> bool {
        self.issued > now + AHEAD
    }

    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    pub fn issued(&self) -> SystemTime {
        self.issued
    }

    /// Since it was last signed. Whoever puts the clock back makes it no younger.
    pub fn age(&self, now: SystemTime) -> Duration {
        let wall = now.duration_since(self.issued).unwrap_or_default();
        let counted = self.confirmed.map(|(at, age)| age.saturating_add(at.elapsed()));
        wall.max(counted.unwrap_or_default())
    }
}

/// When nothing is known.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Whom no list speaks of is refused.
    pub required: bool,
    /// A list of the CA's that is older, or none, refuses everybody, whatever lists in files say.
    /// Without it an absent CA breaks nothing.
    pub max_age: Option<Duration>,
    /// Further names of the list's trust domain.
    pub aliases: Vec<TrustDomain>,
}

/// The node's current list, asked by every handshake. Read without a lock.
#[derive(Debug)]
pub struct Revocations {
    current: ArcSwapOption<Compiled>,
    rules: Rules,
    /// Whether the list was too old when that was last looked at.
    stale: AtomicBool,
    troubles: Mutex<BTreeMap<Trouble, String>>,
    changed: watch::Sender<u64>,
}

impl Revocations {
    pub fn new(rules: Rules) -> Arc<Self> {
        let (current, changed) = (ArcSwapOption::empty(), watch::Sender::new(0));
        let (stale, troubles) = (AtomicBool::new(false), Mutex::default());
        Arc::new(Self { current, rules, stale, troubles, changed })
    }

    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Whether there is a list that speaks of the certificate's trust domain, and does not name it.
    ///
    /// # Errors
    /// The list names it, or is too old, or there is none and it has to be of some age.
    pub fn covers(
        &self,
        certificate: Certificate<'_>,
        now: SystemTime,
    ) -> Result<bool, NotBelieved> {
        let current = self.current.load();
        let Some(list) = current.as_ref() else {
            return match self.rules.max_age {
                Some(_) => Err(self.unknown(certificate.id)),
                None => Ok(false),
            };
        };
        self.check_age(list, now)?;
        list.check(certificate)?;
        let (domain, path) = (certificate.id.trust_domain(), certificate.id.path());
        let aliases = self.rules.aliases.iter().map(TrustDomain::as_str);
        let names = std::iter::once(&*list.trust_domain).chain(aliases);
        if !names.clone().any(|name| name == domain) {
            return Ok(false);
        }
        // The list may have it under another name of the trust domain, also under one of before.
        for name in names.filter(|name| *name != domain) {
            list.identity(&format!("spiffe://{name}{path}"), certificate.id.as_str())?;
        }
        Ok(true)
    }

    /// The same of a CA's certificate that stands between `below` and a root.
    ///
    /// # Errors
    /// The list names it.
    pub fn check_signer(
        &self,
        serial: &str,
        issuer: Option<&str>,
        below: &SpiffeId,
    ) -> Result<(), NotBelieved> {
        let current = self.current.load();
        match current.as_ref().and_then(|list| list.listed(serial, issuer)) {
            Some(reason) => Err(NotBelieved::Signer {
                id: below.to_string(),
                serial: serial.to_owned(),
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Whether a certificate that no list speaks of is refused.
    pub fn is_required(&self) -> bool {
        self.rules.required || self.rules.max_age.is_some()
    }

    pub fn unknown(&self, id: &SpiffeId) -> NotBelieved {
        NotBelieved::NoList(id.to_string())
    }

    fn check_age(&self, list: &Compiled, now: SystemTime) -> Result<(), NotBelieved> {
        let Some(most) = self.rules.max_age else { return Ok(()) };
        if list.is_from_the_future(now) {
            return Err(NotBelieved::FromTheFuture { issued: list.issued });
        }
        let age = Duration::from_secs(list.age(now).as_secs());
        if age > most { Err(NotBelieved::TooOld { age, most }) } else { Ok(()) }
    }

    /// The caller has verified the list and seen that it is no older one.
    pub fn replace(&self, list: Compiled) {
        self.replace_at(list, SystemTime::now(), Instant::now());
    }

    fn replace_at(&self, mut list: Compiled, now: SystemTime, steady: Instant) {
        list.confirmed = Some((steady, now.duration_since(list.issued).unwrap_or_default()));
        let number = list.number();
        let before = self.current.swap(Some(Arc::new(list)));
        // Only a change of content is a reason to judge open connections again.
        if before.is_none_or(|before| before.number() != number) {
            self.judge_again();
        }
    }

    /// To be called now and then: time alone makes a list too old.
    pub fn tick(&self, now: SystemTime) {
        let current = self.current.load();
        let stale = current.as_ref().is_some_and(|list| self.check_age(list, now).is_err());
        if self.stale.swap(stale, Ordering::Relaxed) != stale {
            self.judge_again();
        }
    }

    /// What is wrong with it now; None: nothing. True: that is news.
    pub fn trouble(&self, of: Trouble, text: Option<String>) -> bool {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        match text {
            None => troubles.remove(&of).is_some(),
            Some(text) => troubles.insert(of, text.clone()).is_none_or(|before| before != text),
        }
    }

    /// For `status`.
    pub fn troubles(&self) -> Vec<String> {
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.values().cloned().collect()
    }

    /// Something that is asked beside the list has changed.
    pub fn judge_again(&self) {
        self.changed.send_modify(|changes| *changes += 1);
    }

    pub fn current(&self) -> Option<Arc<Compiled>> {
        self.current.load_full()
    }

    /// Whenever open connections have to be judged again.
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
