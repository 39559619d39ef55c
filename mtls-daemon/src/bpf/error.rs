//! Why the kernel side cannot be set up, in words that name the missing feature.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The kernel lacks something that fail-closed interception needs. Exit code 69.
    #[error(
        "this kernel lacks {feature} (Linux {since} and later have it{option}). Without it the daemon cannot keep \
         enrolled workloads' traffic out of the clear, so it does not start. {cause}"
    )]
    Missing { feature: &'static str, since: &'static str, option: String, cause: String },
    #[error(
        "the eBPF object speaks ABI {object}, this daemon speaks ABI {daemon}: build both from one tree, or unset MTLS_EBPF_OBJECT"
    )]
    Abi { object: u32, daemon: u32 },
    #[error("cannot read the eBPF object {path}: {error}")]
    Object { path: PathBuf, error: io::Error },
    #[error("cannot load the eBPF object: {0}")]
    Load(#[from] aya::EbpfError),
    #[error("the kernel refuses program {program}: {error}")]
    Program { program: String, error: aya::programs::ProgramError },
    /// The verifier refuses it, and no missing feature explains that.
    #[error("the kernel refuses program {program}: {error}{}{log}", hint(.error))]
    Refused { program: String, error: io::Error, log: String },
    #[error("the eBPF object has no {what} {name}: it was built from another tree")]
    Incomplete { what: &'static str, name: String },
    #[error("map {map}: {error}")]
    Map { map: &'static str, error: aya::maps::MapError },
    #[error("{what} {path}: {error}")]
    Path { what: &'static str, path: PathBuf, error: io::Error },
    #[error("{what}: {error}")]
    Call { what: &'static str, error: io::Error },
    #[error(
        "the BPF file system at {path} exists in this process' mount namespace only: its pins, and fail-closed with them, would end with it. \
         Run the daemon in the host's mount namespace (nsenter --mount=/proc/1/ns/mnt), or mount the host's /sys/fs/bpf into it"
    )]
    PrivateMount { path: PathBuf },
    #[error(
        "this process is in a cgroup namespace of its own and cannot open the host's cgroup root: programs attached here would not see the workloads. \
         Run the daemon in the host's cgroup namespace (nsenter --cgroup=/proc/1/ns/cgroup), or mount the host's /sys/fs/cgroup into it"
    )]
    PrivateCgroup,
    #[error(
        "network namespace {path} is enrolled by another daemon{owner}: one node daemon a namespace. \
         Take the NodeWorkload out of one of them, or run `mtls-daemon cleanup` for a daemon that is gone"
    )]
    ForeignNamespace { path: PathBuf, owner: String },
    #[error(
        "another daemon runs as this node: it holds {path}. Stop it, or give this one another --node"
    )]
    Claimed { path: PathBuf },
    #[error("no free slot: a node enrols at most {0} workloads")]
    Full(u32),
}

impl BpfError {
    /// True when the kernel itself is at fault, which has its own exit code.
    pub fn is_kernel(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }
}

/// The kernel's own "not supported" (include/linux/errno.h), which libc does not have: what its JIT
/// compiler answers when it cannot, or has no memory left.
pub(super) const ENOTSUPP: i32 = 524;

/// The daemon has checked its capabilities by then: something else forbids it.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            " (with the capabilities there: look for a seccomp filter, a security module or kernel lockdown)"
        }
        Some(ENOTSUPP) => {
            " (the JIT compiler's answer: look at the sysctls net.core.bpf_jit_enable and net.core.bpf_jit_limit)"
        }
        _ => "",
    }
}
