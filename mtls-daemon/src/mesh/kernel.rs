//! The kernel's tables: which connections stay the application's own.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use super::plan::{InboundTable, OutboundRow};
use super::snapshot::Headless;
use super::{ClientTls, Snapshot, Workload};
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
            let untouched = in_the_clear(&direct.default);
            if untouched {
                rows.push(OutboundRow { address: *address, port: 0, untouched: true });
            }
            let mut ports: BTreeSet<u16> = direct.ports.keys().copied().collect();
            ports.extend(headless.get(address).into_iter().flatten());
            for port in ports {
                let clear = match self.headless(client, SocketAddr::new(*address, port)) {
                    Some(Headless::One(target, _)) => in_the_clear(&target.tls),
                    // Refused, and so the daemon's.
                    Some(Headless::Disagreeing(..)) => false,
                    None => in_the_clear(direct.tls(port)),
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
                    Some(Headless::One(target, _)) => in_the_clear(&target.tls),
                    Some(Headless::Disagreeing(..)) => false,
                    None => own.is_none_or(|(_, direct)| in_the_clear(direct.tls(port))),
                };
                if !clear {
                    rows.push(OutboundRow { address, port, untouched: false });
                }
            }
        }
        rows.sort_unstable();
        rows
    }

    /// The kernel's inbound table for `server`.
    pub fn inbound_table(&self, server: &Workload) -> InboundTable {
        let Some(direct) = self.compiled(server) else { return InboundTable::default() };
        // A bypass skips nothing that the daemon would do: authorization, or what HTTP needs.
        if !direct.authorization.is_empty() {
            return InboundTable::default();
        }
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
/// daemon.
fn untouched(mode: Mode, protocol: PortProtocol) -> bool {
    match mode {
        Mode::Disable => protocol != PortProtocol::Http,
        Mode::Permissive | Mode::Strict => false,
    }
}

fn in_the_clear(tls: &ClientTls) -> bool {
    match tls {
        ClientTls::Plaintext { .. } => true,
        ClientTls::IstioMutual { .. } | ClientTls::Originate { .. } | ClientTls::Refused { .. } => {
            false
        }
    }
}
