//! The two file systems that links hang on: cgroup v2 (any view of its root will do) and a BPF file
//! system that outlives this process.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use super::BpfError;

const BPFFS: &str = "/sys/fs/bpf";

/// One line of /proc/PID/mountinfo, as far as it matters here (proc(5)).
struct Mount {
    device: String,
    root: String,
    point: PathBuf,
    kind: String,
}

fn mounts(mountinfo: &str) -> Vec<Mount> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (fields, rest) = line.split_once(" - ")?;
            let fields: Vec<&str> = fields.split(' ').collect();
            Some(Mount {
                device: (*fields.get(2)?).to_owned(),
                root: (*fields.get(3)?).to_owned(),
                // the kernel escapes blanks in octal
                point: PathBuf::from(fields.get(4)?.replace("\\040", " ")),
                kind: rest.split(' ').next()?.to_owned(),
            })
        })
        .collect()
}

fn read_mountinfo(of: &str) -> Result<String, BpfError> {
    let path = PathBuf::from(format!("/proc/{of}/mountinfo"));
    fs::read_to_string(&path).map_err(|error| BpfError::Path { what: "read", path, error })
}

/// A descriptor of the cgroup v2 root. A host may have it anywhere (hybrid hosts:
/// /sys/fs/cgroup/unified) or nowhere: then it is mounted without a place in the file tree, so that
/// nothing is left behind.
///
/// In a cgroup namespace of its own a process sees its own cgroup as the root. Programs attached
/// there would not see the workloads' sockets: the host's is opened instead, or it is refused.
pub fn cgroup_root() -> Result<OwnedFd, BpfError> {
    let found = mounts(&read_mountinfo("self")?)
        .into_iter()
        .find(|mount| mount.kind == "cgroup2" && mount.root == "/");
    let seen = match found {
        Some(mount) => fs::File::open(&mount.point)
            .map(OwnedFd::from)
            .map_err(|error| BpfError::Path { what: "open cgroup", path: mount.point, error })?,
        None => {
            tracing::info!("no cgroup v2 is mounted here: using a mount of the daemon's own");
            detached_cgroup2()?
        }
    };
    if is_real_root(&seen) {
        return Ok(seen);
    }
    let root = host_cgroup2()?;
    if is_real_root(&root) { Ok(root) } else { Err(BpfError::PrivateCgroup) }
}

/// Only the root of the hierarchy has no type (cgroup-v2.rst, "cgroup.type").
fn is_real_root(cgroup: &OwnedFd) -> bool {
    !Path::new(&format!("/proc/self/fd/{}/cgroup.type", cgroup.as_raw_fd())).exists()
}

/// The cgroup v2 root as PID 1 sees it.
fn host_cgroup2() -> Result<OwnedFd, BpfError> {
    let namespace = fs::File::open("/proc/1/ns/cgroup").map_err(|_| BpfError::PrivateCgroup)?;
    std::thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWCGROUP).map_err(|_| BpfError::PrivateCgroup)?;
        detached_cgroup2()
    })
    .join()
    .unwrap_or(Err(BpfError::PrivateCgroup))
}

fn detached_cgroup2() -> Result<OwnedFd, BpfError> {
    let call = |what| move |error| BpfError::Call { what, error };
    let name = CString::new("cgroup2").expect("no NUL inside");
    // SAFETY: fsopen(2) takes a NUL-terminated name and flags.
    let context = unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), libc::FSOPEN_CLOEXEC) };
    let context = owned(context).map_err(call("fsopen cgroup2"))?;
    const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
    // SAFETY: fsconfig(2) with CMD_CREATE takes no key, value or auxiliary number.
    let created = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            std::ptr::null::<libc::c_char>(),
            std::ptr::null::<libc::c_void>(),
            0,
        )
    };
    if created < 0 {
        return Err(call("fsconfig cgroup2")(io::Error::last_os_error()));
    }
    const FSMOUNT_CLOEXEC: libc::c_uint = 1;
    // SAFETY: fsmount(2) takes the context made above and flags.
    let root = unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) };
    let root = owned(root).map_err(call("fsmount cgroup2"))?;
    // The kernel wants a descriptor opened for reading, not the mount's O_PATH one.
    fs::File::open(format!("/proc/self/fd/{}", root.as_raw_fd()))
        .map(OwnedFd::from)
        .map_err(call("open detached cgroup2"))
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a successful call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

