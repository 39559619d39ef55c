//! getpeername() and getsockname(): the application sees the connection that it asked for, not the
//! detour to the daemon's listener.

use aya_ebpf::programs::SockAddrContext;
use mtls_common::flow::Address;

use crate::field;
use crate::maps::{self, CLIENT_DESTINATION};
use crate::outbound::redirect;

const ALLOW: i32 = 1; // these hooks cannot refuse

#[inline(always)]
pub fn peer<const IPV6: bool>(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the union's pointer member is the one this program type has.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if !sk.is_null()
        && let Some(original) = CLIENT_DESTINATION.get(sk)
        && original.valid != 0
    {
        redirect::<IPV6>(ctx.sock_addr, original.address, original.port);
    }
    ALLOW
}

#[inline(always)]
pub fn own<const IPV6: bool>(ctx: &SockAddrContext) -> i32 {
    // SAFETY: as above.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if sk.is_null() {
        return ALLOW;
    }
    let Some(original) = CLIENT_DESTINATION.get(sk) else { return ALLOW };
    if original.valid == 0 {
        return ALLOW;
    }
    // A socket that was bound to an address of its own shows that one.
    let current = if IPV6 {
        Address {
            words: [
                field!(ctx.sock_addr, user_ip6[0]),
                field!(ctx.sock_addr, user_ip6[1]),
                field!(ctx.sock_addr, user_ip6[2]),
                field!(ctx.sock_addr, user_ip6[3]),
            ],
        }
    } else {
        Address::from_v4(field!(ctx.sock_addr, user_ip4))
    };
    if !current.is_loopback() {
        return ALLOW;
    }
    // SAFETY: the helper takes this program type's context.
    let cookie =
        unsafe { aya_ebpf::helpers::generated::bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    let Some(slot) = maps::slot_of_current(cookie) else { return ALLOW };
    let Some(workload) = maps::workload(slot) else { return ALLOW };
    let address = if original.address.is_v4() { workload.address4 } else { workload.address6 };
    if address != Address::default() {
        let port = u16::from_be(field!(ctx.sock_addr, user_port) as u16);
        redirect::<IPV6>(ctx.sock_addr, address, port);
    }
    ALLOW
}
