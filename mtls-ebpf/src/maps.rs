//! Every map, who writes it and who reads it. All are pinned by the daemon and outlive it.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, SockMap};
use aya_ebpf::helpers::generated::bpf_get_current_ancestor_cgroup_id;
use aya_ebpf::macros::btf_map;
use mtls_common::event::Decision;
use mtls_common::flow::{Address, Destination, Flow, FlowKey};
use mtls_common::names::{
    ABI_VERSION, HOST, LISTENERS_PER_WORKLOAD, MAX_CGROUP_DEPTH, MAX_WORKLOADS,
};
use mtls_common::workload::{
    HostPort, HostPortKey, InboundKey, ListenerTag, OutboundKey, OwnAddressKey, Workload,
};

use crate::socket::{CLONE, SocketStorage};

const SPARSE: usize = BPF_F_NO_PREALLOC as usize;
const WORKLOADS_MAX: usize = MAX_WORKLOADS as usize;

/// Its size is the ABI version of this object. Read by the daemon before anything is attached.
#[btf_map]
pub static ABI: Array<u32, { ABI_VERSION as usize }> = Array::new();

/// Namespace cookie -> slot, or `names::HOST`. Written by the daemon; read by connect and sock_ops. An entry here is
/// what "enrolled" means to the outbound side.
#[btf_map]
pub static ENROLLED: HashMap<u64, u32, WORKLOADS_MAX> = HashMap::new();

/// Cgroup id -> slot, of workloads in the host's namespace. Written by the daemon, whenever such a cgroup
/// comes or goes; read by connect and getsockname.
#[btf_map]
pub static CGROUPS: HashMap<u64, u32, WORKLOADS_MAX> = HashMap::new();

/// What in the host's namespace is a workload's: its declared ports, and the daemon's listeners for what
/// it sends. Whatever has no row there is untouched. Written by the daemon.
#[btf_map]
pub static HOST_PORTS: HashMap<HostPortKey, HostPort, 65536, SPARSE> = HashMap::new();

/// Slot -> workload. Written by the daemon (an update replaces the entry whole).
#[btf_map]
pub static WORKLOADS: HashMap<u32, Workload, WORKLOADS_MAX> = HashMap::new();

/// Addresses that a workload receives on. Written by the daemon.
#[btf_map]
pub static OWN_ADDRESSES: HashMap<OwnAddressKey, u32, 16384, SPARSE> = HashMap::new();

/// Destinations with an answer of their own, by client. Written by the daemon; when it is full the
/// missing rows are redirected, which is slower and never less safe.
#[btf_map]
pub static OUTBOUND: HashMap<OutboundKey, u32, 262144, SPARSE> = HashMap::new();

/// Addresses of the mesh's workloads and services. Written by the daemon.
#[btf_map]
pub static MESH_ADDRESSES: HashMap<Address, u32, 262144, SPARSE> = HashMap::new();

/// Ranges in which an unknown address is the daemon's to resolve. Written by the daemon.
#[btf_map]
pub static MESH_RANGES: LpmTrie<Address, u32, 1024> = LpmTrie::new();

/// Inbound ports with an answer of their own. Written by the daemon.
#[btf_map]
pub static INBOUND: HashMap<InboundKey, u32, 65536, SPARSE> = HashMap::new();

/// The in-pod listeners, at `names::listener_index`. Written by the daemon; a listener leaves by
/// itself when its socket closes, and then its connections drop.
#[btf_map]
pub static LISTENERS: SockMap<{ (MAX_WORKLOADS * LISTENERS_PER_WORKLOAD) as usize }> =
    SockMap::new();

/// Original destinations during the handshake of a redirected connection. Written at the client's
/// SYN, taken at the daemon's accept; removed when a connect fails, and swept by the daemon.
#[btf_map]
pub static FLOWS: HashMap<FlowKey, Flow, 131072, SPARSE> = HashMap::new();

/// The daemon's connections to applications that come from loopback, during their handshake, and the
/// client of each. Written by sock_ops at the SYN of a socket in `OWN_SOCKETS`: nobody else can have that
/// 4-tuple then. Read by sk_lookup, taken by sock_ops at the application's accept. Empty where sk_lookup
/// knows the interface, but for workloads of the host.
#[btf_map]
pub static APPLICATION_LEGS: HashMap<FlowKey, Flow, 131072, SPARSE> = HashMap::new();

/// The daemon's own sockets and their role, by socket. Written by the daemon, by descriptor, before
/// connect: no workload can, whatever its capabilities.
#[btf_map]
pub static OWN_SOCKETS: SocketStorage<u32, SPARSE> = SocketStorage::new();

