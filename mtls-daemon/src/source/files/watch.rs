//! Reloads when the directory changes: told by the kernel (inotify), and by a slow look at the
//! files where the kernel says nothing (network file systems, links that lead out of the
//! directory, no inotify left).
//!
//! A writer needs several steps, and what it has written so far can be a valid configuration with
//! half of the policy missing. So nothing is read while a writer has a file open, and what was
//! read counts only if the files stood still before, meanwhile and after.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::changes::Changes;
use super::read::{self, Stamp};
use super::{Fingerprint, LoadError, Loaded, SETTLE, load_once, unreadable};
use crate::mesh::{Accepted, MeshSettings};
use crate::source::names::Names;

/// The same where the change would end the enrolment of every workload of this node: files that
/// vanish and come back must not open what they closed.
const SETTLE_WITHOUT_WORKLOADS: Duration = Duration::from_secs(1);
/// A writer that keeps a file open without writing is waited for this long.
const WRITER_AT_MOST: Duration = Duration::from_secs(5);
/// Restlessness that is worth a warning.
const RESTLESS: Duration = Duration::from_secs(5);
/// How often the files are looked at without being told.
const POLL: Duration = Duration::from_secs(2);

type Stamped = Result<Stamp, String>;

/// Calls `on_change` with each change of `dir`, in force or refused as a whole, until dropped. `seen`,
/// `accepted` and `generation` are those of the load before; snapshots get the numbers after it.
#[expect(clippy::too_many_arguments, reason = "one call; a structure would only rename them")]
pub async fn watch(
    dir: PathBuf,
    node: String,
    settings: MeshSettings,
    names: Arc<Names>,
    mut generation: u64,
    seen: Fingerprint,
    mut accepted: Arc<Accepted>,
    mut on_change: impl FnMut(Result<Loaded, LoadError>),
) {
    let mut changes = Changes::of(&dir);
    let mut in_force = seen;
    let mut told = Some(seen);
    // Nothing is known about the time between the first load and the watch: look at once.
    let mut handled: Option<Stamped> = None;
    let mut directory = None;
    let mut restless_since: Option<Instant> = None;
    loop {
        let now = stamp(&dir).await;
        if handled.as_ref() == Some(&now) {
            restless_since = None;
            tokio::select! {
                () = changes.next() => {}
                () = sleep(POLL) => {}
                // The files say something else without having changed.
                () = names.changed() => handled = None,
            }
            continue;
        }
        let found = now.as_ref().ok().map(|stamp| stamp.directory);
        if directory.is_some_and(|id| Some(id) != found) || !changes.is_watching() {
            changes = Changes::of(&dir);
        }
        directory = found.or(directory);
        if restless_since.get_or_insert_with(Instant::now).elapsed() > RESTLESS {
            warn!("files in {} do not come to rest: nothing is reloaded", dir.display());
            restless_since = None;
        }
        if !settled(&changes, &dir, &now).await {
            continue;
        }
        let result = reload(&dir, &node, &settings, &names, generation + 1, &accepted).await;
        let ends_enrolment = result
            .as_ref()
            .is_ok_and(|new| in_force.node_workloads > 0 && new.fingerprint.node_workloads == 0);
        let quiet = if ends_enrolment { SETTLE_WITHOUT_WORKLOADS } else { SETTLE };
        if !unchanged(&changes, &dir, &now, quiet).await {
            continue;
        }
        handled = Some(now);
        match result {
            Ok(loaded) if told == Some(loaded.fingerprint) => {
                debug!("configuration files were touched, their contents are the same");
            }
            Ok(loaded) => {
                generation = loaded.snapshot.generation;
                in_force = loaded.fingerprint;
                accepted = loaded.accepted.clone();
                told = Some(loaded.fingerprint);
                on_change(Ok(loaded));
            }
            Err(error) => {
                // Going back to the accepted files is a change worth telling, too.
                told = None;
                on_change(Err(error));
            }
        }
    }
}

/// Waits for [`SETTLE`] of quiet with no file open for writing. False: something changed.
async fn settled(changes: &Changes, dir: &Path, before: &Stamped) -> bool {
    let start = Instant::now();
    while unchanged(changes, dir, before, SETTLE).await {
        let Some(path) = changes.being_written() else { return true };
        if start.elapsed() > WRITER_AT_MOST {
            warn!("{} is read although it is still open for writing", path.display());
            return true;
        }
    }
    false
}

/// Watches the files for `time`. False, as soon as it is known: they are not as `before`.
async fn unchanged(changes: &Changes, dir: &Path, before: &Stamped, time: Duration) -> bool {
    let end = Instant::now() + time;
    loop {
        let over = tokio::time::timeout_at(end, changes.next()).await.is_err();
        if stamp(dir).await != *before {
            return false;
        }
        if over {
            return true;
        }
    }
}

async fn stamp(dir: &Path) -> Stamped {
    let dir = dir.to_owned();
    match tokio::task::spawn_blocking(move || read::stamp(&dir)).await {
        Ok(stamp) => stamp.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

async fn reload(
    dir: &Path,
    node: &str,
    settings: &MeshSettings,
    names: &Arc<Names>,
    generation: u64,
    accepted: &Arc<Accepted>,
) -> Result<Loaded, LoadError> {
    let (path, node, settings) = (dir.to_owned(), node.to_owned(), settings.clone());
    let (accepted, names) = (accepted.clone(), names.clone());
    let load = tokio::task::spawn_blocking(move || {
        let limits = super::Limits::default();
        load_once(&path, &node, &settings, generation, Some(&accepted), &names, &limits)
    });
    load.await.unwrap_or_else(|error| Err(LoadError(vec![unreadable(dir, error)])))
}
