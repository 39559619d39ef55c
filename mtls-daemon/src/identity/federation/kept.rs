//! The last good bundle on disk: in force after a restart before anything was fetched, and the reason
//! why an older document is refused then, too.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::origin;
use crate::identity::ca::CaError;
use crate::identity::ca::files;
use crate::identity::{SpiffeBundle, TrustDomain};

/// How often the time of an unchanged one is written.
pub(super) const CONFIRM: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Kept {
    pub bundle: SpiffeBundle,
    pub confirmed: SystemTime,
}

#[derive(Serialize, Deserialize)]
struct OnDisk {
    trust_domain: String,
    /// Seconds since 1970.
    confirmed: u64,
    /// As it was had.
    document: String,
}

pub(super) fn path(state_dir: &Path, domain: &TrustDomain) -> PathBuf {
    // Trust domains hold no '/'; the ending keeps "." and ".." away.
    state_dir.join("federation").join(format!("{domain}.json"))
}

pub(super) fn remove(state_dir: &Path, domain: &TrustDomain) {
    std::fs::remove_file(path(state_dir, domain)).ok();
}

impl Kept {
    /// What cannot be read was never had.
    pub(super) fn read(state_dir: &Path, domain: &TrustDomain) -> Option<Self> {
        let file = path(state_dir, domain);
        let read = || -> Result<Option<Self>, String> {
            let text = files::read_private(&file).map_err(|error| error.to_string())?;
            let Some(text) = text else { return Ok(None) };
            let kept: OnDisk = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            if kept.trust_domain != domain.as_str() {
                return Err(format!("it is of {}", kept.trust_domain));
            }
            let bundle = origin::parse(domain, kept.document.as_bytes())?;
            let confirmed = SystemTime::UNIX_EPOCH + Duration::from_secs(kept.confirmed);
            Ok(Some(Self { bundle, confirmed }))
        };
        read().unwrap_or_else(|error| {
            tracing::error!(file = %file.display(), %error,
                "the kept bundle of another trust domain cannot be used");
            None
        })
    }

    /// `news`: not only the time is another.
    pub(super) fn write(
        &self,
        state_dir: &Path,
        document: &[u8],
        news: bool,
    ) -> Result<(), CaError> {
        let file = path(state_dir, &self.bundle.bundle.trust_domain);
        let age = std::fs::metadata(&file).and_then(|meta| meta.modified()).ok();
        let age = age.and_then(|written| self.confirmed.duration_since(written).ok());
        if !news && age.is_some_and(|age| age < CONFIRM) {
            return Ok(());
        }
        if let Some(directory) = file.parent() {
            files::make_directory(directory)?;
        }
        let seconds = self.confirmed.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let on_disk = OnDisk {
            trust_domain: self.bundle.bundle.trust_domain.to_string(),
            confirmed: seconds.as_secs(),
            document: String::from_utf8_lossy(document).into_owned(),
        };
        let json = serde_json::to_vec(&on_disk).unwrap_or_default();
        files::write_private(&file, &json)
    }
}
