//! Certificates that something else puts into a directory: cert-manager, a Kubernetes secret,
//! spiffe-helper, an operator's own tool. docs/identity.md has the layout.
//!
//! No key is kept here: it is read when its identity needs it, checked, and wiped with the SVID.

mod follow;
mod key;
mod layout;
mod read;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::denial::Denial;
use super::{Reason, SourceError, SvidSource};
use crate::identity::encoding::certificates_from_pem;
use crate::identity::revocations::normal_serial;
use crate::identity::{Bundle, SpiffeId, Svid, TrustDomain};
use crate::tls::svid::{check_bundle, check_key, parse_svid, verify_svid};
use layout::{Scan, Set, Stamp};

/// Quiet that is waited for: whoever replaces a certificate writes several files.
const SETTLE: Duration = Duration::from_millis(100);
/// How often reading starts over because files changed under it.
const ATTEMPTS: u32 = 10;

/// SVIDs from files.
pub struct Files {
    directory: PathBuf,
    trust_domain: TrustDomain,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// What was found the last time, and the files as they were then.
    scan: Option<(Stamp, std::sync::Arc<Scan>)>,
    /// Keys that others could read, already told of.
    open: BTreeSet<PathBuf>,
}

impl Files {
    /// # Errors
    /// The directory cannot be read.
    pub fn new(directory: &Path, trust_domain: TrustDomain) -> Result<Self, SourceError> {
        std::fs::read_dir(directory).map_err(|error| {
            SourceError::Other(format!(
                "cannot read the directory of certificates {}: {error}; is --svid-dir right?",
                directory.display()
            ))
        })?;
        let seen = Mutex::default();
        Ok(Self { directory: directory.to_owned(), trust_domain, seen })
    }

    /// What is there now.
    fn scan(&self) -> std::sync::Arc<Scan> {
        let stamp = layout::stamp(&self.directory);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((before, scan)) = &seen.scan
            && *before == stamp
            && !stamp.is_younger_than(SETTLE)
        {
            return scan.clone();
        }
        let scan = std::sync::Arc::new(layout::scan(&self.directory));
        seen.scan = Some((stamp, scan.clone()));
        scan
    }

    fn read(&self, id: &SpiffeId) -> Result<(Svid, Bundle), Denial> {
        let scan = self.scan();
        let Some(set) = scan.sets.get(id) else {
            let reason = Reason::of_missing(&scan.problems);
            let problems: Vec<String> = scan.problems.iter().map(ToString::to_string).collect();
            let problems = match problems[..] {
                [] => String::new(),
                _ => format!("; not usable: {}", problems.join("; ")),
            };
            let directory = self.directory.display();
            let text = format!("no certificate in {directory} is {id}'s{problems}");
            return Err(Denial { reason, text });
        };
        Ok(self.read_set(id, set)?)
    }

    fn read_set(&self, id: &SpiffeId, set: &Set) -> Result<(Svid, Bundle), String> {
        let at = |path: &Path| {
            let path = path.display().to_string();
            move |why: String| format!("{path}: {why}")
        };
        let text = read::secret(&set.certificate).map_err(at(&set.certificate))?;
        let unusable = |why: &dyn ToString| at(&set.certificate)(why.to_string());
        let chain = certificates_from_pem(&text.bytes).map_err(|why| unusable(&why))?;
        let Some(bundle) = &set.bundle else {
            return Err(unusable(&format!(
                "there is no file of roots for it: one of {} in its directory or above",
                layout::BUNDLES.join(", ")
            )));
        };
        let roots = read::secret(bundle).map_err(at(bundle))?;
        let anchors = Bundle::from_pem(self.trust_domain.clone(), &roots.bytes)
            .map_err(|why| at(bundle)(why.to_string()))?;
        check_bundle(&anchors).map_err(|why| at(bundle)(why.to_string()))?;
        // The certificate before the key: a key is not read for what cannot be used.
        let facts = parse_svid(&chain).map_err(|why| unusable(&why))?;
        let bundles = std::slice::from_ref(&anchors);
        let facts = match anchors.anchors.is_empty() {
            // Not an error, which would leave the roots of before in use (policy.md 6.3).
            true => {
                tracing::error!(identity = %id, file = %bundle.display(),
                    "the file of roots is empty: this identity believes nobody");
                facts
            }
            false => {
                verify_svid(&chain, bundles, Some(std::slice::from_ref(id)), SystemTime::now())
                    .map_err(|why| unusable(&format!("{why} (its roots: {})", bundle.display())))?
            }
        };
        let secret = read::secret(&set.key).map_err(at(&set.key))?;
        self.warn_if_open(&set.key, secret.mode);
        let key = key::from_pem(&secret.bytes, &chain[0]).map_err(at(&set.key))?;
        let svid = Svid {
            id: facts.id,
            serial: normal_serial(&facts.serial),
            not_before: facts.not_before,
            not_after: facts.not_after,
            chain,
            key,
        };
        check_key(&svid.chain, &svid.key).map_err(|why| {
            at(&set.key)(format!("{why}; the certificate is {}", set.certificate.display()))
        })?;
        warn_before_expiry(&svid, &set.certificate, SystemTime::now());
        Ok((svid, anchors))
    }

