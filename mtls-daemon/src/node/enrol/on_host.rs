//! Enrolment of processes in the host's own network namespace.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use super::super::Namespace;
use super::super::cgroup::{self, Found};
use super::super::host::{self, Host};
use super::super::setup::Prepared;
use super::super::workload::{EnrolError, key};
use super::{Enrolled, Node, SWEEPS};
use crate::bpf::BpfError;
use crate::mesh::{Cgroup, NodeWorkload, Place, Snapshot};

impl Node {
    /// Also while its cgroup is not there: its ports are shut until a process of it can serve them.
    pub(super) fn enrol_on_host(
        &mut self,
        wanted: &Arc<NodeWorkload>,
        cgroup: &Cgroup,
        snapshot: &Snapshot,
        keys: &HashSet<String>,
    ) -> Result<(), EnrolError> {
        host::check(&wanted.workload, self.kernel.features())?;
        let found = host::look(self.kernel.cgroup_root(), cgroup)?;
        let holder = self.enrolled.iter().find(|(_, entry)| entry.wanted.place == wanted.place);
        if let Some(holder) = holder.map(|(key, _)| key.clone()) {
            if keys.contains(&holder) {
                return Err(EnrolError::Refused(claimed(cgroup, &holder)));
            }
            // It has another name now: no moment without interception in between.
            if let Some(entry) = self.enrolled.remove(&holder) {
                self.enrolled.insert(key(wanted), entry);
            }
            return Ok(self.update(&key(wanted), wanted)?);
        }
        if let Some(holder) = found.as_ref().and_then(|found| self.holder_of(found.id))
            && keys.contains(&holder)
        {
            return Err(EnrolError::Refused(claimed(cgroup, &holder)));
        }
        let io = |error: io::Error| EnrolError::Io { path: host::NAMESPACE.into(), error };
        let namespace = Arc::new(Namespace::open(Path::new(host::NAMESPACE)).map_err(io)?);
        let cookie = namespace.cookie();
        self.kernel.refuse_foreign(namespace.as_fd(), namespace.path(), cookie)?;
        let slot = self.kernel.tables.slot_for(cookie, host::number(cgroup))?;
        let earlier = self.kernel.tables.workload(slot).copied();
        let prepared = Prepared { ipv6: host::has_ipv6(), changed: 0 };
        let host = Host { cgroup: cgroup.clone(), found, refused: None };
        let result = self.enrol_at(
            wanted,
            &namespace,
            Some(host),
            slot,
            earlier.as_ref(),
            prepared,
            snapshot,
        );
        match &result {
            Ok(()) => self.orphans_on_host.retain(|orphan| *orphan != slot),
            // Nothing was enrolled before, so nothing is opened by taking this back.
            Err(_) if earlier.is_none() => self.forget(slot, cookie)?,
            Err(_) => {}
        }
        result
    }

    /// A place that one workload of the host has given up may be another's.
    pub(super) fn renew_host_ports(&mut self) -> Result<(), BpfError> {
        for entry in self.enrolled.values().filter(|entry| entry.host.is_some()) {
            let places = host::places(&entry.wanted.workload, entry.pod.outbound_port);
            self.kernel.tables.set_host_ports(entry.slot, &places)?;
        }
        Ok(())
    }

    /// Who has the cgroup of this number, by whatever name: a path and a unit can be the same.
    fn holder_of(&self, id: u64) -> Option<String> {
        let is_it = |entry: &Enrolled| entry.host.as_ref().and_then(Host::id) == Some(id);
        self.enrolled.iter().find(|(_, entry)| is_it(entry)).map(|(key, _)| key.clone())
    }

    pub fn has_workloads_on_host(&self) -> bool {
        self.enrolled.values().any(|entry| entry.host.is_some())
    }

    /// A unit that was started again has another cgroup.
    pub fn follow_cgroups(&mut self) -> Result<(), BpfError> {
        let mut held: HashMap<u64, String> = self
            .enrolled
            .iter()
            .filter_map(|(key, entry)| Some((entry.host.as_ref()?.id()?, key.clone())))
            .collect();
        let waiting = self.enrolled.iter_mut().filter_map(|(key, entry)| {
            let Place::Host(cgroup) = &entry.wanted.place else { return None };
            Some((key, cgroup.clone(), entry))
        });
        for (key, cgroup, entry) in waiting {
            let Some(host) = &mut entry.host else { continue };
            if host.found.as_ref().is_some_and(Found::is_current) {
                continue;
            }
            let root = self.kernel.cgroup_root();
            let found = match cgroup::find(root, &cgroup) {
                Ok(found) if found == host.found => {
                    // Gone meanwhile: the next one is another.
                    host.refuse(None);
                    continue;
                }
                // With the same questions as before: it is another one.
                Ok(_) => host::look(root, &cgroup),
                Err(error) => Err(EnrolError::Io { path: cgroup.to_string(), error }),
            };
            let holder = match &found {
                Ok(Some(found)) => held.get(&found.id).filter(|holder| *holder != key),
                _ => None,
            };
            let (found, error) = match (found, holder) {
                (Ok(_), Some(holder)) => (None, Some(claimed(&cgroup, holder))),
                (Ok(found), None) => (found, None),
                (Err(error), _) => (None, Some(error.to_string())),
            };
            if host.refuse(error.clone()) {
                let error = error.unwrap_or_default();
                tracing::error!(workload = %key, error, "nobody connects as this workload");
            }
            if found == host.found {
                continue;
            }
            tracing::info!(workload = %key, %cgroup, id = ?found.as_ref().map(|it| it.id),
                "its cgroup has changed");
            self.kernel.tables.set_cgroup(entry.slot, found.as_ref().map(|it| it.id))?;
            host.found = found;
            held.extend(host.id().map(|id| (id, key.clone())));
            entry.sweeps = SWEEPS;
        }
        Ok(())
    }
}

fn claimed(cgroup: &Cgroup, holder: &str) -> String {
    format!("{cgroup} is already enrolled as {holder}: one workload a cgroup")
}
