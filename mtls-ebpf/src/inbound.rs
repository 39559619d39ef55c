//! sk_lookup: which listener a SYN to an enrolled namespace finds.
//!
//! One instance per workload: the program type has no namespace cookie, and addresses and ports can
//! repeat in other namespaces, so the daemon writes the workload's slot into each instance.

use aya_ebpf::bindings::{BPF_SK_LOOKUP_F_NO_REUSEPORT, bpf_sk_lookup};
use aya_ebpf::programs::SkLookupContext;
use mtls_common::event::Decision;
use mtls_common::flow::{Address, FlowKey};
use mtls_common::names::{MAX_WORKERS, MAX_WORKLOADS, listener_index};
use mtls_common::workload::{InboundKey, Workload, bypass};

use crate::field;
use crate::maps::{self, INBOUND, LISTENERS, count};

const AF_INET: u32 = 2;
pub const IPPROTO_TCP: u32 = 6;
const LOOPBACK_INTERFACE: u32 = 1;

/// The workload that this instance serves. Set by the daemon when it loads the program.
#[unsafe(no_mangle)]
static SLOT: u32 = u32::MAX;

/// True: the lookup goes on (with the listener selected here, if one was). False: dropped.
#[inline(always)]
pub fn lookup(ctx: &SkLookupContext) -> bool {
    let lookup = ctx.lookup;
    if field!(lookup, protocol) != IPPROTO_TCP {
        return true;
    }
    // SAFETY: a constant of this instance, volatile so that the loader's value is read.
    let slot = unsafe { core::ptr::read_volatile(&raw const SLOT) };
    if slot >= MAX_WORKLOADS {
        return false;
    }
    // An instance without its workload (the daemon is taking it down, or has not finished) drops.
    let Some(workload) = maps::workload(slot) else { return false };
    let syn = Syn::read(lookup);

    // The listeners' ports are the daemon's, dead or alive: a process of the pod that binds one
    // never gets a connection there.
    if workload.outbound_port != 0 && syn.port == workload.outbound_port {
        // Redirected connections come from loopback, or (device-bound sockets) from the pod itself.
        if syn.remote.is_loopback() || maps::is_own_address(slot, syn.remote) {
            return select(ctx, slot, workload, &syn, false);
        }
        return drop(Decision::InboundRefused);
    }
    if workload.inbound_port != 0 && syn.port == workload.inbound_port {
        return drop(Decision::InboundRefused);
    }

    if is_over_loopback(lookup, workload, &syn) {
        count(Decision::InboundLocal);
        return true;
    }
    if !maps::is_own_address(slot, syn.local) {
        return drop(Decision::InboundUnknownAddress);
    }
    // The pod calls itself. From outside such a source is not routable: its answers stay here.
    if maps::is_own_address(slot, syn.remote) {
        count(Decision::InboundLocal);
        return true;
    }
    if is_untouched(slot, workload, syn.port) {
        count(Decision::InboundUntouched);
        return true;
    }
    select(ctx, slot, workload, &syn, true)
}

/// The pod's own loopback traffic, and the daemon's connection to the application.
#[inline(always)]
fn is_over_loopback(lookup: *mut bpf_sk_lookup, workload: &Workload, syn: &Syn) -> bool {
    if maps::has_ingress_ifindex() {
        // Only lo itself shows as this interface; the daemon's connection is bound to it.
        return field!(lookup, ingress_ifindex) == LOOPBACK_INTERFACE;
    }
    // Nothing from outside has a loopback address: such packets are dropped as they come in (the daemon
    // enrols no namespace in which `route_localnet` would let them through).
    if syn.local.is_loopback() {
        return true;
    }
    // What else comes from there is the way of the pod's own call of a service that it serves itself:
    // that one is the daemon's to take.
    is_leg(workload, syn)
}

