//! The kernel side, as the daemon sees it: programs, maps and links that outlive the daemon. The
//! only place that names aya.
//!
//! Pins of a node lie in `<bpffs>/mtls/<node>/`: `abi-<version>/` holds the maps, `links/` the
//! links. A new daemon adopts the maps of its own ABI and gives the links its own programs; links
//! of another ABI's daemon are switched to the new maps only when those are filled.

mod error;
mod events;
mod feature;
mod link;
mod mounts;
mod object;
mod sockets;
mod tables;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::{CgroupAttachMode, Program};
use aya::{Ebpf, programs::links::FdLink};
use mtls_common::names::ABI_VERSION;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

pub use error::BpfError;
pub use feature::{Feature, Features};
pub use sockets::SocketMaps;
pub use tables::{Bypasses, Tables};

/// Name of the directory on the BPF file system that holds every node's pins.
const DIRECTORY: &str = "mtls";
/// The main load's instance of the namespace program is verified and never attached. Its slot is a
/// possible one: for one that is out of bounds the verifier would see only the way out.
const PROBED_SLOT: u32 = 0;

/// The loaded programs and pinned maps of one node.
pub struct Kernel {
    pins: Pins,
    /// One daemon a node name on this kernel, whatever its run directory.
    _claim: Flock<fs::File>,
    object: Cow<'static, [u8]>,
    cgroup: OwnedFd,
    ebpf: Ebpf,
    features: Features,
    pub tables: Tables,
}

/// Paths of one node's pins.
#[derive(Debug, Clone)]
struct Pins {
    /// Directory of all nodes.
    all: PathBuf,
    node: PathBuf,
    maps: PathBuf,
    links: PathBuf,
}

impl Pins {
    fn new(bpffs: &Path, node: &str) -> Self {
        let all = bpffs.join(DIRECTORY);
        let node = all.join(node);
        Self { maps: node.join(format!("abi-{ABI_VERSION}")), links: node.join("links"), node, all }
    }

    /// Locks the node's directory of pins. The lock is on the directory itself: a BPF file system
    /// has no other files.
    fn claim(&self) -> Result<Flock<fs::File>, BpfError> {
        let path = || self.node.clone();
        let directory = fs::File::open(&self.node).map_err(|error| BpfError::Path {
            what: "open",
            path: path(),
            error,
        })?;
        Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => BpfError::Claimed { path: path() },
            errno => BpfError::Path { what: "lock", path: path(), error: errno.into() },
        })
    }

    fn namespace_link(&self, netns_cookie: u64) -> PathBuf {
        self.links.join(namespace_link_name(netns_cookie))
    }
}

fn namespace_link_name(netns_cookie: u64) -> String {
    format!("namespace-{netns_cookie}")
}

fn make_directory(path: &Path) -> Result<(), BpfError> {
    fs::create_dir_all(path).map_err(|error| BpfError::Path {
        what: "make directory",
        path: path.into(),
        error,
    })
}

impl Kernel {
    /// Loads the programs and opens the node's maps. Nothing is attached or changed yet: links that
    /// an earlier daemon left keep its programs until [`Self::attach_cgroup`]. Features in `without` are
    /// not used, whether the kernel has them or not.
    pub fn open(node: &str, without: &[Feature]) -> Result<Self, BpfError> {
        raise_memlock();
        let cgroup = mounts::cgroup_root()?;
        let pins = Pins::new(&mounts::bpffs()?, node);
        let is_new = !pins.node.exists();
        let opened = Self::open_at(pins.clone(), cgroup, Features::all_but(without));
        // Claimed: by another of the same name that came at the same moment, whose pins these are.
        if is_new && opened.as_ref().is_err_and(|error| !matches!(error, BpfError::Claimed { .. }))
        {
            // Nothing is attached: what was pinned on the way here is of no use to anybody.
            let _ = fs::remove_dir_all(&pins.node);
            let _ = fs::remove_dir(&pins.all);
        }
        opened
    }

    fn open_at(pins: Pins, cgroup: OwnedFd, mut features: Features) -> Result<Self, BpfError> {
        make_directory(&pins.maps)?;
        make_directory(&pins.links)?;
        let claim = pins.claim()?;
        let object = object::bytes()?;
        let load = |features| object::load_verified(&object, &pins.maps, PROBED_SLOT, features);
        let ebpf = loop {
            match load(features) {
                Ok(ebpf) => break ebpf,
                Err(error) => features = features.without_refused(&error).ok_or(error)?,
            }
        };
        for feature in features.missing() {
            tracing::warn!(%feature, "doing without a feature of newer kernels (docs/kernels.md)");
        }
        let tables = Tables::open(&pins.maps)?;
        Ok(Self { pins, _claim: claim, object, cgroup, ebpf, features, tables })
    }

