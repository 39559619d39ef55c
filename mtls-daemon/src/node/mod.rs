//! A workload on this host: its namespace, what is set up in it, and keeping all of that in step
//! with the configuration.

mod cgroup;
pub mod dial;
mod enrol;
mod full;
mod host;
mod leg;
mod listeners;
mod lock;
mod netns;
mod ports;
pub mod privilege;
mod setup;
mod sweep;
mod workload;

pub use enrol::Node;
pub use lock::{Busy, NodeLock};
pub use netns::Namespace;
pub use ports::ClientPorts;
pub use sweep::{SockDestroy, sock_destroy};
pub use workload::{WorkloadState, WorkloadStatus};

use std::path::Path;

use crate::bpf::{BpfError, Leftovers};
use crate::config::NodeName;

/// What `cleanup` found and took away.
#[derive(Debug, Default)]
pub struct CleanupReport {
    /// Links and maps that were unpinned.
    pub pins: usize,
    /// Namespaces whose rules and routes were taken back.
    pub namespaces: usize,
    /// Namespaces that could not be restored, and why.
    pub problems: Vec<String>,
}

/// Why nothing was taken away.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error(transparent)]
    Bpf(#[from] BpfError),
}

impl CleanupError {
    /// A daemon runs as this node: it is to be stopped first.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Busy(Busy::Held { .. }) | Self::Bpf(BpfError::Claimed { .. }))
    }
}

/// What was done; the problems are apart.
impl std::fmt::Display for CleanupReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.pins == 0 && self.namespaces == 0 {
            return f.write_str("nothing was left in the kernel");
        }
        write!(
            f,
            "removed {} links and maps; took back rules and routes in {} network namespaces",
            self.pins, self.namespaces
        )
    }
}

/// Removes everything that a node's daemon left in the kernel: links, maps, rules and routes. From
/// then on its workloads' traffic is no longer intercepted. Refused while a daemon runs.
///
/// `run_dir` is the directory of all nodes.
pub fn cleanup(node: &NodeName, run_dir: &Path) -> Result<CleanupReport, CleanupError> {
    let _lock = NodeLock::take(&run_dir.join(node.as_str()))?;
    let mut report = CleanupReport::default();
    let Some(leftovers) = Leftovers::find(&node.pin_name())? else { return Ok(report) };
    let changed = leftovers.namespaces();
    for namespace in known_namespaces() {
        if let Some(changed) = changed.get(&namespace.cookie()) {
            match setup::restore(&namespace, *changed) {
                Ok(()) => report.namespaces += 1,
                Err(error) => report.problems.push(error.to_string()),
            }
        }
    }
    report.pins = leftovers.remove()?;
    Ok(report)
}

/// Every network namespace that has a name or a process. The pins know cookies only, and a cookie
/// leads to its namespace by looking.
fn known_namespaces() -> Vec<Namespace> {
    let mut seen = std::collections::HashSet::new();
    let named = std::fs::read_dir("/run/netns").into_iter().flatten().flatten().map(|e| e.path());
    let processes = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
        .map(|entry| entry.path().join("ns/net"));
    named
        .chain(processes)
        .filter_map(|path| {
            use std::os::unix::fs::MetadataExt;
            let inode = std::fs::metadata(&path).ok()?.ino();
            seen.insert(inode).then(|| Namespace::open(&path).ok())?
        })
        .collect()
}
