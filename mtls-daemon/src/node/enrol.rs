//! Enrolment: brings the kernel, the namespaces and the listeners in step with a snapshot.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;
use mtls_common::flow::Address;
use mtls_common::workload::{self as abi, bypass};
use serde::Serialize;

use super::listeners::Listeners;
use super::setup::Prepared;
use super::sweep::{Connection, sweep};
use super::{Namespace, setup};
use crate::bpf::{BpfError, Bypasses, Kernel};
use crate::identity::{SpiffeId, SvidStore};
use crate::mesh::{NodeWorkload, Snapshot};
use crate::proxy::{Listening, Pod, Shared, Workers};

/// The workloads of this node, and the only writer of the kernel's tables.
pub struct Node {
    kernel: Kernel,
    store: Arc<SvidStore>,
    shared: Arc<Shared>,
    workers: Workers,
    /// Namespaces that must never be enrolled: the daemon's and the host's.
    home: HashSet<u64>,
    /// By `namespace/name` of the NodeWorkload.
    enrolled: BTreeMap<String, Enrolled>,
    waiting: BTreeMap<String, (Arc<NodeWorkload>, WorkloadState)>,
    /// Namespaces that lost their name but may still hold processes: they stay shut until the
    /// kernel says that they are gone.
    orphans: Vec<(u32, u64)>,
    mesh: MeshAddresses,
    cgroup_attached: bool,
}

struct Enrolled {
    wanted: Arc<NodeWorkload>,
    namespace: Arc<Namespace>,
    slot: u32,
    pod: Arc<Pod>,
    bypasses: Bypasses,
    /// Sweeps that are still to come: a connection can be between SYN and accept during one.
    sweeps: u8,
}

/// Destinations that are the daemon's unless a row says otherwise.
#[derive(Default, PartialEq, Eq, Clone)]
struct MeshAddresses {
    addresses: HashSet<IpAddr>,
    ranges: Vec<IpNet>,
}

impl MeshAddresses {
    fn contains(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
            || self.ranges.iter().any(|range| range.contains(&address))
    }
}

/// How far a configured workload has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "reason", rename_all = "snake_case")]
pub enum WorkloadState {
    Enrolled,
    /// Its namespace is not there yet.
    Pending(String),
    Refused(String),
}

/// One workload's line in `status`.
#[derive(Debug, Clone, Serialize)]
pub struct WorkloadStatus {
    pub workload: String,
    pub identity: SpiffeId,
    pub network_namespace: std::path::PathBuf,
    #[serde(flatten)]
    pub state: WorkloadState,
    pub addresses: Vec<IpAddr>,
    pub outbound_port: Option<u16>,
    pub inbound_port: Option<u16>,
}

#[derive(Debug, thiserror::Error)]
enum EnrolError {
    #[error("network namespace {path} does not exist (yet)")]
    Absent { path: String },
    #[error("{0}")]
    Refused(String),
    #[error("network namespace {path}: {error}")]
    Io { path: String, error: io::Error },
    #[error(transparent)]
    Setup(#[from] setup::SetupError),
    #[error(transparent)]
    Bpf(#[from] BpfError),
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
            orphans: Vec::new(),
            mesh: MeshAddresses::default(),
            cgroup_attached: false,
        }
    }

