//! Whom to trust as the CA, and its certificates: a file at first, then what the CA itself says, so
//! that its roots can be replaced without a hand on every node.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use crate::identity::ca::{CaError, files};

pub(super) struct Trust {
    file: PathBuf,
    learned: PathBuf,
    /// One writer at a time.
    writing: Mutex<()>,
    memory: Mutex<Memory>,
    /// The CA said something new, whoever was told.
    changed: Notify,
}

/// What is trusted whatever becomes of the file.
#[derive(Default)]
struct Memory {
    /// As it was read or written last.
    learned: Option<Arc<Learned>>,
    /// Why that could not be written.
    unkept: Option<String>,
    /// Why the file that is there cannot be read.
    unread: Option<String>,
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
        let (writing, memory, changed) = (Mutex::new(()), Mutex::default(), Notify::new());
        Self { file: file.to_owned(), learned, writing, memory, changed }
    }

    /// PEM.
    ///
    /// # Errors
    /// The file cannot be read, or what the CA said once cannot: it may have said that a root of the
    /// file is to be trusted no more.
    pub(super) fn roots(&self) -> Result<String, String> {
        let (file, sha256) = self.read_file()?;
        match self.learned()? {
            Some(learned) if learned.file_sha256 == sha256 => Ok(learned.roots.clone()),
            _ => Ok(file),
        }
    }

    /// Why a restarted daemon will not know the CA's roots, or this one does not.
    pub(super) fn trouble(&self) -> Option<String> {
        // Whoever mends the file sees it at once.
        self.learned().ok();
        let memory = self.memory();
        memory.unkept.clone().or_else(|| memory.unread.clone())
    }

    pub(super) fn anchors(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        certificates(&self.roots()?).map_err(|error| format!("{} {error}", self.file.display()))
    }

    /// # Errors
    /// The file of --ca-root is none: a mistake that shows at the start.
    pub(super) fn check_file(&self) -> Result<(), String> {
        let (file, _) = self.read_file()?;
        let parsed = certificates(&file);
        parsed.map(|_| ()).map_err(|error| format!("{} {error}", self.file.display()))
    }

    /// Over a connection that was verified with what was trusted before. True: it is news.
    ///
    /// Blocks: it writes to disk.
    pub(super) fn learn(&self, roots: &str) -> Result<bool, String> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // The certificates, not the text: somebody may have written the file by hand.
        if certificates(roots)? == self.anchors()? {
            let memory = self.memory();
            let wanting = memory.unkept.is_some() || memory.unread.is_some();
            let learned = memory.learned.clone().filter(|_| wanting);
            drop(memory);
            if let Some(learned) = learned {
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
            format!("the CA's roots are trusted and cannot be kept for a restart: {error}")
        });
        let mut memory = self.memory();
        let before = std::mem::replace(&mut memory.unkept, unkept.clone());
        memory.learned = Some(learned.clone());
        if unkept.is_none() {
            memory.unread = None;
        }
        drop(memory);
        if let (None, Some(why)) = (before, unkept) {
            tracing::error!("{why}");
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Every state that a panic can leave is a valid one.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the CA said. A file that cannot be read is not one that is not there: what was read before
    /// holds.
    fn learned(&self) -> Result<Option<Arc<Learned>>, String> {
        let mut memory = self.memory();
        if memory.unkept.is_some() {
            return Ok(memory.learned.clone());
        }
        let why = match self.read_learned() {
            Ok(learned) => {
                memory.learned = learned.map(Arc::new);
                if memory.unread.take().is_some() {
                    tracing::info!(file = %self.learned.display(), "the CA's roots are read again");
                }
                return Ok(memory.learned.clone());
            }
            Err(why) => why,
        };
        let held = match memory.learned {
            Some(_) => "those of before stay trusted",
            None => "nobody is trusted as the CA",
        };
        let why = format!(
            "the CA's roots as it said them last, {}, cannot be read, and {held}: {why}; or remove it, \
             if the file of --ca-root has the CA's roots of now",
            self.learned.display()
        );
        // Once for each fault.
        if memory.unread.as_ref() != Some(&why) {
            tracing::error!("{why}");
        }
        memory.unread = Some(why.clone());
        memory.learned.clone().map(Some).ok_or(why)
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

    /// None: there is none. The error says what to do.
    fn read_learned(&self) -> Result<Option<Learned>, String> {
        let path = self.learned.display();
        let text = files::read_private(&self.learned).map_err(|error| match error {
            CaError::Permissions { mode, fix, .. } => format!(
                "others can read or change it (mode {mode:04o}): run `chmod {fix:04o} {path}` if nobody did"
            ),
            error => error.to_string(),
        })?;
        let learned = text.map(|text| serde_json::from_str(&text)).transpose();
        learned.map_err(|error| format!("{error}: put it back from a backup"))
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
    fn what_the_ca_said_is_not_forgotten_because_its_file_cannot_be_read() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("root.pem");
        let [first, second] = [root(), root()];
        std::fs::write(&file, &first).unwrap();
        let trust = || Trust::new(&file, place.path());
        let (running, both) = (trust(), format!("{first}{second}"));
        running.learn(&both).unwrap();
        let learned = place.path().join("ca-roots.json");
        let good = std::fs::read_to_string(&learned).unwrap();
        let mode = |mode| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(&learned, mode).unwrap();
        };
        let says = |trust: &Trust, parts: &[&str]| {
            let said = trust.trouble().expect("something is wrong");
            for part in parts {
                assert!(said.contains(part), "no {part:?} in {said}");
            }
        };
        mode(0o640);
        assert_eq!(running.anchors().unwrap().len(), 2, "as before");
        says(&running, &["ca-roots.json", "0640", "chmod 0600", "stay trusted"]);
        let restarted = trust();
        says(&restarted, &["ca-roots.json", "0640", "chmod 0600", "nobody is trusted"]);
        assert!(restarted.anchors().unwrap_err().contains("0640"), "never the root of before");
        mode(0o600);
        assert_eq!((running.trouble(), restarted.trouble()), (None, None));
        assert_eq!(restarted.anchors().unwrap().len(), 2);

        std::fs::write(&learned, &good[..good.len() / 2]).unwrap();
        assert_eq!(running.anchors().unwrap().len(), 2);
        says(&trust(), &["ca-roots.json", "remove it"]);
        assert!(trust().anchors().is_err());
        // What the CA says again is written again.
        assert!(!running.learn(&both).unwrap(), "no news");
        assert_eq!(running.trouble(), None);
        assert_eq!(trust().anchors().unwrap().len(), 2);
        // Whoever takes it away starts anew.
        std::fs::remove_file(&learned).unwrap();
        assert_eq!(running.roots().unwrap(), first);
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
