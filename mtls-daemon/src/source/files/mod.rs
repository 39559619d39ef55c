//! Istio objects in a directory of YAML files, reloaded when they change.
//!
//! The directory is read as a whole and accepted as a whole: one error in one file refuses the
//! change, and whoever holds the last good snapshot keeps it.

mod read;
mod watch;

use std::fmt;
use std::path::Path;

pub use read::Fingerprint;
pub use watch::watch;

use crate::mesh::{MeshSettings, Objects, Snapshot};
use crate::policy::error::{Code, ConfigError};
use crate::policy::parse::Limits;

/// A directory that was read and accepted.
#[derive(Debug)]
pub struct Loaded {
    pub snapshot: Snapshot,
    /// What was ignored or looks odd.
    pub warnings: Vec<ConfigError>,
    /// What was read, for [`watch`] to go on from.
    pub fingerprint: Fingerprint,
}

/// Everything that is wrong in the directory, in the order of files and lines. The configuration
/// is at fault; trying again helps only after it was changed.
#[derive(Debug, Clone)]
pub struct LoadError(pub Vec<ConfigError>);

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for LoadError {}

/// Reads `*.yaml` and `*.yml` directly in `dir` (symbolic links are followed, names that begin
/// with a dot left out) and builds the snapshot of the daemon that runs as `node`. Blocking.
pub fn load(
    dir: &Path,
    node: &str,
    settings: &MeshSettings,
    generation: u64,
) -> Result<Loaded, LoadError> {
    load_within(dir, node, settings, generation, &Limits::default())
}

/// As [`load`], with other limits.
pub fn load_within(
    dir: &Path,
    node: &str,
    settings: &MeshSettings,
    generation: u64,
    limits: &Limits,
) -> Result<Loaded, LoadError> {
    let contents = read::contents(dir, limits).map_err(LoadError)?;
    let mut objects = Objects::default();
    for (file, text) in &contents.files {
        objects.add_file(file, text, limits);
    }
    let built = Snapshot::build(objects, settings.clone(), node, generation).map_err(LoadError)?;
    Ok(Loaded {
        snapshot: built.snapshot,
        warnings: built.warnings,
        fingerprint: contents.fingerprint,
    })
}

fn unreadable(path: &Path, reason: impl fmt::Display) -> ConfigError {
    ConfigError {
        file: path.display().to_string().into(),
        line: 0,
        object: "".into(),
        field: String::new(),
        reason: format!("cannot be read: {reason}"),
        code: Code::FileRead,
    }
}

#[cfg(test)]
mod tests;