/// Where a BPF file system is mounted that lives as long as the host does.
///
/// One that exists only in a private mount namespace (`ip netns exec`, a sandboxed systemd unit)
/// dies with it, and with it everything pinned there: refused, or mounted in the host's namespace.
pub fn bpffs() -> Result<PathBuf, BpfError> {
    if let Some(path) = lasting_bpffs()? {
        return Ok(path);
    }
    let path = PathBuf::from(BPFFS);
    if !path.is_dir() {
        fs::create_dir_all(&path).map_err(|error| BpfError::Path {
            what: "make directory",
            path: path.clone(),
            error,
        })?;
    }
    tracing::info!("mounting a BPF file system at {BPFFS}");
    let host = host_process();
    if in_mount_namespace_of(&host) {
        mount_bpffs(&path)?;
    } else {
        mount_in_namespace_of(&host, &path)?;
    }
    lasting_bpffs()?.ok_or(BpfError::PrivateMount { path })
}

fn lasting_bpffs() -> Result<Option<PathBuf>, BpfError> {
    let mut here: Vec<Mount> = mounts(&read_mountinfo("self")?);
    here.retain(|mount| mount.kind == "bpf" && mount.root == "/");
    here.sort_by_key(|mount| mount.point != Path::new(BPFFS));
    let host = host_process();
    if in_mount_namespace_of(&host) {
        return Ok(here.into_iter().next().map(|mount| mount.point));
    }
    // The same file system, seen from the host, has the same device number.
    let theirs = mounts(&read_mountinfo(&host)?);
    let lasting = here.iter().find(|mount| {
        theirs.iter().any(|other| other.kind == "bpf" && other.device == mount.device)
    });
    Ok(lasting.map(|mount| mount.point.clone()))
}

/// The process whose mount namespace stands for the host's: PID 1, or, where a process with fewer
/// capabilities may not look at that, its oldest ancestor that it may look at.
fn host_process() -> String {
    let readable = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok();
    if readable("1") {
        return "1".into();
    }
    let mut oldest = "self".to_owned();
    while let Some(parent) = parent(&oldest).filter(|parent| readable(parent)) {
        oldest = parent;
    }
    oldest
}

fn parent(pid: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().to_owned();
    (parent != "0").then_some(parent)
}

fn in_mount_namespace_of(process: &str) -> bool {
    let own = fs::read_link("/proc/self/ns/mnt").ok();
    own.is_some() && own == fs::read_link(format!("/proc/{process}/ns/mnt")).ok()
}

fn mount_bpffs(path: &Path) -> Result<(), BpfError> {
    mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), Some("mode=0700")).map_err(|error| {
        BpfError::Path { what: "mount bpf at", path: path.into(), error: error.into() }
    })
}

fn mount_in_namespace_of(process: &str, path: &Path) -> Result<(), BpfError> {
    let host = PathBuf::from(format!("/proc/{process}/ns/mnt"));
    let namespace = match fs::File::open(&host) {
        Ok(namespace) => namespace,
        Err(error) => return Err(BpfError::Path { what: "open", path: host, error }),
    };
    let path = path.to_owned();
    // A thread of its own: its file system view is unshared and moved, then thrown away.
    std::thread::spawn(move || {
        let call = |what| move |error: nix::Error| BpfError::Call { what, error: error.into() };
        unshare(CloneFlags::CLONE_FS).map_err(call("unshare(CLONE_FS)"))?;
        setns(&namespace, CloneFlags::CLONE_NEWNS).map_err(call("setns to the host's mounts"))?;
        mount_bpffs(&path)
    })
    .join()
    .unwrap_or_else(|_| {
        Err(BpfError::Call { what: "mount thread", error: io::Error::other("panicked") })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_by_field() {
        let text = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw\n\
                    40 30 0:37 / /sys/fs/cgroup/unified rw shared:11 - cgroup2 cgroup2 rw\n\
                    broken line\n";
        let found = mounts(text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].point, Path::new("/mnt 2"));
        assert_eq!((found[1].kind.as_str(), found[1].root.as_str()), ("cgroup2", "/"));
        assert_eq!(found[1].device, "0:37");
    }
}
