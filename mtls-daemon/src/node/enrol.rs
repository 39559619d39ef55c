//! Enrolment: brings the kernel, the namespaces and the listeners in step with a snapshot.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

mod leftovers;
mod on_host;

use mtls_common::names::HOST;
use mtls_common::workload as abi;

use super::cgroup::Found;
use super::full::Full;
use super::host::{self, Host};
use super::listeners::Listeners;
use super::setup::Prepared;
use super::sweep::{Connection, Scope, sweep};
use super::workload::{
    EnrolError, MeshAddresses, WorkloadState, WorkloadStatus, bypasses, key, shown, status,
};
use super::{Namespace, setup};
use crate::bpf::{BpfError, Bypasses, Kernel};
use crate::identity::{SpiffeId, SvidStore};
use crate::mesh::{NodeWorkload, Place, Snapshot};
use crate::proxy::{Current, Listening, Pod, Shared, Workers};

/// How often a namespace is looked at after a change: a connection can be between its SYN and its
/// accept while the first look is taken.
const SWEEPS: u8 = 2;
/// Ticks between two tries to enrol what was refused.
const RETRY_REFUSED: u64 = 10;

/// The workloads of this node, and the only writer of the kernel's tables.
pub struct Node {
    kernel: Kernel,
    store: Arc<SvidStore>,
    shared: Arc<Shared>,
    workers: Workers,
    /// Namespaces that are never one workload's: the daemon's and the host's.
    home: HashSet<u64>,
    /// By `namespace/name` of the NodeWorkload.
    enrolled: BTreeMap<String, Enrolled>,
    waiting: BTreeMap<String, (Arc<NodeWorkload>, WorkloadState)>,
    /// A snapshot that could not be put in force whole: tried again every second.
    pending: Option<Arc<Snapshot>>,
    ticks: u64,
    /// Enrolled, but not served before their snapshot is published.
    starting: Vec<Starting>,
    /// No longer enrolled; their namespaces are put back when the last relay has ended.
    leaving: Vec<Leaving>,
    /// Namespaces that lost their name but may still hold processes: they stay shut until the
    /// kernel says that they are gone.
    orphans: Vec<(u32, u64)>,
    /// Slots of host workloads that an earlier daemon left, while one that could be meant is not enrolled.
    orphans_on_host: Vec<u32>,
    mesh: MeshAddresses,
    cgroup_attached: bool,
    full: Full,
}

struct Starting {
    pod: Arc<Pod>,
    outbound: Listeners,
    inbound: Listeners,
}

struct Leaving {
    key: String,
    pod: Arc<Pod>,
    changed: u32,
}

struct Enrolled {
    wanted: Arc<NodeWorkload>,
    namespace: Arc<Namespace>,
    /// None: it has the namespace to itself.
    host: Option<Host>,
    slot: u32,
    pod: Arc<Pod>,
    bypasses: Bypasses,
    /// Sweeps that are still to come: a connection can be between SYN and accept during one.
    sweeps: u8,
}

impl Node {
    pub fn new(
        kernel: Kernel,
        store: Arc<SvidStore>,
        shared: Arc<Shared>,
        workers: Workers,
    ) -> Self {
        let home = ["/proc/self/ns/net", "/proc/1/ns/net"]
            .into_iter()
            .filter_map(|path| Namespace::open(Path::new(path)).ok())
            .map(|namespace| namespace.cookie())
            .collect();
        Self {
            kernel,
            store,
            shared,
            workers,
            home,
            enrolled: BTreeMap::new(),
            waiting: BTreeMap::new(),
            pending: None,
            ticks: 0,
            starting: Vec::new(),
            leaving: Vec::new(),
            orphans: Vec::new(),
            orphans_on_host: Vec::new(),
            mesh: MeshAddresses::default(),
            cgroup_attached: false,
            full: Full::default(),
        }
    }

    /// What found no place in the kernel's tables, and what that means.
    pub fn full(&self) -> Vec<String> {
        self.full.says()
    }

