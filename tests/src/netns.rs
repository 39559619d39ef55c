//! Network namespaces. A thread enters one with `setns`, which needs no mount namespace of its own:
//! what the daemon mounts or pins stays visible to everybody.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

/// Where `ip netns` keeps its names.
pub const DIRECTORY: &str = "/run/netns";

/// The path of a named network namespace.
pub fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Moves the calling thread into the network namespace at `path`.
///
/// # Errors
/// When it does not exist, or the caller is not root.
pub fn enter(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("network namespace {}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("entering network namespace {} (are you root?)", path.display()))
}

/// Runs `work` on a thread inside the namespace: its sockets, and `/proc/sys/net`, are that
/// namespace's. A panic of `work` goes on in the caller.
///
/// # Errors
/// When the namespace cannot be entered, or what `work` returns.
pub fn inside<T: Send>(path: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let entered = thread::Builder::new().name("inside".into()).spawn_scoped(scope, || {
            enter(path)?;
            work()
        });
        match entered.context("starting a thread")?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The kernel's number for a namespace, as `stat` shows it.
///
/// # Errors
/// When the path cannot be read.
pub fn inode(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(path.metadata().map_err(|error| anyhow!("{}: {error}", path.display()))?.ino())
}
