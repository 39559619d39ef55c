//! Names, and how everything that bears one is removed again.
//!
//! All that a testbed makes outside its own process bears its prefix, `mt<pid>x<n>`: namespaces,
//! cgroups, node names, its directory. So it can be removed by anybody who knows the prefix: by
//! `Drop`, by a signal handler, or by the next run after a SIGKILL.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{cgroup, netns, process, wait};

/// One directory per living testbed: its configuration, state, sockets.
pub const DIRECTORY: &str = "/run/mtls-tests";

/// For what would be slow on a disk. Everything in it that bears a prefix is a testbed's.
const MEMORY: &str = "/dev/shm";

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A prefix that no other testbed on this machine has.
pub fn new_prefix() -> String {
    format!("mt{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The process id in a name that bears a prefix.
fn owner(name: &str) -> Option<u32> {
    let (pid, rest) = name.strip_prefix("mt")?.split_once('x')?;
    let number = rest.split('-').next()?;
    (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(())?;
    pid.parse().ok()
}

/// The prefix in a name that bears one: `mt12x3-pod` gives `mt12x3`.
fn prefix_of(name: &str) -> &str {
    name.split('-').next().unwrap_or(name)
}

/// Held while something is made or removed that other processes' testbeds share, such as the
/// directory of named namespaces.
///
/// # Errors
/// When the caller is not root.
pub fn exclusively() -> Result<Flock<File>> {
    ensure!(nix::unistd::geteuid().is_root(), "the testbed makes network namespaces: run as root");
    fs::create_dir_all(DIRECTORY).with_context(|| format!("making {DIRECTORY}"))?;
    let path = Path::new(DIRECTORY).join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path)?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("locking {}", path.display()))
}

/// Everything left that bears a prefix of ours, by prefix.
fn prefixes() -> Vec<String> {
    let mut found = Vec::new();
    let directories = [DIRECTORY, MEMORY, netns::DIRECTORY].map(PathBuf::from).map(Some);
    let places = directories.into_iter().chain([cgroup::root()]);
    for place in places.flatten() {
        for name in names_in(&place) {
            if owner(&name).is_some() {
                found.push(prefix_of(&name).to_owned());
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Removes what testbeds of dead processes left.
///
/// # Errors
/// When the caller is not root, or something resists.
pub fn sweep() -> Result<()> {
    let dead = |prefix: &String| {
        owner(prefix).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    };
    let found: Vec<String> = prefixes().into_iter().filter(dead).collect();
    for prefix in found {
        eprintln!("testbed: removing what {prefix}, whose process is dead, left behind");
        remove(&prefix)?;
    }
    Ok(())
}

/// Removes everything of this process: for a signal handler.
///
/// # Errors
/// When something resists.
pub fn remove_own() -> Result<()> {
    for prefix in prefixes() {
        if owner(&prefix) == Some(std::process::id()) {
            remove(&prefix)?;
        }
    }
    Ok(())
}

/// Whatever still bears `prefix`, in words. Empty when nothing was left behind.
pub fn remains(prefix: &str) -> Vec<String> {
    let mut remains = Vec::new();
    let mut look = |what: &str, directory: &Path| {
        for name in names_in(directory) {
            if prefix_of(&name) == prefix {
                remains.push(format!("{what} {}", directory.join(name).display()));
            }
        }
    };
    look("network namespace", Path::new(netns::DIRECTORY));
    look("directory", Path::new(DIRECTORY));
    look("directory", Path::new(MEMORY));
    if let Some(root) = cgroup::root() {
        look("cgroup", &root);
    }
    for mount in bpf_mounts() {
        look("pins", &mount);
        for below in names_in(&mount) {
            look("pins", &mount.join(below));
        }
    }
    remains
}

/// Where BPF file systems are mounted.
pub fn bpf_mounts() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let bpf = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (target, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "bpf").then(|| PathBuf::from(target))
    });
    bpf.collect()
}

/// Removes everything that bears `prefix`: processes, what the daemon pinned, namespaces, cgroups,
/// files.
///
/// # Errors
/// When something resists; the rest is removed all the same.
pub fn remove(prefix: &str) -> Result<()> {
    let spaces: Vec<String> = names_in(Path::new(netns::DIRECTORY))
        .into_iter()
        .filter(|n| prefix_of(n) == prefix)
        .collect();
    let directory = Path::new(DIRECTORY).join(prefix);

    kill_inside(&spaces);
    // Before the namespaces go: rules and routes inside them are the daemon's to take away.
    let pins = cleanup_nodes(&directory);
    for space in &spaces {
        let path = netns::path(space);
        let _ = umount2(&path, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&path);
    }
    let mut cgroup = Ok(());
    if let Some(root) = cgroup::root() {
        let of_it = names_in(&root).into_iter().filter(|name| prefix_of(name) == prefix);
        for name in of_it {
            cgroup = cgroup.and(cgroup::remove(&root.join(name)));
        }
    }
    let in_memory =
        names_in(Path::new(MEMORY)).into_iter().filter(|name| prefix_of(name) == prefix);
    // What was not cleaned up stays noted: the next who removes this tries again.
    let notes = pins.is_ok().then_some(directory);
    let mut files = Ok(());
    for directory in in_memory.map(|name| Path::new(MEMORY).join(name)).chain(notes) {
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                files = Err(error).with_context(|| format!("removing {}", directory.display()));
            }
            _ => {}
        }
    }
    pins.and(cgroup).and(files)
}

