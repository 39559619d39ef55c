//! The CA's own roots: made once, and replaced in three steps without a failed connection.
//!
//! 1. `prepare`: a new root is trusted by everybody beside the old one, which still signs.
//! 2. `switch`: the new one signs. What the old one signed is still trusted.
//! 3. `retire`: the old one is trusted no more, and its key is gone.
//!
//! Between the steps everybody has to have heard: nodes of ours within seconds, other clients of
//! Istio's protocol with their next certificate.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::seconds;
use super::state::{StateDir, Turn};
use crate::identity::KeyType;
use crate::identity::TrustDomain;
use crate::identity::ca::files;
use crate::identity::ca::sealed::{self, SealingKey};
use crate::identity::ca::{Authority, CaError};

pub const FILE: &str = "roots.json";

/// The trust anchors above a plugged-in certificate, for `ca root show`: there while it signs.
pub const PLUGGED_IN: &str = "plugged-in.pem";

/// Whoever serves takes over a step within a second, and clocks are a little apart.
const SLACK: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roots {
    pub roots: Vec<Root>,
    /// When the latest step was made, in seconds since 1970.
    pub since: u64,
    /// The longest lifetime of anything that was signed, in seconds: so long a client may not have
    /// heard of a step.
    pub longest_lifetime: u64,
    /// Names are never used twice.
    pub made: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    pub name: String,
    pub phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Trusted, does not sign yet.
    Next,
    Signing,
    /// Still trusted, signs no more.
    Old,
}

/// What comes after `prepare`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Switch,
    Retire,
}

/// What is needed to sign.
pub struct Loaded {
    pub authority: Authority,
    /// All of them are trusted; the signing one first.
    pub anchors: Vec<CertificateDer<'static>>,
}

#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error("{0}")]
    Order(&'static str),
    #[error(
        "the previous step was {ago} ago, and clients that renew on their own may not have heard of it \
         for {left} more; --force if all clients are nodes of mtls-daemon, which hear within seconds"
    )]
    TooEarly { ago: String, left: String },
    #[error(
        "the keys of this CA are encrypted at rest, and the new one is to be as well: name the file \
         that `ca run` has, with --key-encryption-file"
    )]
    NotSealed,
    #[error(
        "the keys of this CA are not encrypted: start `ca run` with --key-encryption-file first, which \
         then encrypts them"
    )]
    SealedAlone,
    #[error("the keys of this CA are encrypted with another file than this --key-encryption-file")]
    OtherSealing,
}

fn certificate_file(name: &str) -> String {
    format!("{name}.pem")
}

fn key_file(name: &str) -> String {
    format!("{name}.key")
}

/// Makes the first root if there is none, and encrypts keys that are not yet.
pub fn make(
    directory: &StateDir,
    trust_domain: &TrustDomain,
    key_type: KeyType,
    sealing: Option<&SealingKey>,
    now: SystemTime,
) -> Result<(), CaError> {
    let turn = directory.turn()?;
    let mut roots: Roots = turn.read(FILE)?;
    if roots.roots.is_empty() {
        let name = add(&turn, &mut roots, Phase::Signing, trust_domain, key_type, sealing, now)?;
        turn.write(FILE, &roots)?;
        tracing::info!(root = name, %trust_domain, ?key_type, "made a new root");
        return Ok(());
    }
    let Some(sealing) = sealing else { return Ok(()) };
    for root in &roots.roots {
        let file = key_file(&root.name);
        if let Some(key) = files::read_private(&directory.path(&file))?
            && !sealed::is_sealed(&key)
        {
            turn.write_text(&file, &sealing.seal(key.as_bytes())?)?;
            tracing::info!(root = root.name, "the key is encrypted from now on");
        }
    }
    Ok(())
}

