//! Istio objects in a directory of YAML files, reloaded when they change.
//!
//! The directory is read as a whole, and each object accepted or refused by itself: what becomes of a
//! refused one depends on what was in force before, which goes from load to load.

mod changes;
mod read;
mod watch;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use read::Fingerprint;
pub use watch::watch;

use super::names::Names;
use crate::mesh::{Accepted, MeshSettings, Objects, Snapshot};
use crate::policy::error::{Code, ConfigError};
use crate::policy::parse::Limits;

/// Quiet before and after files are read: a writer needs several steps.
const SETTLE: Duration = Duration::from_millis(100);
/// How often a load starts over because files changed under it.
const ATTEMPTS: u32 = 20;

/// A directory that was read and accepted.
#[derive(Debug)]
pub struct Loaded {
    pub snapshot: Snapshot,
    /// The objects that it is made of, for the next load.
    pub accepted: Arc<Accepted>,
    /// Objects and files that were refused, each with what is in force in its place.
    pub errors: Vec<ConfigError>,
    /// What was ignored or looks odd.
    pub warnings: Vec<ConfigError>,
    /// What was read, for [`watch`] to go on from.
    pub fingerprint: Fingerprint,
}

/// Nothing can be in force: everything that is wrong in the directory, in the order of files and
/// lines. The configuration is at fault; trying again helps only after it was changed.
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
    load_with(dir, node, settings, generation, &Names::default())
}

/// As [`load`], with names that somebody goes on resolving.
pub fn load_with(
    dir: &Path,
    node: &str,
    settings: &MeshSettings,
    generation: u64,
    names: &Names,
) -> Result<Loaded, LoadError> {
    load_within(dir, node, settings, generation, names, &Limits::default())
}

/// The same with other limits.
fn load_within(
    dir: &Path,
    node: &str,
    settings: &MeshSettings,
    generation: u64,
    names: &Names,
    limits: &Limits,
) -> Result<Loaded, LoadError> {
    let stamp = || read::stamp(dir).map_err(|error| LoadError(vec![unreadable(dir, error)]));
    let mut before = stamp()?;
    for _ in 0..ATTEMPTS {
        // Files that somebody is writing at this moment are waited for.
        if before.is_younger_than(SETTLE) {
            std::thread::sleep(SETTLE);
        }
        let loaded = load_once(dir, node, settings, generation, None, names, limits);
        let after = stamp()?;
        if before == after {
            return loaded;
        }
        before = after;
    }
    let reason = "its files keep changing: still being written?";
    Err(LoadError(vec![unreadable(dir, reason)]))
}

/// Reads what is there, whether or not it is whole.
fn load_once(
    dir: &Path,
    node: &str,
    settings: &MeshSettings,
    generation: u64,
    previous: Option<&Accepted>,
    names: &Names,
    limits: &Limits,
) -> Result<Loaded, LoadError> {
    let contents = read::contents(dir, limits).map_err(|error| LoadError(vec![error]))?;
    let mut objects = Objects::default();
    let empty = contents.files.is_empty();
    for (file, text) in contents.files {
        match text {
            Ok(text) => objects.add_file(&file, &text, limits),
            Err(error) => objects.add_unreadable(error),
        }
    }
    objects.names = names.resolve(&objects.names_to_resolve(previous));
    // An address that changed is a change, as if it were written in a file.
    let hash = read::hash_with(contents.hash, &objects.names);
    let built = Snapshot::build(objects, previous, settings.clone(), node, generation)
        .map_err(LoadError)?;
    let mut warnings = built.warnings;
    if empty {
        warnings.push(ConfigError {
            reason: "has no *.yaml or *.yml file: no workload is enrolled".to_owned(),
            code: Code::WarnEmpty,
            ..unreadable(dir, "")
        });
    }
    let node_workloads = built.snapshot.node_workloads().len();
    Ok(Loaded {
        snapshot: built.snapshot,
        accepted: Arc::new(built.accepted),
        errors: built.errors,
        warnings,
        fingerprint: Fingerprint { hash, node_workloads },
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
