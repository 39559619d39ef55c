//! Workloads in the host's own network namespace: processes of a cgroup, with ports of the host's addresses.
//!
//! Nothing is set in that namespace: no rule, route, mark or sysctl. What makes a workload there is rows in
//! the kernel's tables, and whatever has no row is untouched.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use mtls_common::names::MAX_CGROUP_DEPTH;
use mtls_common::workload::ListenerTag;

use super::cgroup::{self, Found};
use super::workload::EnrolError;
use crate::bpf::Features;
use crate::mesh::{Cgroup, NodeWorkload, Place, Workload};

/// The daemon's own network namespace: where it runs beside the workloads of its host.
pub const NAMESPACE: &str = "/proc/self/ns/net";

/// What a host workload has beside what every workload has.
#[derive(Debug)]
pub struct Host {
    pub cgroup: Cgroup,
    /// As it was found last.
    pub found: Option<Found>,
    /// Why the one that is there now is not taken, as it was said last.
    pub refused: Option<String>,
}

impl Host {
    pub fn id(&self) -> Option<u64> {
        self.found.as_ref().map(|found| found.id)
    }

    /// Keeps why it is not taken. Whether that is news: it is looked at ten times a second.
    pub fn refuse(&mut self, reason: Option<String>) -> bool {
        let news = reason.is_some() && self.refused != reason;
        self.refused = reason;
        news
    }
}

/// The number by which a new daemon knows the entry of an earlier one again. Never 0.
pub fn number(cgroup: &Cgroup) -> u64 {
    // FNV-1a: the next daemon may be built with another standard library.
    let text = Place::Host(cgroup.clone()).to_string();
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step).max(1)
}

/// Looks for the workload's cgroup, and refuses one that cannot be.
pub fn look(root: BorrowedFd<'_>, cgroup: &Cgroup) -> Result<Option<Found>, EnrolError> {
    let found = cgroup::find(root, cgroup)
        .map_err(|error| EnrolError::Io { path: cgroup.to_string(), error })?;
    if found.as_ref().is_some_and(|found| found.holds(std::process::id())) {
        return Err(EnrolError::Refused(format!(
            "the daemon itself runs in {cgroup}: its own connections cannot be those of a workload; \
             give one of them a cgroup of its own"
        )));
    }
    if found.as_ref().is_some_and(|found| found.depth(root) > MAX_CGROUP_DEPTH as usize) {
        return Err(EnrolError::Refused(format!(
            "{cgroup} is more than {MAX_CGROUP_DEPTH} levels below the cgroup root"
        )));
    }
    Ok(found)
}

/// What must hold before anything is done for it.
pub fn check(workload: &Workload, features: Features) -> Result<(), EnrolError> {
    if !features.cgroup_id {
        return Err(EnrolError::Refused(
            "this kernel does not tell connect programs the current cgroup (Linux 5.7): nobody can be a \
             workload in the host's own network namespace; give it one of its own"
                .into(),
        ));
    }
    let own = addresses().map_err(|error| EnrolError::Io { path: NAMESPACE.into(), error })?;
    match workload.addresses.iter().find(|address| !own.contains(*address)) {
        None => Ok(()),
        Some(address) => Err(EnrolError::Refused(format!(
            "{address} is no address of this host: connections to it do not come here"
        ))),
    }
}

fn addresses() -> std::io::Result<HashSet<IpAddr>> {
    let all = nix::ifaddrs::getifaddrs()?;
    Ok(all
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
        })
        .collect())
}

/// Whether the namespace has IPv6, as the listeners need it.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
        && std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// Everything in the namespace that is the workload's, and the direction of each.
pub fn places(workload: &Workload, outbound_port: u16) -> HashMap<SocketAddr, u32> {
    let declared = declared(workload).into_iter().map(|place| (place, ListenerTag::INBOUND));
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let listener = workload.addresses.iter().copied().chain(loopback);
    let redirected = listener.map(|ip| (SocketAddr::new(ip, outbound_port), ListenerTag::OUTBOUND));
    // Where both are one place (declared after the listener was opened), the declaration counts.
    redirected.chain(declared).collect()
}

/// The ports that workloads of the host have declared: a listener of the daemon's takes none of them,
/// also while nobody listens there.
pub fn declared_ports(workloads: &[Arc<NodeWorkload>]) -> HashSet<u16> {
    let on_host = workloads.iter().filter(|it| matches!(it.place, Place::Host(_)));
    let ports = on_host.flat_map(|it| it.workload.host_ports.iter());
    ports.flat_map(|ports| ports.iter().copied()).collect()
}

/// Where others connect to it.
pub fn declared(workload: &Workload) -> HashSet<SocketAddr> {
    let ports = workload.host_ports.iter().flat_map(|ports| ports.iter());
    ports.flat_map(|port| workload.addresses.iter().map(|ip| SocketAddr::new(*ip, *port))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_news_when_it_is_another_than_before() {
        let mut host = Host { cgroup: Cgroup::Path("a".into()), found: None, refused: None };
        let mut said = |reason: Option<&str>| host.refuse(reason.map(str::to_owned));
        assert!(!said(None));
        assert!(said(Some("deep")));
        assert!(!said(Some("deep")) && !said(Some("deep")));
        assert!(said(Some("holds us")));
        // It was good in between.
        assert!(!said(None));
        assert!(said(Some("holds us")));
    }
}
