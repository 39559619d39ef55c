//! Reloads when the directory changes: told by the kernel (inotify), and by a slow look at the
//! files where the kernel says nothing (network file systems, links that lead out of the
//! directory, no inotify left).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

use super::read::{self, Stamp};
use super::{Fingerprint, LoadError, Loaded, load, unreadable};
use crate::mesh::MeshSettings;

/// Quiet time after a change before files are read: a writer needs several steps.
const SETTLE: Duration = Duration::from_millis(40);
/// Longest wait for quiet: a change takes effect although others keep coming.
const SETTLE_AT_MOST: Duration = Duration::from_millis(300);
/// How often the files are looked at without being told.
const POLL: Duration = Duration::from_secs(2);

/// Calls `on_change` with each change of `dir`, accepted or refused, until dropped. `seen` and
/// `generation` are those of the load before; accepted snapshots get the numbers after it.
pub async fn watch(
    dir: PathBuf,
    node: String,
    settings: MeshSettings,
    mut generation: u64,
    seen: Fingerprint,
    mut on_change: impl FnMut(Result<Loaded, LoadError>),
) {
    let changed = Arc::new(Notify::new());
    let mut watcher = watcher(&dir, &changed);
    let mut last_seen = Some(seen);
    // Nothing is known about the time between the first load and the watch: look at once.
    let mut last_stamp: Option<Result<Stamp, String>> = None;
    loop {
        let now = stamp(&dir).await;
        if last_stamp.as_ref() != Some(&now) {
            let moved = directory(&last_stamp).is_some_and(|id| Some(id) != directory_of(&now));
            if moved || watcher.is_none() {
                watcher = self::watcher(&dir, &changed);
            }
            last_stamp = Some(now);
            let result = reload(&dir, &node, &settings, generation + 1).await;
            match result {
                Ok(loaded) if last_seen == Some(loaded.fingerprint) => {
                    debug!("configuration files were touched, their contents are the same");
                }
                Ok(loaded) => {
                    generation = loaded.snapshot.generation;
                    last_seen = Some(loaded.fingerprint);
                    on_change(Ok(loaded));
                }
                Err(error) => {
                    // Going back to the accepted files is a change worth telling, too.
                    last_seen = None;
                    on_change(Err(error));
                }
            }
            continue;
        }
        tokio::select! {
            () = changed.notified() => settle(&changed).await,
            () = sleep(POLL) => {}
        }
    }
}

fn directory(stamp: &Option<Result<Stamp, String>>) -> Option<(u64, u64)> {
    stamp.as_ref().and_then(directory_of)
}

fn directory_of(stamp: &Result<Stamp, String>) -> Option<(u64, u64)> {
    stamp.as_ref().ok().map(|stamp| stamp.directory)
}

/// None: inotify is not to be had, the poll alone has to do.
fn watcher(dir: &Path, changed: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let tell = changed.clone();
    let made = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading is no change.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            tell.notify_one();
        }
    })
    .and_then(|mut watcher| {
        watcher.watch(dir, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    match made {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            warn!(
                "cannot watch {}: {error}; its files are looked at every {POLL:?} instead",
                dir.display()
            );
            None
        }
    }
}

async fn settle(changed: &Notify) {
    let end = Instant::now() + SETTLE_AT_MOST;
    loop {
        let quiet = (Instant::now() + SETTLE).min(end);
        if timeout_at(quiet, changed.notified()).await.is_err() {
            return;
        }
    }
}

async fn stamp(dir: &Path) -> Result<Stamp, String> {
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
    generation: u64,
) -> Result<Loaded, LoadError> {
    let (path, node, settings) = (dir.to_owned(), node.to_owned(), settings.clone());
    let load = tokio::task::spawn_blocking(move || load(&path, &node, &settings, generation));
    load.await.unwrap_or_else(|error| Err(LoadError(vec![unreadable(dir, error)])))
}