/// The daemon's listeners; their accepted sockets inherit it. Written by the daemon.
#[btf_map]
pub static LISTENER_TAG: SocketStorage<ListenerTag, { SPARSE | CLONE }> = SocketStorage::new();

/// What an application's redirected socket asked for. Written by connect; read by sock_ops,
/// getpeername and getsockname; gone with the socket. On an application's accepted socket (written by
/// sock_ops, from `APPLICATION_LEGS`) the client that getpeername shows; on the daemon's end of that
/// connection the same, written by the daemon before it connects.
#[btf_map]
pub static CLIENT_DESTINATION: SocketStorage<Destination, SPARSE> = SocketStorage::new();

/// The same, on the daemon's accepted socket. Written by sock_ops; read by the daemon.
#[btf_map]
pub static ACCEPTED_DESTINATION: SocketStorage<Destination, SPARSE> = SocketStorage::new();

/// Counters, by `event::Decision`. Read by the daemon.
#[btf_map]
pub static DECISIONS: PerCpuArray<u64, { Decision::COUNT as usize }> = PerCpuArray::new();

#[inline(always)]
pub fn count(decision: Decision) {
    if let Some(counter) = DECISIONS.get_ptr_mut(decision as u32) {
        // SAFETY: a per-CPU slot that the verifier has bounded; programs do not migrate.
        unsafe { *counter += 1 };
    }
}

/// The workload at `slot`.
#[inline(always)]
pub fn workload(slot: u32) -> Option<&'static Workload> {
    // SAFETY: the daemon replaces entries whole; a freed one stays readable until this program ends.
    unsafe { WORKLOADS.get(slot) }
}

/// The slot of an enrolled namespace.
#[inline(always)]
pub fn slot(netns_cookie: u64) -> Option<u32> {
    // SAFETY: as in `workload`; the value is copied at once.
    unsafe { ENROLLED.get(netns_cookie) }.copied()
}

/// Whether sk_lookup programs know the interface that a SYN came in by (Linux 5.17). Set by the daemon
/// when it loads the programs, in rodata: where it is 0 the verifier never follows a branch that needs it.
#[unsafe(no_mangle)]
static HAS_INGRESS_IFINDEX: u32 = 1;

#[inline(always)]
pub fn has_ingress_ifindex() -> bool {
    // SAFETY: a constant of this instance, volatile so that the loader's value is read.
    unsafe { core::ptr::read_volatile(&raw const HAS_INGRESS_IFINDEX) != 0 }
}

/// The client of the daemon's connection from loopback that `key` names, during its handshake.
#[inline(always)]
pub fn leg(key: FlowKey) -> Option<Destination> {
    // SAFETY: as in `workload`; the value is copied at once.
    unsafe { APPLICATION_LEGS.get(key) }.map(|flow| flow.destination)
}

/// Whether the current task can be asked for its cgroup (Linux 5.7), in rodata as the constant above.
#[unsafe(no_mangle)]
static HAS_CGROUP_ID: u32 = 1;

/// The workload whose connections the current task makes in the namespace `cookie`.
#[inline(always)]
pub fn slot_of_current(netns_cookie: u64) -> Option<u32> {
    match slot(netns_cookie)? {
        HOST => slot_of_cgroup(),
        slot => Some(slot),
    }
}

/// By the current task's cgroup or the nearest one above it that is a workload's.
#[inline(always)]
fn slot_of_cgroup() -> Option<u32> {
    // SAFETY: as in `has_ingress_ifindex`.
    if unsafe { core::ptr::read_volatile(&raw const HAS_CGROUP_ID) } == 0 {
        return None;
    }
    // Not an Option: half of a None is undefined, and kernels before 6.3 refuse to read it from the stack.
    let mut found = HOST;
    for level in 1..=MAX_CGROUP_DEPTH {
        // SAFETY: the helper takes a number.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
        if id == 0 {
            break;
        }
        // SAFETY: as in `workload`; the value is copied at once.
        if let Some(slot) = unsafe { CGROUPS.get(id) } {
            found = *slot;
        }
    }
    (found != HOST).then_some(found)
}

/// Whose connections to `address` and `port` are, in the host's namespace.
#[inline(always)]
pub fn host_port(address: Address, port: u16) -> Option<HostPort> {
    // SAFETY: as in `workload`; the value is copied at once.
    unsafe { HOST_PORTS.get(HostPortKey { address, port: port.into() }) }.copied()
}

#[inline(always)]
pub fn is_own_address(slot: u32, address: Address) -> bool {
    // SAFETY: as in `workload`; only presence matters.
    unsafe { OWN_ADDRESSES.get(OwnAddressKey { slot, address }) }.is_some()
}
