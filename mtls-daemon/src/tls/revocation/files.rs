//! The revocation lists in a file or a directory: read again when they change, the last good ones kept.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;

use super::super::originate::Stamp;
use super::Link;
use super::crl::{Crl, CrlFacts};
use crate::identity::SpiffeId;
use crate::identity::revocations::{NotBelieved, normal_serial};

/// Larger than any list of a mesh: a million entries.
const LARGEST: u64 = 64 * 1024 * 1024;
const MOST_FILES: usize = 256;

/// Why the lists cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--crl-file: {}", .0.join("; "))]
pub struct CrlsError(Vec<String>);

/// Followed by [`Crls::refresh`]; asked without a lock.
#[derive(Debug)]
pub struct Crls {
    place: PathBuf,
    held: ArcSwap<Held>,
    /// One reader at a time.
    read: Mutex<Files>,
}

/// What is in force.
#[derive(Debug, Default)]
struct Held {
    /// Those of one issuer's name, the newest first.
    by_issuer: HashMap<Box<[u8]>, Vec<Arc<Crl>>>,
    problems: Vec<String>,
    expired: usize,
}

#[derive(Debug, Default)]
struct Files {
    files: BTreeMap<PathBuf, FileRead>,
    /// Of the place itself.
    problem: Option<String>,
}

#[derive(Debug, Default)]
struct FileRead {
    /// None: to be read again.
    stamp: Option<Stamp>,
    lists: Vec<Arc<Crl>>,
    problem: Option<String>,
}

impl Crls {
    /// # Errors
    /// Nothing of it may be wrong at the start: nobody knows a list from before.
    pub(super) fn open(place: &Path) -> Result<Self, CrlsError> {
        let crls =
            Self { place: place.to_owned(), held: ArcSwap::default(), read: Mutex::default() };
        crls.refresh(SystemTime::now());
        let problems = crls.problems();
        if problems.is_empty() { Ok(crls) } else { Err(CrlsError(problems)) }
    }

    /// Reads what changed. True: an answer may be another than before. Blocks.
    pub(super) fn refresh(&self, now: SystemTime) -> bool {
        let mut files = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.held.load();
        if !files.read(&self.place) {
            let expired = before.expired_at(now);
            let news = expired != before.expired;
            if news {
                self.held.store(Arc::new(files.held(now)));
            }
            return news;
        }
        let held = files.held(now);
        for problem in held.problems.iter().filter(|it| !before.problems.contains(it)) {
            tracing::error!("{problem}; what was read before stays in force");
        }
        tracing::info!(lists = held.all().count(), place = %self.place.display(),
            "revocation lists in force");
        self.held.store(Arc::new(held));
        true
    }

    /// What is wrong with the files as they are now.
    pub fn problems(&self) -> Vec<String> {
        self.held.load().problems.clone()
    }

    /// The lists in force.
    pub fn facts(&self) -> Vec<CrlFacts> {
        let held = self.held.load();
        let mut facts: Vec<_> = held.all().map(|crl| crl.facts().clone()).collect();
        facts.sort_by(|a, b| a.file.cmp(&b.file));
        facts
    }

    /// Whether the issuer of `link` has a list here, which does not name it.
    pub(super) fn covers(
        &self,
        id: &SpiffeId,
        link: &Link,
        is_leaf: bool,
        now: SystemTime,
    ) -> Result<bool, NotBelieved> {
        let Some(signed) = &link.signed else { return Ok(false) };
        let held = self.held.load();
        let lists = held.by_issuer.get(&signed.issuer).into_iter().flatten();
        let Some(crl) = lists.into_iter().find(|crl| crl.is_signed_by(&signed.key)) else {
            return Ok(false);
        };
        let facts = crl.facts();
        // On a list is on it, however old that is.
        if crl.names(&signed.serial) {
            return Err(NotBelieved::OnCrl {
                id: id.to_string(),
                whose: if is_leaf { "its" } else { "a CA's" },
                serial: normal_serial(&link.serial),
                issuer: facts.issuer.clone(),
            });
        }
        if crl.has_expired(now) {
            return Err(NotBelieved::CrlExpired {
                issuer: facts.issuer.clone(),
                file: facts.file.clone(),
                next_update: facts.next_update,
            });
        }
        Ok(true)
    }
}

impl Held {
    fn all(&self) -> impl Iterator<Item = &Arc<Crl>> {
        self.by_issuer.values().flatten()
    }

    fn expired_at(&self, now: SystemTime) -> usize {
        self.all().filter(|crl| crl.has_expired(now)).count()
    }
}

