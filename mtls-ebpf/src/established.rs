//! sock_ops: carries the original destination from the application's socket to the daemon's.
//!
//! The two ends of a redirected connection meet only in the kernel. `FLOWS` bridges them between
//! the client's SYN and the daemon's accept, and no longer: an application that connects, sends and
//! closes at once may be gone before the daemon looks.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_ktime_get_ns, bpf_sock_ops_cb_flags_set,
};
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::warn;
use mtls_common::event::Decision;
use mtls_common::flow::{Address, Flow, FlowKey};
use mtls_common::names::HOST;
use mtls_common::workload::ListenerTag;

use crate::field;
use crate::maps::{
    ACCEPTED_DESTINATION, APPLICATION_LEGS, CLIENT_DESTINATION, FLOWS, LISTENER_TAG, OWN_SOCKETS,
    count, has_ingress_ifindex, leg, slot,
};

const AF_INET: u32 = 2;
const TCP_CLOSE: u32 = 7;

#[inline(always)]
pub fn callback(ctx: &SockOpsContext) {
    let ops = ctx.ops;
    // SAFETY: the union's pointer member; null for request sockets.
    let sk = unsafe { (*ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return;
    }
    match field!(ops, op) {
        BPF_SOCK_OPS_TCP_CONNECT_CB => publish(ctx, sk),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => take(ctx, sk),
        BPF_SOCK_OPS_STATE_CB => withdraw(ctx, sk),
        _ => {}
    }
}

/// The client's SYN is about to leave: its 4-tuple is known.
#[inline(always)]
fn publish(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    let Some(destination) = CLIENT_DESTINATION.get(sk) else { return };
    if destination.valid == 0 {
        return;
    }
    let key = client_key(ctx);
    // SAFETY: a helper without arguments.
    let created = unsafe { bpf_ktime_get_ns() };
    let flow = Flow { created, destination: *destination, _padding: 0 };
    // The daemon's own: its connection to an application, from loopback.
    let inserted = if OWN_SOCKETS.get(sk).is_some() {
        APPLICATION_LEGS.insert(key, flow, 0)
    } else {
        FLOWS.insert(key, flow, 0)
    };
    if inserted.is_err() {
        // Without it the daemon does not know where to go, and resets the connection.
        count(Decision::FlowLost);
        warn!(ctx, "no room in FLOWS: a connection will be reset");
        return;
    }
    // Added to those that other programs on this socket have asked for.
    let flags = field!(ctx.ops, bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG;
    // SAFETY: the helper takes this program type's context.
    unsafe { bpf_sock_ops_cb_flags_set(ctx.as_ptr().cast(), flags as i32) };
}

/// A socket that is gone leaves no entry: its connect failed, or nobody accepted it (its end of a
/// connection is there as soon as the SYN is answered). Who had its port next would be taken for it.
#[inline(always)]
fn withdraw(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    // SAFETY: the second argument of a state callback: the new state.
    let new = unsafe { core::ptr::read_volatile(&raw const (*ctx.ops).__bindgen_anon_1.args[1]) };
    if new == TCP_CLOSE && CLIENT_DESTINATION.get(sk).is_some() {
        let key = client_key(ctx);
        if OWN_SOCKETS.get(sk).is_some() {
            let _ = APPLICATION_LEGS.remove(key);
        } else {
            let _ = FLOWS.remove(key);
        }
    }
}

/// The daemon's listener has a new connection. The tag, inherited from the listener, says so; a
/// port could not.
#[inline(always)]
fn take(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    let Some(tag) = LISTENER_TAG.get(sk) else {
        show_client(ctx, sk);
        return;
    };
    if tag.direction != ListenerTag::OUTBOUND {
        return;
    }
    let (local, local_port, remote, remote_port) = tuple(ctx.ops);
    let key = FlowKey {
        netns_cookie: tag.netns_cookie,
        client: remote,
        server: local,
        client_port: remote_port,
        server_port: local_port,
        _padding: 0,
    };
    // SAFETY: copied at once.
    let Some(flow) = (unsafe { FLOWS.get(key) }).copied() else { return };
    ACCEPTED_DESTINATION.set(sk, flow.destination);
    let _ = FLOWS.remove(key);
}

/// An application has a connection that the daemon made from loopback: its getpeername, and what its
/// accept answers, show the client. The socket cannot be accepted before this has run: it is locked.
#[inline(always)]
fn show_client(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    let (local, local_port, remote, remote_port) = tuple(ctx.ops);
    if remote != Address::LOOPBACK4 && remote != Address::LOOPBACK6 {
        return;
    }
    // SAFETY: the helper takes this program type's context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let Some(slot) = slot(cookie) else { return };
    // Elsewhere the daemon has the client's own address.
    if has_ingress_ifindex() && slot != HOST {
        return;
    }
    let key = FlowKey {
        netns_cookie: cookie,
        client: remote,
        server: local,
        client_port: remote_port,
        server_port: local_port,
        _padding: 0,
    };
    let Some(client) = leg(key) else { return };
    CLIENT_DESTINATION.set(sk, client);
    let _ = APPLICATION_LEGS.remove(key);
}

#[inline(always)]
fn client_key(ctx: &SockOpsContext) -> FlowKey {
    let (local, local_port, remote, remote_port) = tuple(ctx.ops);
    FlowKey {
        // SAFETY: the helper takes this program type's context.
        netns_cookie: unsafe { bpf_get_netns_cookie(ctx.as_ptr()) },
        client: local,
        server: remote,
        client_port: local_port,
        server_port: remote_port,
        _padding: 0,
    }
}

/// Local address and port, remote address and port; ports in host byte order.
#[inline(always)]
fn tuple(ops: *mut bpf_sock_ops) -> (Address, u16, Address, u16) {
    let (mut local, mut remote) = (Address::default(), Address::default());
    if field!(ops, family) == AF_INET {
        addresses4(ops, &mut local, &mut remote);
    } else {
        addresses6(ops, &mut local, &mut remote);
    }
    let local_port = field!(ops, local_port) as u16;
    // network byte order in all 32 bits, unlike everywhere else
    let remote_port = u32::from_be(field!(ops, remote_port)) as u16;
    (local, local_port, remote, remote_port)
}

// Not inlined: the compiler would fold the two into loads at a computed offset, and the verifier
// allows the context at constant offsets only.

#[inline(never)]
fn addresses4(ops: *mut bpf_sock_ops, local: &mut Address, remote: &mut Address) {
    *local = Address::from_v4(field!(ops, local_ip4));
    *remote = Address::from_v4(field!(ops, remote_ip4));
}

#[inline(never)]
fn addresses6(ops: *mut bpf_sock_ops, local: &mut Address, remote: &mut Address) {
    *local = Address {
        words: [
            field!(ops, local_ip6[0]),
            field!(ops, local_ip6[1]),
            field!(ops, local_ip6[2]),
            field!(ops, local_ip6[3]),
        ],
    };
    *remote = Address {
        words: [
            field!(ops, remote_ip6[0]),
            field!(ops, remote_ip6[1]),
            field!(ops, remote_ip6[2]),
            field!(ops, remote_ip6[3]),
        ],
    };
}
