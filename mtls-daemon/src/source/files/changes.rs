//! What the kernel tells about the directory: that something happened, and which files a writer
//! has open.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tracing::warn;

use super::read::is_wanted;

/// Events of one directory from now on.
pub(super) struct Changes {
    shared: Arc<Shared>,
    /// None: inotify is not to be had, looking at the files has to do.
    watcher: Option<RecommendedWatcher>,
}

#[derive(Default)]
struct Shared {
    changed: Notify,
    /// Written to and not closed since.
    written: Mutex<BTreeSet<PathBuf>>,
}

impl Changes {
    pub fn of(dir: &Path) -> Self {
        let shared = Arc::new(Shared::default());
        let tell = shared.clone();
        let made = notify::recommended_watcher(move |event| tell.take(event)).and_then(
            |mut watcher: RecommendedWatcher| {
                watcher.watch(dir, RecursiveMode::NonRecursive)?;
                Ok(watcher)
            },
        );
        let watcher = made
            .map_err(|error| {
                warn!(
                    "cannot watch {}: {error}; its files are looked at now and then instead",
                    dir.display()
                );
            })
            .ok();
        Self { shared, watcher }
    }

    pub fn is_watching(&self) -> bool {
        self.watcher.is_some()
    }

    /// Ends after the next change, or at once if one was not yet waited for.
    pub async fn next(&self) {
        self.shared.changed.notified().await;
    }

    /// A file that a writer has not finished.
    pub fn being_written(&self) -> Option<PathBuf> {
        self.shared.written().first().cloned()
    }
}

impl Shared {
    fn written(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        // A set of paths has no half-done state.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, event: notify::Result<Event>) {
        let Ok(event) = event else {
            self.changed.notify_one();
            return;
        };
        if event.need_rescan() {
            // Events were lost, a close among them perhaps.
            self.written().clear();
        }
        match event.kind {
            EventKind::Modify(ModifyKind::Data(_)) => {
                self.written().extend(event.paths.into_iter().filter(|path| is_wanted(path)));
            }
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Remove(_)
            | EventKind::Modify(ModifyKind::Name(_)) => {
                let mut written = self.written();
                written.retain(|path| !event.paths.contains(path));
            }
            // Our own reading is no change.
            EventKind::Access(_) => return,
            _ => {}
        }
        self.changed.notify_one();
    }
}