    /// What this kernel has of what can be done without.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Reads the programs' log lines into the daemon's log. Needs a runtime.
    pub fn follow_log(&mut self) {
        events::follow(&mut self.ebpf);
    }

    /// Handles for one runtime thread.
    pub fn socket_maps(&self) -> Result<SocketMaps, BpfError> {
        SocketMaps::open(&self.pins.maps, self.features)
    }

    /// Attaches the cgroup programs, or gives the pinned links of an earlier daemon these ones. To
    /// be called when every known workload is in the tables, so that a switch from another ABI
    /// leaves none of them in the clear.
    pub fn attach_cgroup(&mut self) -> Result<(), BpfError> {
        for wanted in object::CGROUP_PROGRAMS {
            let path = self.pins.links.join(wanted.name);
            let program = object::program(&mut self.ebpf, wanted.name)?;
            if let Some(link) = reopen(&path)? {
                let fd = program_fd(program)?;
                link::update(link.as_fd(), fd.as_fd()).map_err(|error| BpfError::Path {
                    what: "give the pinned link its new program:",
                    path,
                    error,
                })?;
                continue;
            }
            let link = attach_to_cgroup(program, wanted.name, self.cgroup.as_fd())?;
            pin(link, &path)?;
        }
        self.remove_other_abis();
        Ok(())
    }

