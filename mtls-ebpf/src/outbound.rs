//! connect(): which connections of an enrolled workload the daemon takes.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::warn;
use mtls_common::event::Decision;
use mtls_common::flow::{Address, Destination};
use mtls_common::workload::{ListenerTag, OutboundKey, Workload, bypass};

use crate::field;
use crate::maps::{
    self, CLIENT_DESTINATION, MESH_ADDRESSES, MESH_RANGES, OUTBOUND, OWN_SOCKETS, count,
};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0; // connect() fails with EPERM
const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;
const LOOPBACK_INTERFACE: u32 = 1;

#[inline(always)]
pub fn connect<const IPV6: bool>(ctx: &SockAddrContext) -> i32 {
    let addr = ctx.sock_addr;
    // UDP's connect() comes here as well, and DNS must not notice.
    let protocol = field!(addr, protocol);
    if field!(addr, type_) != SOCK_STREAM || (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP)
    {
        return ALLOW;
    }
    // SAFETY: the helper takes this program type's context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if maps::slot(cookie).is_none() {
        return ALLOW;
    }
    // SAFETY: the union's pointer member is the one this program type has.
    let sk = unsafe { (*addr).__bindgen_anon_1.sk };
    if sk.is_null() {
        return REFUSE;
    }
    if OWN_SOCKETS.get(sk).is_some() {
        count(Decision::OutboundOwn);
        return ALLOW;
    }
    // A socket may connect again after a failure or a disconnect, also in other hands: what it asked for
    // last counts.
    if let Some(previous) = CLIENT_DESTINATION.get(sk) {
        previous.valid = 0;
    }
    // The rest of the host.
    let Some(slot) = maps::slot_of_current(cookie) else { return ALLOW };
    let Some(workload) = maps::workload(slot) else { return REFUSE };

    let destination = requested::<IPV6>(addr);
    // host byte order; the kernel keeps it big-endian in the low half
    let port = u16::from_be(field!(addr, user_port) as u16);
    let decision = decide(slot, workload, destination, port);
    count(decision);
    match decision {
        Decision::OutboundRedirected => {}
        Decision::OutboundRefused => {
            warn!(ctx, "connect to the daemon's own listener on port {} refused", port);
            return REFUSE;
        }
        _ => return ALLOW,
    }

    let original = Destination { address: destination, port, valid: 1 };
    if !CLIENT_DESTINATION.set(sk, original) {
        return REFUSE;
    }
    let ipv4 = destination.is_v4();
    let bound_device = field!(sk, bound_dev_if);
    let listener = if bound_device == 0 || bound_device == LOOPBACK_INTERFACE {
        // (a v4-mapped destination of an IPv6 socket stays mapped)
        if ipv4 { Address::LOOPBACK4 } else { Address::LOOPBACK6 }
    } else {
        // Bound to a device, the socket has no route to loopback, but one to its own address.
        let own = if ipv4 { workload.address4 } else { workload.address6 };
        if own == Address::default() {
            return REFUSE;
        }
        own
    };
    redirect::<IPV6>(addr, listener, workload.outbound_port);
    ALLOW
}

#[inline(always)]
fn decide(slot: u32, workload: &Workload, destination: Address, port: u16) -> Decision {
    let local = destination.is_loopback()
        || (maps::is_own_address(slot, destination) && !is_declared(workload, destination, port));
    if local {
        return if port == workload.outbound_port || port == workload.inbound_port {
            Decision::OutboundRefused
        } else {
            Decision::OutboundUntouchedLocal
        };
    }
    let mut key = OutboundKey { slot, address: destination, port, _padding: 0 };
    // SAFETY: as for every value in `maps`: replaced whole, readable until this program ends.
    let mut row = unsafe { OUTBOUND.get(key) }.copied();
    if row.is_none() {
        key.port = 0;
        // SAFETY: as above.
        row = unsafe { OUTBOUND.get(key) }.copied();
    }
    match row {
        Some(bypass::UNTOUCHED) => return Decision::OutboundUntouchedPolicy,
        Some(_) => return Decision::OutboundRedirected,
        None => {}
    }
    // SAFETY: as above; only presence matters.
    if unsafe { MESH_ADDRESSES.get(destination) }.is_some()
        || MESH_RANGES.get(&Key::new(128, destination)).is_some()
    {
        return Decision::OutboundRedirected;
    }
    Decision::OutboundUntouchedOutside
}

/// On the host, connections to a declared port are the daemon's to take, whoever makes them: a workload's
/// own, to itself or to another one, go its way.
#[inline(always)]
fn is_declared(workload: &Workload, destination: Address, port: u16) -> bool {
    workload.host != 0
        && maps::host_port(destination, port)
            .is_some_and(|found| found.direction == ListenerTag::INBOUND)
}

#[inline(always)]
fn requested<const IPV6: bool>(addr: *mut bpf_sock_addr) -> Address {
    if IPV6 {
        Address {
            words: [
                field!(addr, user_ip6[0]),
                field!(addr, user_ip6[1]),
                field!(addr, user_ip6[2]),
                field!(addr, user_ip6[3]),
            ],
        }
    } else {
        Address::from_v4(field!(addr, user_ip4))
    }
}

/// Rewrites the address that the running system call acts on, or answers with.
#[inline(always)]
pub fn redirect<const IPV6: bool>(addr: *mut bpf_sock_addr, to: Address, port: u16) {
    // SAFETY: the fields that this program type may write, each at its own width.
    unsafe {
        if IPV6 {
            core::ptr::write_volatile(&raw mut (*addr).user_ip6[0], to.words[0]);
            core::ptr::write_volatile(&raw mut (*addr).user_ip6[1], to.words[1]);
            core::ptr::write_volatile(&raw mut (*addr).user_ip6[2], to.words[2]);
            core::ptr::write_volatile(&raw mut (*addr).user_ip6[3], to.words[3]);
        } else {
            core::ptr::write_volatile(&raw mut (*addr).user_ip4, to.words[3]);
        }
        core::ptr::write_volatile(&raw mut (*addr).user_port, u32::from(port.to_be()));
    }
}
