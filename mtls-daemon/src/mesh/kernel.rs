//! The kernel's tables: which connections stay the application's own.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use super::plan::{InboundTable, OutboundRow};
use super::{ClientTls, Snapshot, Workload};
use crate::policy::Mode;

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
        for (address, direct) in &self.answers.direct {
            let untouched = in_the_clear(&direct.default);
            if untouched {
                rows.push(OutboundRow { address: *address, port: 0, untouched: true });
            }
            let mut ports: BTreeSet<u16> = direct.ports.keys().copied().collect();
            ports.extend(headless.get(address).into_iter().flatten());
            for port in ports {
                let tls = match self.headless(client, SocketAddr::new(*address, port)) {
                    Some((target, _)) => &target.tls,
                    None => direct.tls(port),
                };
                if in_the_clear(tls) != untouched {
                    rows.push(OutboundRow { address: *address, port, untouched: !untouched });
                }
            }
        }
        rows.sort_unstable();
        rows
    }

    /// The kernel's inbound table for `server`.
    pub fn inbound_table(&self, server: &Workload) -> InboundTable {
        let Some(direct) = self.compiled(server) else { return InboundTable::default() };
        let untouched_by_default = self.untouched(direct.modes.default.mode, false);
        let mut ports: BTreeSet<u16> = direct.modes.ports.keys().copied().collect();
        ports.extend(&direct.http_ports);
        let exceptions = ports
            .into_iter()
            .filter(|port| {
                let http = direct.http_ports.contains(port);
                self.untouched(direct.mode(*port).mode, http) != untouched_by_default
            })
            .collect();
        InboundTable { untouched_by_default, exceptions }
    }

    /// Whether a port's inbound connections can bypass the daemon. Everything else that needs the
    /// daemon on a port joins here: a bypass never skips authorization or header hygiene.
    fn untouched(&self, mode: Mode, declared_http: bool) -> bool {
        match mode {
            Mode::Disable => !declared_http,
            Mode::Permissive | Mode::Strict => false,
        }
    }
}

fn in_the_clear(tls: &ClientTls) -> bool {
    match tls {
        ClientTls::Plaintext { .. } => true,
        ClientTls::IstioMutual { .. } | ClientTls::Originate { .. } => false,
    }
}
