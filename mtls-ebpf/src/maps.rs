//! Every map, who writes it and who reads it. All are pinned by the daemon and outlive it.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, SockMap};
use aya_ebpf::macros::btf_map;
use mtls_common::event::Decision;
use mtls_common::flow::{Address, Destination, Flow, FlowKey, LegKey};
use mtls_common::names::{ABI_VERSION, LISTENERS_PER_WORKLOAD, MAX_WORKLOADS};
use mtls_common::workload::{InboundKey, ListenerTag, OutboundKey, OwnAddressKey, Workload};

use crate::socket::{CLONE, SocketStorage};

const SPARSE: usize = BPF_F_NO_PREALLOC as usize;
const WORKLOADS_MAX: usize = MAX_WORKLOADS as usize;

/// Its size is the ABI version of this object. Read by the daemon before anything is attached.
#[btf_map]
pub static ABI: Array<u32, { ABI_VERSION as usize }> = Array::new();

/// Namespace cookie -> slot. Written by the daemon; read by connect and sock_ops. An entry here is
/// what "enrolled" means to the outbound side.
#[btf_map]
pub static ENROLLED: HashMap<u64, u32, WORKLOADS_MAX> = HashMap::new();

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

/// The daemon's connections to applications that come from loopback, and the client of each. Written by
/// the daemon before it connects, read by sk_lookup, taken by sock_ops at the application's accept. Empty
/// where sk_lookup knows the interface.
#[btf_map]
pub static APPLICATION_LEGS: HashMap<LegKey, Destination, 131072, SPARSE> = HashMap::new();

/// The daemon's own sockets and their role, by socket. Written by the daemon, by descriptor, before
/// connect: no pod can, whatever its capabilities.
#[btf_map]
pub static OWN_SOCKETS: SocketStorage<u32, SPARSE> = SocketStorage::new();

/// The daemon's listeners; their accepted sockets inherit it. Written by the daemon.
#[btf_map]
pub static LISTENER_TAG: SocketStorage<ListenerTag, { SPARSE | CLONE }> = SocketStorage::new();

/// What an application's redirected socket asked for. Written by connect; read by sock_ops,
/// getpeername and getsockname; gone with the socket. On an application's accepted socket (written by
/// sock_ops, from `APPLICATION_LEGS`) the client that getpeername shows.
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

/// The client of the daemon's connection from loopback that `key` names.
#[inline(always)]
pub fn leg(key: LegKey) -> Option<Destination> {
    // SAFETY: as in `workload`; the value is copied at once.
    unsafe { APPLICATION_LEGS.get(key) }.copied()
}

#[inline(always)]
pub fn is_own_address(slot: u32, address: Address) -> bool {
    // SAFETY: as in `workload`; only presence matters.
    unsafe { OWN_ADDRESSES.get(OwnAddressKey { slot, address }) }.is_some()
}