/// Kills every process whose network namespace is one of `spaces`.
fn kill_inside(spaces: &[String]) {
    let inodes: Vec<u64> =
        spaces.iter().filter_map(|name| netns::inode(&netns::path(name)).ok()).collect();
    for name in names_in(Path::new("/proc")) {
        let Ok(pid) = name.parse::<i32>() else { continue };
        let own = u32::try_from(pid) == Ok(std::process::id());
        let space = netns::inode(Path::new(&format!("/proc/{pid}/ns/net")));
        if !own && space.is_ok_and(|inode| inodes.contains(&inode)) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// A directory in memory for the testbed with `prefix`; removed with everything else of it.
///
/// # Errors
/// When it cannot be made.
pub fn in_memory(prefix: &str, name: &str) -> Result<PathBuf> {
    let path = Path::new(MEMORY).join(format!("{prefix}-{name}"));
    fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
    Ok(path)
}

/// Where a testbed notes the nodes whose daemons it started: one empty file each.
pub fn nodes_directory(bed: &Path) -> PathBuf {
    bed.join("nodes")
}

/// The daemons' run directory in a testbed's directory.
pub fn run_directory(bed: &Path) -> PathBuf {
    bed.join("run")
}

fn cleanup_nodes(bed: &Path) -> Result<()> {
    let mut result = Ok(());
    let run = run_directory(bed);
    for node in names_in(&nodes_directory(bed)) {
        // Its daemon was killed a moment ago and may not be dead yet.
        let dead = wait::until(DYING, &format!("{node}'s daemon to let go"), || {
            let output = run_cleanup(&node, &run).map_err(|error| format!("{error:#}"))?;
            if output.status.code() == Some(BUSY) { Err(said(&output)) } else { Ok(output) }
        });
        result = result.and(dead.and_then(|output| cleaned(&node, &output)));
    }
    result
}

/// How long a killed daemon may take to be gone.
const DYING: Duration = Duration::from_secs(10);
/// The exit code of `mtls-daemon cleanup` while a daemon runs.
const BUSY: i32 = 73;

/// `mtls-daemon cleanup`: takes away what the node's daemon left in the kernel on purpose.
///
/// # Errors
/// When it fails; its own words are in the error.
pub fn cleanup_node(node: &str, run: &Path) -> Result<()> {
    cleaned(node, &run_cleanup(node, run)?)
}

fn run_cleanup(node: &str, run: &Path) -> Result<Output> {
    let mut command = Command::new(process::sibling("mtls-daemon", "MTLS_DAEMON_BIN")?);
    command.args(["cleanup", "--node", node, "--run-dir"]).arg(run);
    process::output(command)
}

fn cleaned(node: &str, output: &Output) -> Result<()> {
    ensure!(output.status.success(), "mtls-daemon cleanup --node {node}: {}", said(output));
    Ok(())
}

fn said(output: &Output) -> String {
    format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_have_an_owner() {
        assert_eq!(owner("mt12x3-full-sleep"), Some(12));
        assert_eq!(owner("mt12x3"), Some(12));
        assert_eq!(owner("mt12x"), None);
        assert_eq!(owner("mtu"), None);
        assert_eq!(owner("mt12xa-b"), None);
        assert_eq!(prefix_of("mt12x3-full-sleep"), "mt12x3");
    }
}