    /// Puts `snapshot` in force. What it no longer leaves in the clear is closed before it is
    /// published; what it newly leaves in the clear, and workloads that it no longer has, are opened
    /// after. When that fails on the way, the rest is tried again by [`Self::tick`].
    pub fn apply(&mut self, snapshot: Arc<Snapshot>) -> Result<(), BpfError> {
        // After a try that failed half way nobody knows what was closed already: look at everything.
        let again = self.pending.replace(snapshot.clone()).is_some();
        let wanted = snapshot.node_workloads();
        let keys: HashSet<String> = wanted.iter().map(|workload| key(workload)).collect();
        self.waiting.retain(|key, _| keys.contains(key));
        let mesh = MeshAddresses {
            addresses: snapshot.addresses().into_iter().collect(),
            ranges: snapshot.settings.mesh_ranges.clone(),
        };
        let mesh_changed = mesh != self.mesh;
        self.kernel.tables.add_mesh(&mesh.addresses, &mesh.ranges)?;
        for workload in wanted {
            self.ensure(workload, &snapshot, &keys)?;
        }
        for entry in self.enrolled.values_mut() {
            let bypasses = bypasses(&snapshot, &entry.wanted);
            if bypasses != entry.bypasses || mesh_changed || again {
                entry.sweeps = SWEEPS;
            }
            entry.bypasses = bypasses;
            self.kernel.tables.close_bypasses(entry.slot, &entry.bypasses)?;
        }
        self.shared.publish(snapshot.clone());
        self.start_serving();
        let gone: Vec<String> =
            self.enrolled.keys().filter(|key| !keys.contains(*key)).cloned().collect();
        for key in gone {
            self.remove(&key)?;
        }
        for entry in self.enrolled.values() {
            open_bypasses(&mut self.kernel, &mut self.full, entry)?;
        }
        let left_out = self.kernel.tables.keep_mesh(&mesh.addresses, &mesh.ranges)?;
        self.full.mesh(left_out);
        self.mesh = mesh;
        let ids: BTreeSet<SpiffeId> = wanted.iter().map(|w| w.workload.id.clone()).collect();
        self.store.retain(&ids);
        if !self.cgroup_attached {
            self.adopt_or_drop_leftovers()?;
            self.kernel.attach_cgroup()?;
            self.cgroup_attached = true;
        }
        self.drop_orphans_on_host()?;
        self.sweep();
        self.pending = None;
        Ok(())
    }

    /// Only now, with the snapshot published that has them: an earlier one would judge their first
    /// connections without their policy. Until here they waited in the listeners' queues.
    fn start_serving(&mut self) {
        for Starting { pod, outbound, inbound } in self.starting.drain(..) {
            self.workers.serve(&pod, Listening::Outbound, outbound.into_per_worker());
            self.workers.serve(&pod, Listening::Inbound, inbound.into_per_worker());
        }
    }

    /// Once a second: namespaces come and go without a word.
    pub fn tick(&mut self) -> Result<(), BpfError> {
        self.ticks += 1;
        let lost: Vec<String> = self
            .enrolled
            .iter()
            .filter(|(_, entry)| !entry.namespace.is_current())
            .map(|(key, _)| key.clone())
            .collect();
        for key in lost {
            self.orphan(&key)?;
        }
        self.forget_dead_orphans()?;
        self.restore_left();
        self.follow_cgroups()?;
        if let Some(pending) = self.pending.clone() {
            return self.apply(pending);
        }
        self.retry_waiting()?;
        self.sweep();
        Ok(())
    }

    /// Rules and routes go when no relay needs them: without them an application's end of one would
    /// send what it has, decrypted, to the client's real address.
    fn restore_left(&mut self) {
        self.leaving.retain(|Leaving { key, pod, changed }| {
            if pod.connections() > 0 {
                return true;
            }
            if let Err(error) = setup::restore(&pod.namespace, *changed) {
                tracing::warn!(workload = %key, %error, "could not take back rules and routes");
            }
            false
        });
    }

    /// A namespace that was awaited may be there; what was refused may have been mended.
    fn retry_waiting(&mut self) -> Result<(), BpfError> {
        let refused_too = self.ticks.is_multiple_of(RETRY_REFUSED);
        let due: Vec<Arc<NodeWorkload>> = self
            .waiting
            .values()
            .filter(|(workload, state)| match state {
                // Looked at while its namespace was going, it was refused for a reason that is gone, too.
                WorkloadState::Refused(_) => refused_too || !exists(&workload.place),
                _ => exists(&workload.place),
            })
            .map(|(workload, _)| workload.clone())
            .collect();
        let snapshot = self.shared.snapshot.load_full();
        let keys = snapshot.node_workloads().iter().map(|workload| key(workload)).collect();
        for workload in due {
            self.ensure(&workload, &snapshot, &keys)?;
            if let Some(entry) = self.enrolled.get(&key(&workload)) {
                self.kernel.tables.close_bypasses(entry.slot, &entry.bypasses)?;
            }
            self.start_serving();
            if let Some(entry) = self.enrolled.get(&key(&workload)) {
                open_bypasses(&mut self.kernel, &mut self.full, entry)?;
            }
        }
        Ok(())
    }