    /// Puts `snapshot` in force. What it no longer leaves in the clear is closed before it is
    /// published, what it newly leaves in the clear is opened after.
    pub fn apply(&mut self, snapshot: Arc<Snapshot>) -> Result<(), BpfError> {
        let wanted = snapshot.node_workloads();
        let keys: HashSet<String> = wanted.iter().map(|workload| key(workload)).collect();
        let gone: Vec<String> =
            self.enrolled.keys().filter(|key| !keys.contains(*key)).cloned().collect();
        for key in gone {
            self.remove(&key)?;
        }
        self.waiting.retain(|key, _| keys.contains(key));
        let ids: BTreeSet<SpiffeId> = wanted.iter().map(|w| w.workload.id.clone()).collect();
        self.store.retain(&ids);

        let mesh = MeshAddresses {
            addresses: snapshot.addresses().into_iter().collect(),
            ranges: snapshot.settings.mesh_ranges.clone(),
        };
        let mesh_changed = mesh != self.mesh;
        if mesh_changed {
            let addresses: Vec<IpAddr> = mesh.addresses.iter().copied().collect();
            self.kernel.tables.set_mesh_addresses(&addresses)?;
            self.kernel.tables.set_mesh_ranges(&mesh.ranges)?;
            self.mesh = mesh;
        }
        for workload in wanted {
            self.ensure(workload, &snapshot)?;
        }
        for entry in self.enrolled.values_mut() {
            let bypasses = bypasses(&snapshot, entry);
            if bypasses != entry.bypasses || mesh_changed {
                entry.bypasses = bypasses;
                entry.sweeps = 2;
            }
            self.kernel.tables.close_bypasses(entry.slot, &entry.bypasses)?;
        }
        self.shared.snapshot.store(snapshot);
        for entry in self.enrolled.values() {
            let left_out = self.kernel.tables.open_bypasses(entry.slot, &entry.bypasses)?;
            if left_out > 0 {
                tracing::warn!(
                    workload = key(&entry.wanted),
                    rows = left_out,
                    "the kernel's outbound table is full: these destinations go through the daemon"
                );
            }
        }
        if !self.cgroup_attached {
            self.adopt_or_drop_leftovers()?;
            self.kernel.attach_cgroup()?;
            self.cgroup_attached = true;
        }
        self.sweep();
        Ok(())
    }

    /// Once a second: namespaces come and go without a word.
    pub fn tick(&mut self) -> Result<(), BpfError> {
        let lost: Vec<String> = self
            .enrolled
            .iter()
            .filter(|(_, entry)| !entry.namespace.is_current())
            .map(|(key, _)| key.clone())
            .collect();
        for key in lost {
            self.orphan(&key);
        }
        let kernel = &mut self.kernel;
        let mut still = Vec::new();
        for (slot, cookie) in std::mem::take(&mut self.orphans) {
            if kernel.namespace_lives(cookie)? {
                still.push((slot, cookie));
            } else {
                kernel.tables.remove_workload(slot)?;
                kernel.detach_namespace(cookie)?;
            }
        }
        self.orphans = still;
        let ready: bool = self.waiting.values().any(|(workload, state)| {
            matches!(state, WorkloadState::Refused(_)) || workload.network_namespace.exists()
        });
        if ready {
            let snapshot = self.shared.snapshot.load_full();
            return self.apply(snapshot);
        }
        self.sweep();
        Ok(())
    }

