//! Tells which identities' files changed: told by the kernel (inotify), and by a look every second
//! where that says nothing (network file systems, links that lead elsewhere, no inotify left).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::layout::{self, Problem, Scan, Stamp};
use super::{Files, SETTLE};
use crate::identity::SpiffeId;

/// How often the files are looked at without being told.
const POLL: Duration = Duration::from_secs(1);
/// A directory that never comes to rest is read all the same.
const RESTLESS: u32 = 10;

impl Files {
    /// Calls `on_change` with the identities whose certificate, key or roots changed, appeared or
    /// went. Never ends.
    pub async fn follow(self: Arc<Self>, on_change: impl Fn(&BTreeSet<SpiffeId>)) {
        let told = Arc::new(Notify::new());
        let mut watch = Watch::default();
        let mut known: BTreeMap<SpiffeId, [u8; 32]> = BTreeMap::new();
        let mut problems: BTreeSet<Problem> = BTreeSet::new();
        let mut handled: Option<Stamp> = None;
        loop {
            let mut now = self.clone().stamp().await;
            if handled.as_ref() == Some(&now) {
                timeout(POLL, told.notified()).await.ok();
                continue;
            }
            watch.on(&now.directories, &told);
            // A writer needs several steps.
            for _ in 0..RESTLESS {
                sleep(SETTLE).await;
                let later = self.clone().stamp().await;
                if later == now {
                    break;
                }
                now = later;
            }
            let source = self.clone();
            let Ok(scan) = tokio::task::spawn_blocking(move || source.scan()).await else {
                continue;
            };
            handled = Some(now);
            report(&scan, &mut problems);
            let found = scan.sets.iter().map(|(id, set)| (id.clone(), set.fingerprint)).collect();
            let changed = differences(&known, &found);
            known = found;
            if !changed.is_empty() {
                on_change(&changed);
            }
        }
    }

    async fn stamp(self: Arc<Self>) -> Stamp {
        let stamp = tokio::task::spawn_blocking(move || layout::stamp(&self.directory)).await;
        stamp.unwrap_or_default()
    }
}

type Prints = BTreeMap<SpiffeId, [u8; 32]>;

fn differences(before: &Prints, after: &Prints) -> BTreeSet<SpiffeId> {
    let ids = before.keys().chain(after.keys());
    ids.filter(|id| before.get(*id) != after.get(*id)).cloned().collect()
}

/// Each problem once, until it is another one or gone.
fn report(scan: &Scan, told: &mut BTreeSet<Problem>) {
    let now: BTreeSet<Problem> = scan.problems.iter().cloned().collect();
    for Problem { file, why } in now.difference(told) {
        tracing::warn!(file = %file.display(), %why, "a certificate's file is not used");
    }
    *told = now;
}

/// The kernel's word about some directories.
#[derive(Default)]
struct Watch {
    directories: Vec<PathBuf>,
    /// None: inotify is not to be had, looking at the files has to do.
    watcher: Option<RecommendedWatcher>,
}

impl Watch {
    fn on(&mut self, directories: &[PathBuf], told: &Arc<Notify>) {
        if self.directories == directories && self.watcher.is_some() {
            return;
        }
        self.directories = directories.to_vec();
        let tell = told.clone();
        let made = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // Our own reading is no change.
            if !matches!(event, Ok(Event { kind: EventKind::Access(_), .. })) {
                tell.notify_one();
            }
        });
        self.watcher = made
            .map(|mut watcher| {
                for directory in directories {
                    // One that went away meanwhile shows in the next look.
                    watcher.watch(directory, RecursiveMode::NonRecursive).ok();
                }
                watcher
            })
            .map_err(|error| {
                tracing::warn!(%error, "certificates' files are looked at every second: no inotify");
            })
            .ok();
    }
}
