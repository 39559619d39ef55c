//! sk_lookup in the host's own network namespace: one instance, whatever the number of workloads there.
//! What they have declared is theirs, everything else is as if this were not here.

use aya_ebpf::programs::SkLookupContext;
use mtls_common::event::Decision;
use mtls_common::names::MAX_WORKLOADS;
use mtls_common::workload::{HostPort, ListenerTag};

use crate::field;
use crate::inbound::{IPPROTO_TCP, Syn, drop, is_leg, is_untouched, select};
use crate::maps::{self, count};

/// True and false mean what they do in `inbound`.
#[inline(always)]
pub fn lookup(ctx: &SkLookupContext) -> bool {
    if field!(ctx.lookup, protocol) != IPPROTO_TCP {
        return true;
    }
    let syn = Syn::read(ctx.lookup);
    let Some(HostPort { slot, direction }) = maps::host_port(syn.local, syn.port) else {
        return true;
    };
    // (for the verifier)
    if slot >= MAX_WORKLOADS {
        return false;
    }
    let Some(workload) = maps::workload(slot) else { return drop(Decision::InboundNoListener) };
    if direction != ListenerTag::INBOUND {
        // The daemon's, dead or alive: a process that binds a dead daemon's port never gets a connection
        // that was redirected there. (Bound sockets come from another of the host's addresses; nothing
        // from outside goes to a loopback address.)
        return if syn.local.is_loopback()
            || syn.remote.is_loopback()
            || maps::is_own_address(slot, syn.remote)
        {
            select(ctx, slot, workload, &syn, false)
        } else {
            true
        };
    }
    if is_leg(workload, &syn) {
        count(Decision::InboundLocal);
        return true;
    }
    if is_untouched(slot, workload, syn.port) {
        count(Decision::InboundUntouched);
        return true;
    }
    select(ctx, slot, workload, &syn, true)
}