    fn warn_if_open(&self, key: &Path, mode: u32) {
        if mode & !0o640 & 0o777 == 0 {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).open.remove(key);
            return;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.open.insert(key.to_owned()) {
            tracing::warn!(
                file = %key.display(),
                mode = %format!("{:04o}", mode & 0o7777),
                "a private key's permissions are wider than 0640: others on this host can take it"
            );
        }
    }
}

/// Nobody here can renew it. The store looks again after half of what is left, so that this comes
/// more and more often.
fn warn_before_expiry(svid: &Svid, certificate: &Path, now: SystemTime) {
    let life = svid.not_after.duration_since(svid.not_before).unwrap_or_default();
    let left = svid.not_after.duration_since(now).unwrap_or_default();
    if left <= life.mul_f64(0.3) {
        tracing::warn!(
            identity = %svid.id,
            file = %certificate.display(),
            not_after = %humantime::format_rfc3339_seconds(svid.not_after),
            "a certificate expires soon, and files are not renewed by this daemon: replace it"
        );
    }
}

impl SvidSource for Files {
    fn issue(&self, id: &SpiffeId) -> Result<Svid, SourceError> {
        Ok(self.obtain(id)?.0)
    }

    /// Of all certificates that are there. Each of them is used with its own roots, see `obtain`.
    fn bundle(&self) -> Result<Bundle, SourceError> {
        let scan = self.scan();
        let files: BTreeSet<&PathBuf> =
            scan.sets.values().filter_map(|set| set.bundle.as_ref()).collect();
        let mut anchors = Vec::new();
        for file in files {
            let text = read::secret(file).map_err(SourceError::Other)?;
            let bundle = Bundle::from_pem(self.trust_domain.clone(), &text.bytes)
                .map_err(|why| SourceError::Other(format!("{}: {why}", file.display())))?;
            anchors.extend(bundle.anchors);
        }
        Ok(Bundle::new(self.trust_domain.clone(), anchors))
    }

    fn obtain(&self, id: &SpiffeId) -> Result<(Svid, Bundle), SourceError> {
        if id.trust_domain() != self.trust_domain.as_str() {
            let why = format!("{id} is not of the trust domain {}", self.trust_domain);
            return Err(SourceError::Other(why));
        }
        let mut attempt = 1;
        loop {
            let before = layout::stamp(&self.directory);
            let result = self.read(id);
            // Half of a change is no error yet.
            let moving =
                || before.is_younger_than(SETTLE) || before != layout::stamp(&self.directory);
            // A file that is empty may be about to be written.
            let whole = result.as_ref().is_ok_and(|(_, bundle)| !bundle.anchors.is_empty());
            if whole || attempt == ATTEMPTS || !moving() {
                return Ok(result?);
            }
            attempt += 1;
            std::thread::sleep(SETTLE);
        }
    }

    fn makes(&self) -> bool {
        false
    }

    fn name(&self) -> &'static str {
        "files"
    }
}

#[cfg(test)]
mod tests;