    /// Maps of other ABIs: no link uses them any more.
    fn remove_other_abis(&self) {
        let Ok(entries) = fs::read_dir(&self.pins.node) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let is_maps =
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("abi-"));
            if is_maps && path != self.pins.maps {
                tracing::info!(path = %path.display(), "removing the maps of another version");
                if let Err(error) = fs::remove_dir_all(&path) {
                    tracing::warn!(%error, path = %path.display(), "could not remove old maps");
                }
            }
        }
    }

    /// Attaches this workload's own instance of the namespace program, or gives the pinned link of
    /// an earlier daemon this one. The workload's entry must be in the tables.
    pub fn attach_namespace(
        &mut self,
        namespace: BorrowedFd<'_>,
        path: &Path,
        netns_cookie: u64,
        slot: u32,
    ) -> Result<(), BpfError> {
        self.attach_lookup(object::LOOKUP_PROGRAM, namespace, path, netns_cookie, slot)
    }

    /// The same for the host's own namespace, once for all workloads there.
    pub fn attach_host(
        &mut self,
        namespace: BorrowedFd<'_>,
        path: &Path,
        netns_cookie: u64,
    ) -> Result<(), BpfError> {
        self.attach_lookup(object::HOST_PROGRAM, namespace, path, netns_cookie, PROBED_SLOT)
    }

    fn attach_lookup(
        &mut self,
        name: &'static str,
        namespace: BorrowedFd<'_>,
        path: &Path,
        netns_cookie: u64,
        slot: u32,
    ) -> Result<(), BpfError> {
        let mut instance = object::load(&self.object, &self.pins.maps, slot, self.features)?;
        let program = object::verify_lookup(&mut instance, name)?;
        let failed = |error| BpfError::Program { program: name.into(), error };
        let pin_path = self.pins.namespace_link(netns_cookie);
        if let Some(link) = reopen(&pin_path)? {
            let fd = program.fd().map_err(failed)?;
            match link::update(link.as_fd(), fd.as_fd()) {
                Ok(()) => return Ok(()),
                // The namespace it was attached to is gone.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => unpin(&pin_path)?,
                Err(error) => {
                    return Err(BpfError::Path { what: "update link", path: pin_path, error });
                }
            }
        }
        self.refuse_foreign(namespace, path, netns_cookie)?;
        let id = program.attach(namespace).map_err(failed)?;
        let link: FdLink = program.take_link(id).map_err(failed)?.into();
        pin(link, &pin_path)
    }

    /// Cookies of the namespaces that are attached, also by a daemon of another ABI, whose tables
    /// are not these.
    pub fn attached_namespaces(&self) -> Vec<u64> {
        pinned_namespaces(&self.pins)
    }

    /// A namespace belongs to one node's daemon.
    pub fn refuse_foreign(
        &self,
        namespace: BorrowedFd<'_>,
        path: &Path,
        netns_cookie: u64,
    ) -> Result<(), BpfError> {
        if self.pins.namespace_link(netns_cookie).exists() {
            return Ok(());
        }
        let pinned = fs::read_dir(&self.pins.all).into_iter().flatten().flatten().find(|node| {
            node.path() != self.pins.node
                && node.path().join("links").join(namespace_link_name(netns_cookie)).exists()
        });
        // Its pins may be out of sight. Its programs have names where the kernel has tracepoints, by which
        // the loader library finds out whether it has names.
        if pinned.is_none() && !is_attached(namespace)? {
            return Ok(());
        }
        let owner = pinned.map(|node| format!(", of node {}", node.file_name().to_string_lossy()));
        Err(BpfError::ForeignNamespace { path: path.into(), owner: owner.unwrap_or_default() })
    }

    /// Whether a namespace that is attached still exists. A namespace without a name lives on as
    /// long as a process or a socket is in it.
    pub fn namespace_lives(&self, netns_cookie: u64) -> Result<bool, BpfError> {
        let path = self.pins.namespace_link(netns_cookie);
        match reopen(&path)? {
            None => Ok(false),
            Some(link) => link::namespace_lives(link.as_fd()).map_err(|error| BpfError::Path {
                what: "ask the link at",
                path,
                error,
            }),
        }
    }

    /// Detaches from a namespace (which may be gone already).
    pub fn detach_namespace(&mut self, netns_cookie: u64) -> Result<(), BpfError> {
        unpin(&self.pins.namespace_link(netns_cookie))
    }

    /// The cgroup v2 root that the programs are attached to.
    pub fn cgroup_root(&self) -> BorrowedFd<'_> {
        self.cgroup.as_fd()
    }

    /// The attached programs and where each is attached, for `status`.
    pub fn programs(&self) -> Vec<(String, String)> {
        let pinned = |name: &str| self.pins.links.join(name).exists();
        let cgroup = object::CGROUP_PROGRAMS
            .iter()
            .filter(|program| pinned(program.name))
            .map(|program| (program.name.to_owned(), "cgroup v2 root".to_owned()));
        let hosts = self.tables.hosts();
        let of = |host: bool| {
            let of_kind = |cookie: &&u64| hosts.contains(cookie) == host;
            pinned_namespaces(&self.pins).iter().filter(of_kind).count()
        };
        let lookup =
            (object::LOOKUP_PROGRAM.to_owned(), format!("{} network namespaces", of(false)));
        let host = (of(true) > 0)
            .then(|| (object::HOST_PROGRAM.to_owned(), "the host's network namespace".to_owned()));
        cgroup.chain([lookup]).chain(host).collect()
    }

    /// Instructions that the verifier went through for each program. Empty where the kernel does not
    /// tell (before Linux 5.16).
    pub fn instructions(&self) -> BTreeMap<String, u32> {
        let counts = self.ebpf.programs().filter_map(|(name, program)| {
            Some((name.to_owned(), program.info().ok()?.verified_instruction_count()?))
        });
        counts.collect()
    }
}

/// Whether one of our programs, whoever loaded it, looks up the namespace's sockets.
fn is_attached(namespace: BorrowedFd<'_>) -> Result<bool, BpfError> {
    let attached = link::lookup_programs(namespace)
        .map_err(|error| BpfError::Call { what: "query sk_lookup programs", error })?;
    Ok(aya::programs::loaded_programs().flatten().any(|info| {
        attached.contains(&info.id()) && info.name_as_str().is_some_and(object::is_lookup_program)
    }))
}

fn pinned_namespaces(pins: &Pins) -> Vec<u64> {
    let entries = fs::read_dir(&pins.links).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("namespace-")?.parse().ok())
        .collect()
}

/// Cookies of the namespaces that a node's pins are attached to, and the way to remove them all.
/// Works without loading anything, so also after a crash or with another version's pins.
pub struct Leftovers {
    pins: Pins,
    _claim: Flock<fs::File>,
}

impl Leftovers {
    /// None when the node has no pins.
    pub fn find(node: &str) -> Result<Option<Self>, BpfError> {
        let pins = Pins::new(&mounts::bpffs()?, node);
        if !pins.node.is_dir() {
            return Ok(None);
        }
        let claim = pins.claim()?;
        Ok(Some(Self { pins, _claim: claim }))
    }