/// The daemon's connection to the application, from loopback.
#[inline(always)]
pub fn is_leg(workload: &Workload, syn: &Syn) -> bool {
    let loopback = if syn.ipv6 { Address::LOOPBACK6 } else { Address::LOOPBACK4 };
    let key = FlowKey {
        netns_cookie: workload.netns_cookie,
        client: syn.remote,
        server: syn.local,
        client_port: syn.remote_port,
        server_port: syn.port,
        _padding: 0,
    };
    syn.remote == loopback && maps::leg(key).is_some()
}

/// Whether policy leaves a port's connections to the application.
#[inline(always)]
pub fn is_untouched(slot: u32, workload: &Workload, port: u16) -> bool {
    // SAFETY: copied at once.
    match unsafe { INBOUND.get(InboundKey { slot, port: port.into() }) }.copied() {
        Some(answer) => answer == bypass::UNTOUCHED,
        None => workload.inbound_untouched != 0,
    }
}

pub struct Syn {
    pub ipv6: bool,
    pub local: Address,
    pub remote: Address,
    /// Local port, host byte order.
    pub port: u16,
    pub remote_port: u16,
}

impl Syn {
    #[inline(always)]
    pub fn read(lookup: *mut bpf_sk_lookup) -> Self {
        let ipv6 = field!(lookup, family) != AF_INET;
        let (mut local, mut remote) = (Address::default(), Address::default());
        if ipv6 {
            addresses6(lookup, &mut local, &mut remote);
        } else {
            addresses4(lookup, &mut local, &mut remote);
        }
        Self {
            ipv6,
            local,
            remote,
            port: field!(lookup, local_port) as u16,
            remote_port: u16::from_be(field!(lookup, remote_port)),
        }
    }
}

// Not inlined, as in `established`.

#[inline(never)]
fn addresses4(lookup: *mut bpf_sk_lookup, local: &mut Address, remote: &mut Address) {
    *local = Address::from_v4(field!(lookup, local_ip4));
    *remote = Address::from_v4(field!(lookup, remote_ip4));
}

#[inline(never)]
fn addresses6(lookup: *mut bpf_sk_lookup, local: &mut Address, remote: &mut Address) {
    *local = Address {
        words: [
            field!(lookup, local_ip6[0]),
            field!(lookup, local_ip6[1]),
            field!(lookup, local_ip6[2]),
            field!(lookup, local_ip6[3]),
        ],
    };
    *remote = Address {
        words: [
            field!(lookup, remote_ip6[0]),
            field!(lookup, remote_ip6[1]),
            field!(lookup, remote_ip6[2]),
            field!(lookup, remote_ip6[3]),
        ],
    };
}

/// Gives the connection to one of the daemon's listeners, the same for the same client port: a SYN
/// cookie is checked against the listener that made it.
#[inline(always)]
pub fn select(
    ctx: &SkLookupContext,
    slot: u32,
    workload: &Workload,
    syn: &Syn,
    inbound: bool,
) -> bool {
    let workers = u32::from(workload.workers);
    if workers == 0 || workers > MAX_WORKERS {
        return drop(Decision::InboundNoListener);
    }
    // Clients' ports are not evenly spread (connect() prefers one parity): mix before dividing.
    let mixed = (u32::from(syn.remote_port) ^ syn.remote.words[3]).wrapping_mul(0x9e37_79b1);
    let worker = (mixed >> 16) % workers;
    let index = listener_index(slot, inbound, syn.ipv6, worker);
    // Without the flag, a process of the same user that binds the listener's port with
    // SO_REUSEPORT would get its share.
    match LISTENERS.redirect_sk_lookup(ctx, index, BPF_SK_LOOKUP_F_NO_REUSEPORT as u64) {
        Ok(()) => {
            if inbound {
                count(Decision::InboundTaken);
            }
            true
        }
        Err(_) => drop(Decision::InboundNoListener),
    }
}

#[inline(always)]
pub fn drop(decision: Decision) -> bool {
    count(decision);
    false
}
