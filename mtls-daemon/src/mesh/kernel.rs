//! The kernel's tables: which connections stay the application's own.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use super::plan::{InboundTable, OutboundRow};
use super::snapshot::Headless;
use super::{Snapshot, Workload};
use crate::policy::{Mode, PortProtocol};

impl Snapshot {
    /// The kernel's outbound table for `client`: direct addresses that are in the clear by policy.
    /// Virtual addresses have no row, only the daemon translates them; neither have addresses that
    /// nobody knows.
    pub fn outbound_rows(&self, client: &Workload) -> Vec<OutboundRow> {
        let mut headless: HashMap<IpAddr, BTreeSet<u16>> = HashMap::new();
        for address in self.answers.headless.keys() {
            headless.entry(address.ip()).or_default().insert(address.port());
        }
        let mut rows = Vec::new();
        // An address that is some service's own, too: whatever stands at it, the daemon decides.
        let virtual_too = |address| self.answers.virtual_addresses.contains_key(address);
        for (address, direct) in self.answers.direct.iter().filter(|(a, _)| !virtual_too(a)) {
            let untouched = direct.default.is_plaintext();
            if untouched {
                rows.push(OutboundRow { address: *address, port: 0, untouched: true });
            }
            let mut ports: BTreeSet<u16> = direct.ports.keys().copied().collect();
            ports.extend(headless.get(address).into_iter().flatten());
            for port in ports {
                let clear = match self.headless(client, SocketAddr::new(*address, port)) {
                    Some(Headless::One(target, _)) => target.tls.is_plaintext(),
                    // Refused, and so the daemon's.
                    Some(Headless::Disagreeing(..)) => false,
                    None => direct.tls(port).is_plaintext(),
                };
                if clear != untouched {
                    rows.push(OutboundRow { address: *address, port, untouched: !untouched });
                }
            }
        }
        for (address, declared) in self.answers.hosts.by_address() {
            if self.answers.virtual_addresses.contains_key(&address) {
                continue;
            }
            // The rest of a host is not in the mesh.
            rows.push(OutboundRow { address, port: 0, untouched: true });
            let mut ports: BTreeSet<u16> = declared.iter().map(|(port, _)| *port).collect();
            ports.extend(headless.get(&address).into_iter().flatten());
            for port in ports {
                let own = declared.iter().find(|(number, _)| *number == port);
                let clear = match self.headless(client, SocketAddr::new(address, port)) {
                    Some(Headless::One(target, _)) => target.tls.is_plaintext(),
                    Some(Headless::Disagreeing(..)) => false,
                    None => own.is_none_or(|(_, direct)| direct.tls(port).is_plaintext()),
                };
                if !clear {
                    rows.push(OutboundRow { address, port, untouched: false });
                }
            }
        }
        rows.sort_unstable();
        rows
    }

    /// The kernel's inbound table for `server`, whose applications are told who their client is, or
    /// are not.
    pub fn inbound_table(&self, server: &Workload, forward_client_cert: bool) -> InboundTable {
        let Some(direct) = self.compiled(server) else { return InboundTable::default() };
        // A bypass skips nothing that the daemon would do: authorization, or what HTTP needs.
        if !direct.authorization.is_empty() {
            return InboundTable::default();
        }
        let untouched = |mode, protocol| untouched(mode, protocol, forward_client_cert);
        let untouched_by_default = untouched(direct.modes.default.mode, PortProtocol::Auto);
        let mut ports: BTreeSet<u16> = direct.modes.ports.keys().copied().collect();
        ports.extend(direct.protocols.keys());
        let exceptions = ports
            .into_iter()
            .filter(|port| {
                let untouched = untouched(direct.mode(*port).mode, direct.protocol(*port));
                untouched != untouched_by_default
            })
            .collect();
        InboundTable { untouched_by_default, exceptions }
    }
}

/// Whether the inbound connections of a port that no AuthorizationPolicy concerns can bypass the
/// daemon. What nobody declared may be HTTP, in which an application that reads
/// X-Forwarded-Client-Cert must find none that its client made up (policy.md 5.2).
fn untouched(mode: Mode, protocol: PortProtocol, forward_client_cert: bool) -> bool {
    match (mode, protocol) {
        (Mode::Disable, PortProtocol::Tcp) => true,
        (Mode::Disable, PortProtocol::Auto) => !forward_client_cert,
        // TLS on such a port is refused (policy.md 1.8).
        (Mode::Disable, PortProtocol::Http) => false,
        (Mode::Permissive | Mode::Strict, _) => false,
    }
}