    /// Handshakes that were never completed leave no entry behind.
    pub fn sweep_flows(&mut self, older_than: std::time::Duration) -> Result<usize, BpfError> {
        self.kernel.tables.sweep_flows(older_than)
    }

    /// A snapshot failed on its way in force: what it closes may be closed and what it opens is not.
    pub fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    pub fn enrolled_count(&self) -> usize {
        self.enrolled.len()
    }

    pub fn status(&self) -> Vec<WorkloadStatus> {
        let enrolled = self.enrolled.values().map(|entry| WorkloadStatus {
            outbound_port: Some(entry.pod.outbound_port),
            inbound_port: Some(entry.pod.inbound_port),
            cgroup_id: entry.host.as_ref().and_then(Host::id),
            cgroup_refused: entry.host.as_ref().and_then(|host| host.refused.clone()),
            ..status(&entry.wanted, WorkloadState::Enrolled)
        });
        let waiting =
            self.waiting.values().map(|(workload, state)| status(workload, state.clone()));
        enrolled.chain(waiting).collect()
    }

    /// Stops taking connections; those that are open go on.
    pub fn stop_accepting(&self) {
        for entry in self.enrolled.values() {
            entry.pod.stop_accepting();
        }
    }

    /// Workloads that are configured and not enrolled, because something is wrong with them: they
    /// talk in the clear, so the node is not ready.
    pub fn refused(&self) -> Vec<String> {
        self.waiting
            .iter()
            .filter_map(|(key, (_, state))| match state {
                WorkloadState::Refused(reason) => Some(format!("{key} is not enrolled: {reason}")),
                _ => None,
            })
            .collect()
    }

    /// `keys` are the names of all workloads that the configuration has.
    fn ensure(
        &mut self,
        wanted: &Arc<NodeWorkload>,
        snapshot: &Snapshot,
        keys: &HashSet<String>,
    ) -> Result<(), BpfError> {
        let key = key(wanted);
        if let Some(entry) = self.enrolled.get_mut(&key) {
            let same_place = entry.wanted.place == wanted.place && entry.namespace.is_current();
            if same_place {
                if entry.wanted != *wanted {
                    self.update(&key, wanted)?;
                }
                return Ok(());
            }
            if entry.host.is_some() {
                // The host's namespace does not end, so nothing can be shut until it does.
                self.remove(&key)?;
            } else {
                self.orphan(&key)?;
            }
        }
        let previous = self.waiting.remove(&key).map(|(_, state)| state);
        let state = match self.enrol(wanted, snapshot, keys) {
            Ok(()) => {
                tracing::info!(workload = %key, identity = %wanted.workload.id,
                    place = %wanted.place, "enrolled");
                return Ok(());
            }
            Err(error @ EnrolError::Absent { .. }) => WorkloadState::Pending(error.to_string()),
            Err(error) => WorkloadState::Refused(error.to_string()),
        };
        if previous.as_ref() != Some(&state) {
            match &state {
                WorkloadState::Refused(reason) => {
                    tracing::error!(workload = %key, %reason, "cannot enrol");
                }
                _ => tracing::info!(workload = %key, ?state, "waiting"),
            }
        }
        self.waiting.insert(key, (wanted.clone(), state));
        Ok(())
    }