impl Files {
    /// True: something is another than before.
    fn read(&mut self, place: &Path) -> bool {
        let found = match find(place) {
            Ok(found) => found,
            Err(problem) => {
                let news = self.problem.as_ref() != Some(&problem);
                self.problem = Some(problem);
                return news;
            }
        };
        let mut changed = self.problem.take().is_some();
        let gone = |path: &PathBuf| !found.contains(path);
        if self.files.keys().any(gone) {
            let gone: Vec<_> = self.files.keys().filter(|it| gone(it)).cloned().collect();
            for path in gone {
                tracing::warn!(file = %path.display(), "a file of revocation lists was taken away");
                self.files.remove(&path);
            }
            changed = true;
        }
        for path in found {
            let known = self.files.get(&path);
            let stamp = Stamp::of(&path);
            if known.is_some_and(|known| known.stamp.is_some() && known.stamp == stamp) {
                continue;
            }
            let read = read(&path).and_then(|lists| {
                let newest = known.map(|known| &known.lists[..]).unwrap_or_default();
                match lists.iter().find_map(|list| older(list, newest)) {
                    Some(why) => Err(format!("{}: {why}", path.display())),
                    None => Ok(lists),
                }
            });
            let entry = self.files.entry(path).or_default();
            entry.stamp = stamp;
            match read {
                Ok(lists) => {
                    changed |= entry.problem.take().is_some() || !same(&entry.lists, &lists);
                    entry.lists = lists;
                }
                Err(problem) => {
                    changed |= entry.problem.as_ref() != Some(&problem);
                    entry.problem = Some(problem);
                }
            }
        }
        changed
    }

    fn held(&self, now: SystemTime) -> Held {
        let mut held = Held::default();
        held.problems.extend(self.problem.clone());
        for file in self.files.values() {
            held.problems.extend(file.problem.clone());
            for list in &file.lists {
                held.by_issuer.entry(list.issuer.clone()).or_default().push(list.clone());
            }
        }
        for lists in held.by_issuer.values_mut() {
            lists.sort_by_key(|list| std::cmp::Reverse(list.facts().this_update));
        }
        held.expired = held.expired_at(now);
        held
    }
}

fn same(before: &[Arc<Crl>], now: &[Arc<Crl>]) -> bool {
    before.len() == now.len() && before.iter().zip(now).all(|(a, b)| a.is_same(b))
}

/// A list takes no newer one's place.
fn older(list: &Crl, before: &[Arc<Crl>]) -> Option<String> {
    let date = |crl: &Crl| humantime::format_rfc3339_seconds(crl.facts().this_update).to_string();
    let newer = before.iter().find(|known| {
        known.issuer == list.issuer && known.facts().this_update > list.facts().this_update
    })?;
    let (issuer, ours, theirs) = (&list.facts().issuer, date(newer), date(list));
    Some(format!("the revocation list of {issuer} is of {theirs}, older than ours of {ours}"))
}

/// The files of the place.
fn find(place: &Path) -> Result<Vec<PathBuf>, String> {
    let cannot = |error: std::io::Error| format!("{} cannot be read: {error}", place.display());
    let metadata = fs::metadata(place).map_err(cannot)?;
    if !metadata.is_dir() {
        return Ok(vec![place.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(place).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        let hidden = path.file_name().is_some_and(|it| it.as_encoded_bytes().starts_with(b"."));
        // Links are followed: a mounted ConfigMap is made of them.
        if !hidden && fs::metadata(&path).is_ok_and(|it| it.is_file()) {
            files.push(path);
        }
    }
    match files.len() {
        0 => Err(format!("{} has no file of revocation lists", place.display())),
        1..=MOST_FILES => Ok(files),
        many => Err(format!("{} has {many} files, more than {MOST_FILES}", place.display())),
    }
}

fn read(path: &Path) -> Result<Vec<Arc<Crl>>, String> {
    let fail = |why: String| format!("{}: {why}", path.display());
    let cannot = |error: std::io::Error| fail(format!("cannot be read: {error}"));
    // A FIFO would be waited on for ever.
    if !fs::metadata(path).map_err(cannot)?.is_file() {
        return Err(fail("is no regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(cannot)?;
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > LARGEST {
        return Err(fail(format!("is larger than {LARGEST} bytes")));
    }
    parse(&bytes, &path.display().to_string().into()).map_err(fail)
}

/// PEM with one or several lists, or one in DER.
pub(super) fn parse(bytes: &[u8], file: &Arc<str>) -> Result<Vec<Arc<Crl>>, String> {
    let is_pem = bytes.windows(11).any(|window| window == b"-----BEGIN ");
    if !is_pem {
        return Ok(vec![Arc::new(Crl::parse(bytes, file)?)]);
    }
    let lists: Result<Vec<CertificateRevocationListDer<'_>>, _> =
        CertificateRevocationListDer::pem_slice_iter(bytes).collect();
    let lists = lists.map_err(|_| "is no well-formed PEM".to_owned())?;
    if lists.is_empty() {
        return Err("holds no revocation list (X509 CRL) in PEM".to_owned());
    }
    lists.iter().map(|der| Crl::parse(der, file).map(Arc::new)).collect()
}