fn add(
    turn: &Turn<'_>,
    roots: &mut Roots,
    phase: Phase,
    trust_domain: &TrustDomain,
    key_type: KeyType,
    sealing: Option<&SealingKey>,
    now: SystemTime,
) -> Result<String, CaError> {
    roots.made += 1;
    let name = format!("root-{}", roots.made);
    // The first is named as Istio names its own; those after it say which they are.
    let date = humantime::format_rfc3339_seconds(now).to_string();
    let common_name = format!("{name} {}", date.get(..10).unwrap_or(&date));
    let common_name = (roots.made > 1).then_some(common_name.as_str());
    let (authority, pem) = Authority::generate_named(trust_domain, common_name, key_type, now)?;
    let key = authority.key_pem();
    let key = match sealing {
        Some(sealing) => Zeroizing::new(sealing.seal(key.as_bytes())?),
        None => key,
    };
    // The index names it last: until then its files are nobody's.
    turn.write_text(&key_file(&name), &key)?;
    turn.write_text(&certificate_file(&name), &pem)?;
    roots.roots.push(Root { name: name.clone(), phase });
    roots.since = seconds(now);
    Ok(name)
}

/// The certificates of all roots, the signing one first, and the name and PEM of that one.
type Certificates = (Vec<CertificateDer<'static>>, Option<(String, Zeroizing<String>)>);

fn certificates(directory: &StateDir) -> Result<Certificates, CaError> {
    let roots: Roots = directory.read(FILE)?;
    let mut anchors = Vec::new();
    let mut signing = None;
    for root in &roots.roots {
        let file = certificate_file(&root.name);
        let path = directory.path(&file);
        let missing = || unusable(directory, &file, "it is missing".to_owned());
        let pem = files::read_private(&path)?.ok_or_else(missing)?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| unusable(directory, &file, error.to_string()))?;
        if root.phase == Phase::Signing {
            anchors.insert(0, certificate);
            signing = Some((root.name.clone(), pem));
        } else {
            anchors.push(certificate);
        }
    }
    Ok((anchors, signing))
}

fn unusable(directory: &StateDir, name: &str, why: String) -> CaError {
    CaError::File { path: directory.path(name), why }
}

/// Whom to trust; nobody's key is read.
pub fn anchors(directory: &StateDir) -> Result<Vec<CertificateDer<'static>>, CaError> {
    Ok(certificates(directory)?.0)
}

/// Reads the root that signs, and the certificates of all.
pub fn load(
    directory: &StateDir,
    sealing: Option<&SealingKey>,
    now: SystemTime,
) -> Result<Loaded, CaError> {
    let unusable = |name: &str, why: String| unusable(directory, name, why);
    let (anchors, signing) = certificates(directory)?;
    let Some((name, certificate)) = signing else {
        return Err(unusable(FILE, "no root signs".to_owned()));
    };
    let file = key_file(&name);
    let key = files::read_private(&directory.path(&file))?
        .ok_or_else(|| unusable(&file, "it is missing".to_owned()))?;
    let key = match (sealed::is_sealed(&key), sealing) {
        (false, None) => key,
        (false, Some(_)) => {
            let why =
                "it is not encrypted, and all keys are to be: `ca run` encrypts it when it starts";
            return Err(unusable(&file, why.to_owned()));
        }
        (true, Some(sealing)) => sealing.open(&key).ok_or_else(|| {
            unusable(&file, "another key-encryption file sealed it, or it was changed".to_owned())
        })?,
        (true, None) => {
            let why = "it is encrypted: name the file with --key-encryption-file".to_owned();
            return Err(unusable(&file, why));
        }
    };
    let authority =
        Authority::parse(&certificate, &key, now).map_err(|why| unusable(&name, why))?;
    Ok(Loaded { authority, anchors })
}

/// Remembers how long something that is signed will live.
pub fn note_lifetime(turn: &Turn<'_>, lifetime: Duration) -> Result<(), CaError> {
    let mut roots: Roots = turn.read(FILE)?;
    if lifetime.as_secs() > roots.longest_lifetime && !roots.roots.is_empty() {
        roots.longest_lifetime = lifetime.as_secs();
        turn.write(FILE, &roots)?;
    }
    Ok(())
}