    /// Handshakes that were never completed leave no entry behind.
    pub fn sweep_flows(&mut self, older_than: std::time::Duration) -> Result<usize, BpfError> {
        self.kernel.tables.sweep_flows(older_than)
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

    fn ensure(&mut self, wanted: &Arc<NodeWorkload>, snapshot: &Snapshot) -> Result<(), BpfError> {
        let key = key(wanted);
        if let Some(entry) = self.enrolled.get_mut(&key) {
            let same_place = entry.wanted.network_namespace == wanted.network_namespace
                && entry.namespace.is_current();
            if same_place {
                if entry.wanted != *wanted {
                    self.update(&key, wanted)?;
                }
                return Ok(());
            }
            self.orphan(&key);
        }
        let previous = self.waiting.remove(&key).map(|(_, state)| state);
        let state = match self.enrol(wanted, snapshot) {
            Ok(()) => {
                tracing::info!(workload = %key, identity = %wanted.workload.id,
                    namespace = %wanted.network_namespace.display(), "enrolled");
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

    fn enrol(&mut self, wanted: &Arc<NodeWorkload>, snapshot: &Snapshot) -> Result<(), EnrolError> {
        let path = wanted.network_namespace.display().to_string();
        let io = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => EnrolError::Absent { path: path.clone() },
            _ => EnrolError::Io { path: path.clone(), error },
        };
        let namespace = Arc::new(Namespace::open(&wanted.network_namespace).map_err(io)?);
        let cookie = namespace.cookie();
        if self.home.contains(&cookie) {
            return Err(EnrolError::Refused(format!(
                "{path} is the host's or the daemon's own network namespace: its connections \
                 cannot be told from the daemon's; give the workload a namespace of its own"
            )));
        }
        if let Some(other) = self.enrolled.values().find(|e| e.namespace.cookie() == cookie) {
            return Err(EnrolError::Refused(format!(
                "{path} is already enrolled as {}: one workload a namespace",
                super::enrol::key(&other.wanted)
            )));
        }
        self.orphans.retain(|(_, orphan)| *orphan != cookie);
        let prepared = setup::prepare(&namespace)?;
        let slot = self.kernel.tables.slot_for(cookie)?;
        let earlier = self.kernel.tables.workload(slot).copied();
        let result = self.enrol_at(wanted, &namespace, slot, earlier.as_ref(), prepared, snapshot);
        if result.is_err() && earlier.is_none() {
            // Nothing was enrolled before, so nothing is opened by taking this back.
            self.kernel.tables.remove_workload(slot)?;
            self.kernel.detach_namespace(cookie)?;
        }
        result
    }

    /// From the inside out: listeners, then the inbound side, then the outbound side.
    fn enrol_at(
        &mut self,
        wanted: &Arc<NodeWorkload>,
        namespace: &Arc<Namespace>,
        slot: u32,
        earlier: Option<&abi::Workload>,
        prepared: Prepared,
        snapshot: &Snapshot,
    ) -> Result<(), EnrolError> {
        let workers = self.workers.count();
        let open = |preferred: Option<u16>| {
            Listeners::open(namespace, workers, prepared.ipv6, preferred.filter(|port| *port != 0))
                .map_err(|error| EnrolError::Io {
                    path: namespace.path().display().to_string(),
                    error,
                })
        };
        let outbound = open(earlier.map(|entry| entry.outbound_port))?;
        let inbound = open(earlier.map(|entry| entry.inbound_port))?;
        let cookie = namespace.cookie();
        let entry = abi::Workload {
            netns_cookie: cookie,
            outbound_port: outbound.port,
            inbound_port: inbound.port,
            workers: workers as u16,
            inbound_untouched: earlier.map_or(0, |entry| entry.inbound_untouched),
            changed: earlier.map_or(0, |entry| entry.changed) | prepared.changed,
            ..shown(wanted)
        };
        let tables = &mut self.kernel.tables;
        tables.set_workload(slot, entry, &wanted.workload.addresses)?;
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
            wanted.workload.clone(),
            self.store.slot(&wanted.workload.id),
            outbound.port,
            inbound.port,
        ));
        self.kernel.attach_namespace(
            std::os::fd::AsFd::as_fd(&**namespace),
            namespace.path(),
            cookie,
            slot,
        )?;
        self.kernel.tables.enrol(cookie, slot)?;
        self.workers.serve(&pod, Listening::Outbound, outbound.into_per_worker());
        self.workers.serve(&pod, Listening::Inbound, inbound.into_per_worker());
        let mut enrolled = Enrolled {
            wanted: wanted.clone(),
            namespace: namespace.clone(),
            slot,
            pod,
            bypasses: Bypasses::default(),
            sweeps: 2,
        };
        enrolled.bypasses = bypasses(snapshot, &enrolled);
        self.enrolled.insert(key(wanted), enrolled);
        Ok(())
    }

    /// Same namespace, changed description.
    fn update(&mut self, key: &str, wanted: &Arc<NodeWorkload>) -> Result<(), BpfError> {
        let Some(entry) = self.enrolled.get_mut(key) else { return Ok(()) };
        if let Some(current) = self.kernel.tables.workload(entry.slot).copied() {
            let changed = abi::Workload {
                address4: shown(wanted).address4,
                address6: shown(wanted).address6,
                ..current
            };
            self.kernel.tables.set_workload(entry.slot, changed, &wanted.workload.addresses)?;
        }
        entry.pod.replace(wanted.workload.clone(), self.store.slot(&wanted.workload.id));
        entry.wanted = wanted.clone();
        entry.sweeps = 2;
        Ok(())
    }

    /// The configuration no longer has it: from here on its traffic is its own.
    fn remove(&mut self, key: &str) -> Result<(), BpfError> {
        let Some(entry) = self.enrolled.remove(key) else { return Ok(()) };
        tracing::info!(workload = %key, "no longer enrolled");
        let changed = self.kernel.tables.workload(entry.slot).map_or(0, |entry| entry.changed);
        self.kernel.tables.remove_workload(entry.slot)?;
        self.kernel.detach_namespace(entry.namespace.cookie())?;
        entry.pod.stop_accepting();
        if let Err(error) = setup::restore(&entry.namespace, changed) {
            tracing::warn!(workload = %key, %error, "could not take back the rules and routes");
        }
        Ok(())
    }

    /// Its namespace lost its name. Listeners and connections end, so that nothing of the daemon's
    /// keeps it alive; the kernel's tables keep it shut while anything else does.
    fn orphan(&mut self, key: &str) {
        let Some(entry) = self.enrolled.remove(key) else { return };
        tracing::info!(workload = %key, "its network namespace is gone");
        entry.pod.end();
        self.orphans.push((entry.slot, entry.namespace.cookie()));
    }

    /// Workloads that an earlier daemon left enrolled and this configuration does not have: gone,
    /// unless one that it does have is still waiting for its namespace and might be meant.
    fn adopt_or_drop_leftovers(&mut self) -> Result<(), BpfError> {
        let known: HashSet<u32> = self.enrolled.values().map(|entry| entry.slot).collect();
        let left: Vec<(u32, u64)> = self
            .kernel
            .tables
            .workloads()
            .filter(|(slot, _)| !known.contains(slot))
            .map(|(slot, entry)| (slot, entry.netns_cookie))
            .collect();
        for (slot, cookie) in left {
            if self.kernel.namespace_lives(cookie)? && !self.waiting.is_empty() {
                self.orphans.push((slot, cookie));
            } else {
                self.kernel.tables.remove_workload(slot)?;
                self.kernel.detach_namespace(cookie)?;
            }
        }
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
            match sweep(&entry.namespace, &entry.wanted.workload.addresses, conforms) {
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

pub(super) fn key(workload: &NodeWorkload) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}

fn status(wanted: &NodeWorkload, state: WorkloadState) -> WorkloadStatus {
    WorkloadStatus {
        workload: key(wanted),
        identity: wanted.workload.id.clone(),
        network_namespace: wanted.network_namespace.clone(),
        state,
        addresses: wanted.workload.addresses.clone(),
        outbound_port: None,
        inbound_port: None,
    }
}

/// The addresses that the application sees as its own on a redirected connection.
fn shown(wanted: &NodeWorkload) -> abi::Workload {
    let first = |ipv4: bool| {
        let address = wanted.workload.addresses.iter().find(|address| address.is_ipv4() == ipv4);
        address.map_or(Address::default(), |address| Address::from(*address))
    };
    abi::Workload { address4: first(true), address6: first(false), ..abi::Workload::default() }
}

fn bypasses(snapshot: &Snapshot, entry: &Enrolled) -> Bypasses {
    let answer = |untouched| if untouched { bypass::UNTOUCHED } else { bypass::REDIRECT };
    let workload = &entry.wanted.workload;
    let table = snapshot.inbound_table(workload);
    let outbound = snapshot
        .outbound_rows(workload)
        .into_iter()
        .map(|row| ((Address::from(row.address), row.port), answer(row.untouched)))
        .collect();
    let inbound = table
        .exceptions
        .into_iter()
        .map(|port| (port, answer(!table.untouched_by_default)))
        .collect();
    Bypasses { outbound, inbound_untouched: table.untouched_by_default, inbound }
}
