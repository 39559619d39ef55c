//! Numbers and names that the kernel side and the daemon use alike.

/// Version of everything in this crate. The object carries it (as the size of the map `ABI`), the
/// pinned maps lie in a directory named after it: a daemon never reads another version's entries.
pub const ABI_VERSION: u32 = 3;

/// Mark of the daemon's connections to the application, and through `tcp_fwmark_accept` of the
/// application's ends of them: their replies to the client's address come back over `lo`. It is
/// "mtls" in ASCII, and only ever seen inside an enrolled namespace: marks do not cross a veth.
pub const MARK: u32 = 0x6d74_6c73;
/// Routing table in which every address is local. Reached by [`MARK`] only.
pub const TABLE: u32 = 28020;
/// Priority of the rule that leads to [`TABLE`]: ahead of all but `local` (0).
pub const RULE_PRIORITY: u32 = 1;

/// Workloads that one node can enrol. A slot is a workload's index in the kernel's tables.
pub const MAX_WORKLOADS: u32 = 1024;
/// Runtime threads that can share a workload's connections.
pub const MAX_WORKERS: u32 = 16;

/// In `ENROLLED` in place of a slot: the host's own network namespace, in which a workload is known by
/// its cgroup.
pub const HOST: u32 = u32::MAX;
/// How far below the cgroup root a host workload's cgroup may be. Each level costs a connect() in the
/// host's namespace a look-up.
pub const MAX_CGROUP_DEPTH: u32 = 16;

/// A workload's sockets in `LISTENERS`: by direction, family and worker.
pub const LISTENERS_PER_WORKLOAD: u32 = 4 * MAX_WORKERS;

/// Index in `LISTENERS` of one listening socket.
#[inline(always)]
pub const fn listener_index(slot: u32, inbound: bool, ipv6: bool, worker: u32) -> u32 {
    slot * LISTENERS_PER_WORKLOAD
        + (inbound as u32) * 2 * MAX_WORKERS
        + (ipv6 as u32) * MAX_WORKERS
        + worker
}

/// What a socket of the daemon's own is for, in `OWN_SOCKETS`.
pub mod role {
    /// Towards a server, from inside the client's namespace.
    pub const OUTBOUND: u32 = 1;
    /// Towards the local application, from inside its namespace.
    pub const APPLICATION: u32 = 2;
}