/// Step one. The new root's name.
pub fn prepare(
    directory: &StateDir,
    trust_domain: &TrustDomain,
    key_type: KeyType,
    sealing: Option<&SealingKey>,
    now: SystemTime,
) -> Result<String, StepError> {
    let turn = directory.turn()?;
    let mut roots: Roots = turn.read(FILE)?;
    match roots.roots.len() {
        0 => return Err(StepError::Order("there is no root yet: `ca run` makes the first")),
        1 => {}
        _ => return Err(StepError::Order("a rotation is under way: finish it first")),
    }
    if directory.path(PLUGGED_IN).exists() {
        return Err(StepError::Order("the CA signs below somebody else's root: --cacerts"));
    }
    sealed_alike(directory, &roots, sealing)?;
    let name = add(&turn, &mut roots, Phase::Next, trust_domain, key_type, sealing, now)?;
    turn.write(FILE, &roots)?;
    Ok(name)
}

/// A new key is kept as those are that are there: the server opens all of them with one file.
fn sealed_alike(
    directory: &StateDir,
    roots: &Roots,
    sealing: Option<&SealingKey>,
) -> Result<(), StepError> {
    for root in &roots.roots {
        let Some(key) = files::read_private(&directory.path(&key_file(&root.name)))? else {
            continue;
        };
        match (sealed::is_sealed(&key), sealing) {
            (true, None) => return Err(StepError::NotSealed),
            (false, Some(_)) => return Err(StepError::SealedAlone),
            (true, Some(sealing)) if sealing.open(&key).is_none() => {
                return Err(StepError::OtherSealing);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Step two. The name of the root that signs from now on.
pub fn switch(directory: &StateDir, force: bool, now: SystemTime) -> Result<String, StepError> {
    let turn = directory.turn()?;
    let mut roots: Roots = turn.read(FILE)?;
    if !roots.roots.iter().any(|root| root.phase == Phase::Next) {
        return Err(StepError::Order("no new root is trusted yet: `ca root prepare` comes first"));
    }
    roots.everybody_has_heard(force, now)?;
    let mut name = String::new();
    for root in &mut roots.roots {
        match root.phase {
            Phase::Next => {
                root.phase = Phase::Signing;
                name.clone_from(&root.name);
            }
            Phase::Signing => root.phase = Phase::Old,
            Phase::Old => {}
        }
    }
    roots.since = seconds(now);
    turn.write(FILE, &roots)?;
    Ok(name)
}

/// Step three. The name of the root that is no more.
pub fn retire(directory: &StateDir, force: bool, now: SystemTime) -> Result<String, StepError> {
    let turn = directory.turn()?;
    let mut roots: Roots = turn.read(FILE)?;
    let Some(at) = roots.roots.iter().position(|root| root.phase == Phase::Old) else {
        return Err(StepError::Order("no root is old: `ca root switch` comes first"));
    };
    roots.everybody_has_heard(force, now)?;
    let root = roots.roots.remove(at);
    roots.since = seconds(now);
    turn.write(FILE, &roots)?;
    for file in [key_file(&root.name), certificate_file(&root.name)] {
        turn.remove(&file)?;
    }
    Ok(root.name)
}

impl Roots {
    /// How long the next step has to wait still.
    pub fn waits(&self, now: SystemTime) -> Duration {
        // Nothing was signed: nobody has to hear.
        if self.longest_lifetime == 0 {
            return Duration::ZERO;
        }
        let ago = seconds(now).saturating_sub(self.since);
        Duration::from_secs((self.longest_lifetime + SLACK.as_secs()).saturating_sub(ago))
    }

    /// The step that comes next in a rotation that is under way.
    pub fn under_way(&self) -> Option<Step> {
        let has = |phase| self.roots.iter().any(|root| root.phase == phase);
        match (has(Phase::Next), has(Phase::Old)) {
            (true, _) => Some(Step::Switch),
            (false, true) => Some(Step::Retire),
            (false, false) => None,
        }
    }

    /// Whether every certificate from before the latest step has expired, and with it every client's
    /// last word of it.
    fn everybody_has_heard(&self, force: bool, now: SystemTime) -> Result<(), StepError> {
        let ago = seconds(now).saturating_sub(self.since);
        let left = self.waits(now).as_secs();
        if force || left == 0 {
            return Ok(());
        }
        let [ago, left] =
            [ago, left].map(|it| humantime::format_duration(Duration::from_secs(it)).to_string());
        Err(StepError::TooEarly { ago, left })
    }
}

#[cfg(test)]
#[path = "roots_tests.rs"]
mod tests;
