//! What is in the kernel's tables and not, or no longer, enrolled by this daemon.

use std::collections::HashSet;

use mtls_common::workload as abi;

use super::super::sweep::{Scope, sweep};
use super::super::workload::{EnrolError, WorkloadState};
use super::super::{known_namespaces, setup};
use super::Node;
use crate::bpf::{BpfError, Bypasses};
use crate::mesh::Place;

impl Node {
    /// Workloads that an earlier daemon, perhaps of another version, left enrolled and this
    /// configuration does not have: put back, unless one that it does have is still waiting for its
    /// place and might be meant; then they stay shut.
    pub(super) fn adopt_or_drop_leftovers(&mut self) -> Result<(), BpfError> {
        self.adopt_or_drop_on_host()?;
        let known: HashSet<u64> =
            self.enrolled.values().map(|entry| entry.namespace.cookie()).collect();
        let tables = &self.kernel.tables;
        let hosts = tables.hosts();
        let mut left: HashSet<u64> =
            tables.workloads().map(|(_, entry)| entry.netns_cookie).collect();
        left.extend(self.kernel.attached_namespaces());
        // The host's is never shut as a whole.
        left.retain(|cookie| {
            !known.contains(cookie) && !hosts.contains(cookie) && !self.home.contains(cookie)
        });
        for cookie in left {
            let slot = self.kernel.tables.slot_for(cookie, 0)?;
            if self.kernel.namespace_lives(cookie)? && !self.waiting.is_empty() {
                if self.kernel.tables.workload(slot).is_none() {
                    let shut = abi::Workload { netns_cookie: cookie, ..abi::Workload::default() };
                    self.kernel.tables.set_workload(slot, shut, &[])?;
                    self.kernel.tables.enrol(cookie, slot)?;
                }
                // Also what the policy of its time left in the clear.
                self.kernel.tables.close_bypasses(slot, &Bypasses::default())?;
                self.orphans.push((slot, cookie));
                continue;
            }
            let changed = self.kernel.tables.workload(slot).map_or(0, |entry| entry.changed);
            self.kernel.tables.remove_workload(slot)?;
            self.kernel.detach_namespace(cookie)?;
            let namespaces = known_namespaces();
            if let Some(namespace) = namespaces.iter().find(|known| known.cookie() == cookie)
                && let Err(error) = setup::restore(namespace, changed)
            {
                tracing::warn!(%error, "could not take back rules and routes of a former workload");
            }
        }
        Ok(())
    }

    /// In the host's namespace what is left is a workload's ports and cgroup, and nothing else is shut.
    fn adopt_or_drop_on_host(&mut self) -> Result<(), BpfError> {
        let known: HashSet<u32> = self.enrolled.values().map(|entry| entry.slot).collect();
        let left = self.kernel.tables.workloads();
        self.orphans_on_host = left
            .filter(|(slot, entry)| entry.host != 0 && !known.contains(slot))
            .map(|(slot, _)| slot)
            .collect();
        if self.waits_on_host() {
            for slot in &self.orphans_on_host {
                self.kernel.tables.close_bypasses(*slot, &Bypasses::default())?;
            }
            return Ok(());
        }
        self.drop_orphans_on_host()?;
        // The program of an earlier version, whose tables are not these.
        for cookie in self.kernel.attached_namespaces() {
            if self.home.contains(&cookie) && !self.kernel.tables.has_workloads(cookie) {
                self.kernel.detach_namespace(cookie)?;
            }
        }
        Ok(())
    }

    /// Once nobody who waits could be meant by them.
    pub(super) fn drop_orphans_on_host(&mut self) -> Result<(), BpfError> {
        if self.waits_on_host() {
            return Ok(());
        }
        while let Some(slot) = self.orphans_on_host.pop() {
            if let Some(entry) = self.kernel.tables.workload(slot).copied() {
                self.forget(slot, entry.netns_cookie)?;
            }
        }
        Ok(())
    }

    fn waits_on_host(&self) -> bool {
        self.waiting.values().any(|(workload, _)| matches!(workload.place, Place::Host(_)))
    }

    /// From here on its traffic is its own.
    pub(super) fn forget(&mut self, slot: u32, cookie: u64) -> Result<(), BpfError> {
        self.kernel.tables.remove_workload(slot)?;
        // Others may be in the host's.
        if self.kernel.tables.has_workloads(cookie) {
            return Ok(());
        }
        self.kernel.detach_namespace(cookie)
    }

    /// Its namespace lost its name. Listeners and connections end, so that nothing of the daemon's
    /// keeps it alive; the kernel's tables keep it shut while anything else does, also what policy left in
    /// the clear so far: no later policy reaches it.
    pub(super) fn orphan(&mut self, key: &str) -> Result<(), BpfError> {
        let Some(slot) = self.enrolled.get(key).map(|entry| entry.slot) else { return Ok(()) };
        self.kernel.tables.close_bypasses(slot, &Bypasses::default())?;
        let Some(entry) = self.enrolled.remove(key) else { return Ok(()) };
        tracing::info!(workload = %key, "its network namespace is gone");
        entry.pod.end();
        let scope = Scope::Namespace { own_addresses: &entry.wanted.workload.addresses };
        if let Err(error) = sweep(&entry.namespace, &scope, |_| false) {
            tracing::warn!(workload = %key, %error,
                "could not end the connections that policy left in the clear there");
        }
        self.orphans.push((entry.slot, entry.namespace.cookie()));
        let absent = EnrolError::Absent { path: entry.namespace.path().display().to_string() };
        let state = WorkloadState::Pending(absent.to_string());
        self.waiting.insert(key.to_owned(), (entry.wanted, state));
        Ok(())
    }

    pub(super) fn forget_dead_orphans(&mut self) -> Result<(), BpfError> {
        let mut index = 0;
        while let Some((slot, cookie)) = self.orphans.get(index).copied() {
            if self.kernel.namespace_lives(cookie)? {
                index += 1;
                continue;
            }
            self.kernel.tables.remove_workload(slot)?;
            self.kernel.detach_namespace(cookie)?;
            self.orphans.swap_remove(index);
        }
        Ok(())
    }
}
