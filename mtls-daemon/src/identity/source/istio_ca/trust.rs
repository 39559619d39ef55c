//! Whom to trust as the CA, and its certificates: a file at first, then what the CA itself says, so
//! that its roots can be replaced without a hand on every node.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use crate::identity::ca::files;

pub(super) struct Trust {
    file: PathBuf,
    learned: PathBuf,
    /// One writer at a time.
    writing: Mutex<()>,
    /// What could not be written, and why: it is trusted all the same.
    unkept: Mutex<Option<(Arc<Learned>, String)>>,
    /// The CA said something new, whoever was told.
    changed: Notify,
}

/// What the CA said, and which file that rests on: who puts another file there starts anew.
#[derive(Serialize, Deserialize)]
struct Learned {
    file_sha256: String,
    roots: String,
}

impl Trust {
    pub(super) fn new(file: &Path, state_dir: &Path) -> Self {
        let learned = state_dir.join("ca-roots.json");
        let (writing, unkept, changed) = (Mutex::new(()), Mutex::default(), Notify::new());
        Self { file: file.to_owned(), learned, writing, unkept, changed }
    }

    /// PEM.
    pub(super) fn roots(&self) -> Result<String, String> {
        let (file, sha256) = self.read_file()?;
        let unkept = self.unkept().as_ref().map(|(learned, _)| learned.clone());
        let learned = unkept.or_else(|| self.read_learned().map(Arc::new));
        match learned {
            Some(learned) if learned.file_sha256 == sha256 => Ok(learned.roots.clone()),
            _ => Ok(file),
        }
    }

    /// Why a restarted daemon will not know the CA's roots.
    pub(super) fn trouble(&self) -> Option<String> {
        self.unkept().as_ref().map(|(_, why)| why.clone())
    }

    pub(super) fn anchors(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        certificates(&self.roots()?).map_err(|error| format!("{} {error}", self.file.display()))
    }

    /// Over a connection that was verified with what was trusted before. True: it is news.
    ///
    /// Blocks: it writes to disk.
    pub(super) fn learn(&self, roots: &str) -> Result<bool, String> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // The certificates, not the text: somebody may have written the file by hand.
        if certificates(roots)? == self.anchors()? {
            let unkept = self.unkept().as_ref().map(|(learned, _)| learned.clone());
            if let Some(learned) = unkept {
                self.keep(&learned);
            }
            return Ok(false);
        }
        let (_, file_sha256) = self.read_file()?;
        self.keep(&Arc::new(Learned { file_sha256, roots: roots.to_owned() }));
        tracing::info!("the CA's roots changed");
        self.changed.notify_one();
        Ok(true)
    }

    /// What cannot be written is trusted from memory, and written later.
    fn keep(&self, learned: &Arc<Learned>) {
        let json = serde_json::to_vec(&**learned).unwrap_or_default();
        let error = files::write_private(&self.learned, &json).err();
        let unkept = error.map(|error| {
            let why =
                format!("the CA's roots are trusted and cannot be kept for a restart: {error}");
            (learned.clone(), why)
        });
        let before = std::mem::replace(&mut *self.unkept(), unkept.clone());
        if let (None, Some((_, why))) = (before, unkept) {
            tracing::error!("{why}");
        }
    }

    fn unkept(&self) -> MutexGuard<'_, Option<(Arc<Learned>, String)>> {
        // Replaced whole.
        self.unkept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when something was learned since the last time. For one listener.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn read_file(&self) -> Result<(String, String), String> {
        let text = std::fs::read_to_string(&self.file)
            .map_err(|error| format!("cannot read --ca-root {}: {error}", self.file.display()))?;
        let sha256 = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok((text, sha256))
    }

    fn read_learned(&self) -> Option<Learned> {
        let text = files::read_private(&self.learned).ok()??;
        serde_json::from_str(&text).ok()
    }
}

pub(super) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let roots = roots.map_err(|error| format!("is no PEM: {error}"))?;
    if roots.is_empty() {
        return Err("has no certificate".to_owned());
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::identity::ca::Authority;
    use crate::identity::{KeyType, TrustDomain};

    fn root() -> String {
        let domain = TrustDomain::parse("cluster.local").unwrap();
        Authority::generate(&domain, KeyType::default(), SystemTime::now()).unwrap().1
    }

    #[test]
    fn what_the_ca_says_holds_until_the_file_is_another() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("root.pem");
        let [first, second, third] = [root(), root(), root()];
        std::fs::write(&file, &first).unwrap();
        let trust = || Trust::new(&file, place.path());
        assert_eq!(trust().roots().unwrap(), first);
        let both = format!("{first}{second}");
        assert!(trust().learn(&both).unwrap());
        assert!(!trust().learn(&both).unwrap(), "no news");
        assert_eq!(trust().anchors().unwrap().len(), 2, "also after a restart");
        std::fs::write(&file, &third).unwrap();
        assert_eq!(trust().roots().unwrap(), third);
    }

    #[test]
    fn what_cannot_be_written_is_trusted_and_written_later() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("root.pem");
        let [first, second] = [root(), root()];
        std::fs::write(&file, &first).unwrap();
        let trust = || Trust::new(&file, place.path());
        let (running, both) = (trust(), format!("{first}{second}"));
        let block = place.path().join("ca-roots.json.new");
        std::fs::create_dir(&block).unwrap();
        assert!(running.learn(&both).unwrap());
        assert_eq!(running.anchors().unwrap().len(), 2);
        assert!(running.trouble().unwrap().contains("cannot be kept"));
        assert_eq!(trust().anchors().unwrap().len(), 1, "not on disk");
        std::fs::remove_dir(&block).unwrap();
        assert!(!running.learn(&both).unwrap(), "no news");
        assert_eq!(running.trouble(), None);
        assert_eq!(trust().anchors().unwrap().len(), 2);
    }

    #[test]
    fn a_file_without_a_certificate_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("root.pem");
        let refused = || Trust::new(&file, place.path()).anchors().unwrap_err();
        assert!(refused().contains("cannot read"));
        std::fs::write(&file, "nothing").unwrap();
        assert!(refused().contains("no certificate"));
    }
}
