//! The kernel side. Every program is one line here and one file beside it.
//!
//! Attached at the cgroup v2 root: `connect4|6`, `getpeername4|6`, `getsockname4|6`, `sock_ops`.
//! Attached to each enrolled namespace, an instance of its own: `sk_lookup`; to the host's, where workloads
//! are cgroups, another one: `sk_lookup` in `host`.
#![no_std]
#![no_main]
#![expect(clippy::macro_metavars_in_unsafe, reason = "`field!` takes a path of fields, not code")]

mod established;
mod host;
mod inbound;
mod maps;
mod outbound;
mod peer_name;
mod socket;

use aya_ebpf::bindings::sk_action;
use aya_ebpf::macros::{cgroup_sock_addr, sk_lookup, sock_ops};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockOpsContext};

#[cgroup_sock_addr(connect4)]
pub fn mtls_connect4(ctx: SockAddrContext) -> i32 {
    outbound::connect::<false>(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn mtls_connect6(ctx: SockAddrContext) -> i32 {
    outbound::connect::<true>(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub fn mtls_peername4(ctx: SockAddrContext) -> i32 {
    peer_name::peer::<false>(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub fn mtls_peername6(ctx: SockAddrContext) -> i32 {
    peer_name::peer::<true>(&ctx)
}

#[cgroup_sock_addr(getsockname4)]
pub fn mtls_sockname4(ctx: SockAddrContext) -> i32 {
    peer_name::own::<false>(&ctx)
}

#[cgroup_sock_addr(getsockname6)]
pub fn mtls_sockname6(ctx: SockAddrContext) -> i32 {
    peer_name::own::<true>(&ctx)
}

#[sock_ops]
pub fn mtls_established(ctx: SockOpsContext) -> u32 {
    established::callback(&ctx);
    1
}

#[sk_lookup]
pub fn mtls_inbound(ctx: SkLookupContext) -> u32 {
    if inbound::lookup(&ctx) { sk_action::SK_PASS } else { sk_action::SK_DROP }
}

#[sk_lookup]
pub fn mtls_host(ctx: SkLookupContext) -> u32 {
    if host::lookup(&ctx) { sk_action::SK_PASS } else { sk_action::SK_DROP }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