    /// The namespaces of the workloads that were enrolled, by cookie, and what enrolment changed in
    /// each (nothing where the maps are another version's and cannot be read).
    pub fn namespaces(&self) -> HashMap<u64, u32> {
        let mut found: HashMap<u64, u32> =
            pinned_namespaces(&self.pins).into_iter().map(|cookie| (cookie, 0)).collect();
        if let Ok(tables) = Tables::open(&self.pins.maps) {
            found.extend(tables.workloads().map(|(_, entry)| (entry.netns_cookie, entry.changed)));
            // In the host's own, enrolment changes nothing.
            let hosts = tables.hosts();
            found.retain(|cookie, _| !hosts.contains(cookie));
        }
        found
    }

    /// Unpins every link and map: with the last reference gone, the kernel detaches the programs.
    /// Returns how many pins there were.
    pub fn remove(self) -> Result<usize, BpfError> {
        let mut removed = 0;
        // Outbound and namespace links first, then what they use.
        let mut directories = vec![self.pins.links.clone()];
        let entries = fs::read_dir(&self.pins.node).map_err(|error| BpfError::Path {
            what: "read",
            path: self.pins.node.clone(),
            error,
        })?;
        directories.extend(
            entries.flatten().map(|entry| entry.path()).filter(|path| *path != self.pins.links),
        );
        for directory in directories {
            for pin in fs::read_dir(&directory).into_iter().flatten().flatten() {
                unpin(&pin.path())?;
                removed += 1;
            }
            remove_directory(&directory)?;
        }
        remove_directory(&self.pins.node)?;
        // Another node's pins may still be there; then it stays.
        let _ = fs::remove_dir(&self.pins.all);
        Ok(removed)
    }
}

fn remove_directory(path: &Path) -> Result<(), BpfError> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(BpfError::Path { what: "remove", path: path.into(), error })
        }
        _ => Ok(()),
    }
}

fn reopen(path: &Path) -> Result<Option<OwnedFd>, BpfError> {
    match link::open_pinned(path) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(BpfError::Path { what: "open the pinned link", path: path.into(), error })
        }
    }
}

fn pin(link: FdLink, path: &Path) -> Result<(), BpfError> {
    link.pin(path).map(drop).map_err(|error| BpfError::Path {
        what: "pin link",
        path: path.into(),
        error: io::Error::other(error),
    })
}

fn unpin(path: &Path) -> Result<(), BpfError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(BpfError::Path { what: "unpin", path: path.into(), error })
        }
        _ => Ok(()),
    }
}

fn program_fd(program: &Program) -> Result<BorrowedFd<'_>, BpfError> {
    program
        .fd()
        .map(AsFd::as_fd)
        .map_err(|error| BpfError::Program { program: "cgroup program".into(), error })
}

fn attach_to_cgroup(
    program: &mut Program,
    name: &str,
    cgroup: BorrowedFd<'_>,
) -> Result<FdLink, BpfError> {
    let failed = |error| BpfError::Program { program: name.into(), error };
    // `Single`: a link is multi-attach by its nature, and refuses the flag that says so.
    let mode = CgroupAttachMode::Single;
    let link = match program {
        Program::SockOps(program) => {
            let id = program.attach(cgroup, mode).map_err(failed)?;
            program.take_link(id).map_err(failed)?.try_into()
        }
        Program::CgroupSockAddr(program) => {
            let id = program.attach(cgroup, mode).map_err(failed)?;
            program.take_link(id).map_err(failed)?.try_into()
        }
        _ => return Err(BpfError::Incomplete { what: "cgroup program", name: name.into() }),
    };
    link.map_err(|error| BpfError::Call {
        what: "attach a cgroup program by link (Linux 5.7)",
        error: io::Error::other(error),
    })
}

/// Kernels before 5.11 account maps against this limit; raising it can be refused (no
/// CAP_SYS_RESOURCE), which matters only there.
fn raise_memlock() {
    use nix::sys::resource::{Resource, rlim_t, setrlimit};
    const UNLIMITED: rlim_t = rlim_t::MAX;
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, UNLIMITED, UNLIMITED) {
        tracing::warn!(%error, "RLIMIT_MEMLOCK stays as it is; kernels before 5.11 may refuse maps");
    }
}
