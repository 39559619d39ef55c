//! What found no place in the kernel's tables. Its connections are slower, never clearer, and somebody
//! has to hear of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// How many addresses are named.
const NAMED: usize = 5;

#[derive(Debug, Default)]
pub struct Full {
    /// By table, and by workload where rows are a workload's.
    missing: BTreeMap<(&'static str, String), String>,
}

impl Full {
    pub fn says(&self) -> Vec<String> {
        self.missing.values().cloned().collect()
    }

    pub fn mesh(&mut self, left_out: &[IpAddr]) {
        let named: Vec<String> = left_out.iter().take(NAMED).map(ToString::to_string).collect();
        let more = if left_out.len() > NAMED { ", …" } else { "" };
        let message = || {
            format!(
                "MESH_ADDRESSES is full, {} addresses of workloads and services have no row ({}{more}): \
                 until there is room, every connection of this node's workloads goes through the \
                 daemon, also to outside the mesh",
                left_out.len(),
                named.join(", ")
            )
        };
        self.set("MESH_ADDRESSES", "", (!left_out.is_empty()).then(message));
    }

    pub fn bypasses(&mut self, workload: &str, left_out: usize) {
        let message = || {
            format!(
                "OUTBOUND or INBOUND is full, {left_out} rows of {workload} have no place: what \
                 policy leaves in the clear there goes through the daemon"
            )
        };
        self.set("OUTBOUND", workload, (left_out > 0).then(message));
    }

    pub fn own_addresses(&mut self, workload: &str, left_out: usize) {
        let message = || {
            format!(
                "OWN_ADDRESSES is full, {left_out} addresses of {workload} have no row: connections \
                 to it there are dropped"
            )
        };
        self.set("OWN_ADDRESSES", workload, (left_out > 0).then(message));
    }

    /// A workload that is gone.
    pub fn forget(&mut self, workload: &str) {
        self.missing.retain(|(_, of), _| of != workload);
    }

    fn set(&mut self, table: &'static str, workload: &str, message: Option<String>) {
        let key = (table, workload.to_owned());
        let before = match &message {
            Some(message) => self.missing.insert(key, message.clone()),
            None => self.missing.remove(&key),
        };
        match message {
            Some(message) if before.as_ref() != Some(&message) => tracing::warn!("{message}"),
            None if before.is_some() => tracing::info!(table, workload, "has room again"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_until_there_is_room() {
        let mut full = Full::default();
        let addresses: Vec<IpAddr> = (1..=7).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        full.mesh(&addresses);
        full.bypasses("full/web", 3);
        full.own_addresses("full/web", 0);
        let says = full.says();
        assert_eq!(says.len(), 2, "{says:?}");
        assert!(says[0].contains("7 addresses") && says[0].contains("10.0.0.5, …"), "{says:?}");
        assert!(says[1].contains("3 rows of full/web"), "{says:?}");
        full.mesh(&[]);
        full.forget("full/web");
        assert!(full.says().is_empty());
    }
}