    fn enrol(
        &mut self,
        wanted: &Arc<NodeWorkload>,
        snapshot: &Snapshot,
        keys: &HashSet<String>,
    ) -> Result<(), EnrolError> {
        let place = match &wanted.place {
            Place::Namespace(path) => path,
            Place::Host(cgroup) => return self.enrol_on_host(wanted, cgroup, snapshot, keys),
        };
        let path = place.display().to_string();
        let io = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => EnrolError::Absent { path: path.clone() },
            _ => EnrolError::Io { path: path.clone(), error },
        };
        let namespace = Arc::new(Namespace::open(place).map_err(io)?);
        let cookie = namespace.cookie();
        if self.home.contains(&cookie) {
            return Err(EnrolError::Refused(format!(
                "{path} is the host's or the daemon's own network namespace, and not one workload's: \
                 give it a namespace of its own, or say by which cgroup it is known (cgroup, systemdUnit)"
            )));
        }
        let holder = self.enrolled.iter().find(|(_, entry)| entry.namespace.cookie() == cookie);
        if let Some(holder) = holder.map(|(key, _)| key.clone()) {
            if keys.contains(&holder) {
                return Err(EnrolError::Refused(format!(
                    "{path} is already enrolled as {holder}: one workload a namespace"
                )));
            }
            // It has another name now: no moment without interception in between.
            if let Some(entry) = self.enrolled.remove(&holder) {
                self.enrolled.insert(key(wanted), entry);
            }
            return Ok(self.update(&key(wanted), wanted)?);
        }
        let place = std::os::fd::AsFd::as_fd(&*namespace);
        self.kernel.refuse_foreign(place, namespace.path(), cookie)?;
        let slot = self.kernel.tables.slot_for(cookie, 0)?;
        let earlier = self.kernel.tables.workload(slot).copied();
        let prepared = setup::prepare(&namespace, self.kernel.features())?;
        let result =
            self.enrol_at(wanted, &namespace, None, slot, earlier.as_ref(), prepared, snapshot);
        if result.is_err() && earlier.is_none() {
            // Nothing was enrolled before, so nothing is opened by taking this back.
            self.kernel.tables.remove_workload(slot)?;
            self.kernel.detach_namespace(cookie)?;
            setup::restore(&namespace, prepared.changed)?;
        }
        if result.is_ok() {
            self.orphans.retain(|(_, orphan)| *orphan != cookie);
            self.leaving.retain(|left| left.pod.namespace.cookie() != cookie);
        }
        result
    }

    /// From the inside out: listeners, then the inbound side, then the outbound side.
    #[expect(clippy::too_many_arguments, reason = "two calls; a structure would only rename them")]
    fn enrol_at(
        &mut self,
        wanted: &Arc<NodeWorkload>,
        namespace: &Arc<Namespace>,
        host: Option<Host>,
        slot: u32,
        earlier: Option<&abi::Workload>,
        prepared: Prepared,
        snapshot: &Snapshot,
    ) -> Result<(), EnrolError> {
        let workers = self.workers.count();
        let taken = match host {
            Some(_) => host::declared_ports(snapshot.node_workloads()),
            None => HashSet::new(),
        };
        let open = |preferred: Option<u16>| {
            let preferred = preferred.filter(|port| *port != 0);
            Listeners::open(namespace, workers, prepared.ipv6, preferred, &taken).map_err(|error| {
                EnrolError::Io { path: namespace.path().display().to_string(), error }
            })
        };
        let outbound = open(earlier.map(|entry| entry.outbound_port))?;
        let inbound = open(earlier.map(|entry| entry.inbound_port))?;
        let cookie = namespace.cookie();
        let entry = abi::Workload {
            netns_cookie: cookie,
            host: host.as_ref().map_or(0, |host| host::number(&host.cgroup)),
            outbound_port: outbound.port,
            inbound_port: inbound.port,
            workers: workers as u16,
            inbound_untouched: earlier.map_or(0, |entry| entry.inbound_untouched),
            changed: earlier.map_or(0, |entry| entry.changed) | prepared.changed,
            ..shown(wanted)
        };
        let tables = &mut self.kernel.tables;
        let left_out = tables.set_workload(slot, entry, &wanted.workload.addresses)?;
        self.full.own_addresses(&key(wanted), left_out);
        for (listeners, is_inbound) in [(&outbound, false), (&inbound, true)] {
            for (sockets, is_ipv6) in [(&listeners.ipv4, false), (&listeners.ipv6, true)] {
                for (worker, socket) in sockets.iter().enumerate() {
                    let worker = worker as u32;
                    tables.set_listener(slot, is_inbound, is_ipv6, worker, cookie, socket)?;
                }
            }
        }
        let pod = Arc::new(Pod::new(
            namespace.clone(),
            self.current(wanted),
            outbound.port,
            inbound.port,
            host.is_some(),
        ));
        let place = std::os::fd::AsFd::as_fd(&**namespace);
        match &host {
            None => {
                self.kernel.attach_namespace(place, namespace.path(), cookie, slot)?;
                self.kernel.tables.enrol(cookie, slot)?;
            }
            Some(host) => {
                let places = host::places(&wanted.workload, outbound.port);
                self.kernel.tables.set_host_ports(slot, &places)?;
                // One for them all.
                if self.enrolled.values().all(|entry| entry.host.is_none()) {
                    self.kernel.attach_host(place, namespace.path(), cookie)?;
                }
                self.kernel.tables.enrol(cookie, HOST)?;
                self.kernel.tables.set_cgroup(slot, host.id())?;
            }
        }
        self.starting.push(Starting { pod: pod.clone(), outbound, inbound });
        let enrolled = Enrolled {
            wanted: wanted.clone(),
            namespace: namespace.clone(),
            host,
            slot,
            pod,
            bypasses: bypasses(snapshot, wanted),
            sweeps: SWEEPS,
        };
        self.enrolled.insert(key(wanted), enrolled);
        Ok(())
    }

    /// What its connections go by.
    fn current(&self, wanted: &NodeWorkload) -> Current {
        Current {
            workload: wanted.workload.clone(),
            identity: self.store.slot(&wanted.workload.id),
            forward_client_cert: wanted.forward_client_cert,
        }
    }

    /// Same namespace, changed description.
    fn update(&mut self, key: &str, wanted: &Arc<NodeWorkload>) -> Result<(), BpfError> {
        let connections = self.current(wanted);
        let Some(entry) = self.enrolled.get_mut(key) else { return Ok(()) };
        if let Some(current) = self.kernel.tables.workload(entry.slot).copied() {
            let changed = abi::Workload {
                address4: shown(wanted).address4,
                address6: shown(wanted).address6,
                ..current
            };
            let addresses = &wanted.workload.addresses;
            let left_out = self.kernel.tables.set_workload(entry.slot, changed, addresses)?;
            self.full.own_addresses(key, left_out);
            if entry.host.is_some() {
                let places = host::places(&wanted.workload, entry.pod.outbound_port);
                self.kernel.tables.set_host_ports(entry.slot, &places)?;
            }
        }
        entry.pod.replace(connections);
        entry.wanted = wanted.clone();
        entry.sweeps = SWEEPS;
        if entry.host.is_some() { self.renew_host_ports() } else { Ok(()) }
    }

    /// The configuration no longer has it: from here on its traffic is its own. Connections that the
    /// daemon relayed for it end.
    fn remove(&mut self, key: &str) -> Result<(), BpfError> {
        let Some(entry) = self.enrolled.get(key) else { return Ok(()) };
        let (slot, cookie) = (entry.slot, entry.namespace.cookie());
        let changed = self.kernel.tables.workload(slot).map_or(0, |entry| entry.changed);
        // Should this fail, it is still there to be tried again.
        self.forget(slot, cookie)?;
        let Some(entry) = self.enrolled.remove(key) else { return Ok(()) };
        tracing::info!(workload = %key, "no longer enrolled");
        self.full.forget(key);
        entry.pod.end();
        if entry.host.is_some() {
            return self.renew_host_ports();
        }
        self.leaving.push(Leaving { key: key.to_owned(), pod: entry.pod, changed });
        Ok(())
    }

    fn sweep(&mut self) {
        for (key, entry) in &mut self.enrolled {
            if entry.sweeps == 0 {
                continue;
            }
            entry.sweeps -= 1;
            let (bypasses, mesh) = (&entry.bypasses, &self.mesh);
            let conforms = |connection: &Connection| {
                if connection.inbound {
                    return bypasses.allows_inbound(connection.local.port());
                }
                let remote = connection.remote;
                bypasses
                    .allows_outbound(remote.ip(), remote.port())
                    .unwrap_or_else(|| !mesh.contains(remote.ip()))
            };
            let workload = &entry.wanted.workload;
            let scope = match &entry.host {
                None => Scope::Namespace { own_addresses: &workload.addresses },
                Some(host) => Scope::Host {
                    cgroups: host.found.as_ref().map(Found::ids).unwrap_or_default(),
                    declared: host::declared(workload),
                },
            };
            match sweep(&entry.namespace, &scope, conforms) {
                Ok(destroyed) => {
                    for Connection { local, remote, .. } in destroyed {
                        tracing::info!(workload = %key, %local, %remote,
                            "ended a connection that policy does not leave in the clear");
                    }
                }
                Err(error) => {
                    entry.sweeps = 1;
                    tracing::error!(workload = %key, %error,
                        "cannot end connections that policy does not allow; trying again");
                }
            }
        }
    }
}

fn exists(place: &Place) -> bool {
    match place {
        Place::Namespace(path) => path.exists(),
        Place::Host(_) => true,
    }
}

fn open_bypasses(kernel: &mut Kernel, full: &mut Full, entry: &Enrolled) -> Result<(), BpfError> {
    let left_out = kernel.tables.open_bypasses(entry.slot, &entry.bypasses)?;
    full.bypasses(&key(&entry.wanted), left_out);
    Ok(())
}
