//! What the kernel knows of an enrolled workload.

use crate::flow::Address;

/// A workload's entry in `WORKLOADS`, by slot.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Workload {
    pub netns_cookie: u64,
    /// 0: it has the namespace to itself. Else it is a cgroup of the host's namespace, and this number, which
    /// only the daemon reads, says which one whatever its id is now.
    pub host: u64,
    /// An address of each family that the workload shows to its peers; zero where it has none.
    pub address4: Address,
    pub address6: Address,
    /// In-pod listeners' ports, host byte order. 0: not there yet, everything redirected drops.
    pub outbound_port: u16,
    pub inbound_port: u16,
    /// How many of the workload's listeners `LISTENERS` holds per direction and family.
    pub workers: u16,
    /// 1: inbound ports without a row in `INBOUND` are untouched; 0: they are the daemon's.
    pub inbound_untouched: u16,
    /// What enrolment changed in the namespace and cleanup has to take back, as bits that only the
    /// daemon reads.
    pub changed: u32,
    pub _padding: u32,
}

/// Key of `OUTBOUND`: a destination as seen from one client workload. Port 0 is every port that
/// has no row of its own.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct OutboundKey {
    pub slot: u32,
    pub address: Address,
    /// Host byte order.
    pub port: u16,
    pub _padding: u16,
}

/// Values of `OUTBOUND` and `INBOUND`. A row says what it means by itself, so that rows and defaults
/// can be changed one after the other without a wrong answer in between.
pub mod bypass {
    /// The connection stays the application's own, at kernel speed.
    pub const UNTOUCHED: u32 = 1;
    /// The daemon takes it, although another row would leave it untouched.
    pub const REDIRECT: u32 = 2;
}

/// Key of `INBOUND`: a port with an answer of its own.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct InboundKey {
    pub slot: u32,
    /// Host byte order.
    pub port: u32,
}

/// Key of `OWN_ADDRESSES`: the addresses that a workload receives on.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct OwnAddressKey {
    pub slot: u32,
    pub address: Address,
}

/// Key of `HOST_PORTS`: where connections in the host's namespace are a workload's, and nobody else's.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct HostPortKey {
    pub address: Address,
    /// Host byte order.
    pub port: u32,
}

/// What a [`HostPortKey`] leads to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostPort {
    pub slot: u32,
    /// As in [`ListenerTag`]. Outbound: the daemon's own listener, at its own port. Inbound: declared.
    pub direction: u32,
}

/// Marks the daemon's in-pod listeners in `LISTENER_TAG`; accepted sockets inherit it, so the
/// kernel side knows them without trusting a port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ListenerTag {
    pub netns_cookie: u64,
    /// 1: outbound (redirected connections of the workload's own), 2: inbound.
    pub direction: u32,
    pub _padding: u32,
}

impl ListenerTag {
    pub const OUTBOUND: u32 = 1;
    pub const INBOUND: u32 = 2;
}

const _: () = {
    assert!(size_of::<Workload>() == 64 && align_of::<Workload>() == 8);
    assert!(size_of::<OutboundKey>() == 24);
    assert!(size_of::<InboundKey>() == 8);
    assert!(size_of::<OwnAddressKey>() == 20);
    assert!(size_of::<ListenerTag>() == 16);
    assert!(size_of::<HostPortKey>() == 20);
    assert!(size_of::<HostPort>() == 8);
};

#[cfg(feature = "user")]
mod pod {
    use crate::flow::{Address, Destination, Flow, FlowKey};

    macro_rules! plain {
        ($($name:ty),+) => {$(
            // SAFETY: `repr(C)`, `Copy`, made of integers only and without implicit padding (the
            // size asserts above and in `flow`): any bytes are a value, every byte is written.
            unsafe impl aya::Pod for $name {}
        )+};
    }
    plain!(Address, Destination, Flow, FlowKey);
    plain!(super::Workload, super::OutboundKey, super::InboundKey, super::OwnAddressKey);
    plain!(super::ListenerTag, super::HostPortKey, super::HostPort);
}
