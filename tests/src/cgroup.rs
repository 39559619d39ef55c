//! Control groups, version 2: each pod has one, as a container would.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait;

/// Where cgroup v2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on a hybrid host.
/// `None` where it is not mounted at all; pods then have no cgroup of their own.
pub fn root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (target, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(target))
    })
}

/// Makes the cgroup `name` (a path below the root), and returns its directory.
///
/// # Errors
/// When the hierarchy is read-only or the caller is not root.
pub fn make(name: &str) -> Result<Option<PathBuf>> {
    let Some(root) = root() else { return Ok(None) };
    let directory = root.join(name);
    fs::create_dir_all(&directory)
        .with_context(|| format!("making the cgroup {}", directory.display()))?;
    Ok(Some(directory))
}

/// Moves the calling process into the cgroup.
///
/// # Errors
/// When the kernel refuses the move.
pub fn join(directory: &Path) -> Result<()> {
    fs::write(directory.join("cgroup.procs"), "0")
        .with_context(|| format!("joining the cgroup {}", directory.display()))
}

/// Kills whatever lives in the cgroup and below, and removes it.
///
/// # Errors
/// When something in it survives.
pub fn remove(directory: &Path) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    // `cgroup.kill` is Linux 5.14; before it, the testbed's own kill by namespace has done the work.
    let _ = fs::write(directory.join("cgroup.kill"), "1");
    wait::until(Duration::from_secs(5), &format!("{} to empty", directory.display()), || {
        remove_tree(directory).map_err(|error| error.to_string())
    })
}

fn remove_tree(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
}
