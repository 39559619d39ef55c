//! `WorkloadEntry` and `NodeWorkload` objects to workloads.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::workload_entry::{NodeWorkloadEntry, WorkloadEntry, speaks_mtls};
use super::{Cgroup, Endpoint, MeshSettings, NodeWorkload, Place, Workload, naming};
use crate::identity::SpiffeId;
use crate::policy::error::{Code, ConfigError, Origin};

/// One address of the mesh and the workload that owns it.
#[derive(Debug)]
pub struct Member {
    pub address: IpAddr,
    pub workload: Arc<Workload>,
    /// The entry's own named ports.
    pub ports: BTreeMap<String, u16>,
    pub has_service_account: bool,
    pub origin: Origin,
}

/// All workloads.
#[derive(Debug, Default)]
pub struct Members {
    pub list: Vec<Member>,
    /// Workloads of one host share its addresses: then the first of them.
    pub by_address: HashMap<IpAddr, usize>,
    /// Their ports.
    host_ports: HashMap<SocketAddr, usize>,
    shared: HashSet<IpAddr>,
    pub node_workloads: Vec<Arc<NodeWorkload>>,
}

impl Members {
    pub fn at(&self, address: IpAddr) -> Option<&Member> {
        self.by_address.get(&address).map(|index| &self.list[*index])
    }

    /// Every workload that has the address: on a host several.
    pub fn all_at(&self, address: IpAddr) -> Vec<&Member> {
        if self.is_shared(address) {
            self.list.iter().filter(|member| member.address == address).collect()
        } else {
            self.at(address).into_iter().collect()
        }
    }

    /// Whether the endpoint's workload has not declared the port of its host, and another one has.
    pub fn is_anothers(&self, endpoint: &Endpoint, number: u16) -> bool {
        endpoint.workload.as_ref().is_some_and(|workload| !workload.has_port(number))
            && self.host_ports.contains_key(&SocketAddr::new(endpoint.address, number))
    }

    /// Whether the address alone does not say whose it is.
    pub fn is_shared(&self, address: IpAddr) -> bool {
        self.shared.contains(&address)
    }

    pub fn build(
        entries: &[WorkloadEntry],
        node_workloads: &[NodeWorkloadEntry],
        node: &str,
        settings: &MeshSettings,
        incumbents: &HashSet<Arc<str>>,
        errors: &mut Vec<ConfigError>,
        warnings: &mut Vec<ConfigError>,
    ) -> Self {
        let mut members = Self::default();
        let merged =
            members.merge(entries, node_workloads, node, settings, incumbents, errors, warnings);
        for (index, entry) in entries.iter().enumerate() {
            let workload = match &merged[index] {
                Some(workload) => workload.clone(),
                None => match single(entry, settings) {
                    Ok(workload) => workload,
                    Err(reason) => {
                        errors.push(entry.meta.origin.error("spec", Code::FieldValue, reason));
                        continue;
                    }
                },
            };
            if let Err(reason) = members.claim(entry.address, &workload) {
                errors.push(entry.meta.origin.error("spec.address", Code::Conflict, reason));
                continue;
            }
            members.list.push(Member {
                address: entry.address,
                workload,
                ports: entry.ports.clone(),
                has_service_account: entry.service_account.is_some(),
                origin: entry.meta.origin.clone(),
            });
        }
        members
    }

    /// Takes an address for the next in the list. Workloads of one host may share theirs: their ports do
    /// not.
    fn claim(&mut self, address: IpAddr, workload: &Workload) -> Result<(), String> {
        let next = self.list.len();
        if let Some(other) = self.at(address) {
            let place = other.origin.place();
            let both_of_a_host =
                other.workload.host_ports.is_some() && workload.host_ports.is_some();
            if !both_of_a_host {
                return Err(format!("{address} is also of {place}"));
            }
            self.shared.insert(address);
        }
        let ports = workload.host_ports.iter().flat_map(|ports| ports.iter());
        let places: Vec<SocketAddr> = ports.map(|port| (address, *port).into()).collect();
        if let Some((place, other)) =
            places.iter().find_map(|place| Some((place, self.host_ports.get(place)?)))
        {
            return Err(format!("{place} is also of {}", self.list[*other].workload.key()));
        }
        self.host_ports.extend(places.into_iter().map(|place| (place, next)));
        self.by_address.entry(address).or_insert(next);
        Ok(())
    }

    /// Merges the entries that a `NodeWorkload` names. Objects of other nodes are merged as well,
    /// so that every node calls a workload by the same name.
    #[expect(clippy::too_many_arguments, reason = "one call; a structure would only rename them")]
    fn merge(
        &mut self,
        entries: &[WorkloadEntry],
        node_workloads: &[NodeWorkloadEntry],
        node: &str,
        settings: &MeshSettings,
        incumbents: &HashSet<Arc<str>>,
        errors: &mut Vec<ConfigError>,
        warnings: &mut Vec<ConfigError>,
    ) -> Vec<Option<Arc<Workload>>> {
        let mut merged: Vec<Option<Arc<Workload>>> = vec![None; entries.len()];
        let mut claimed: HashMap<usize, &Origin> = HashMap::new();
        let mut places: HashMap<Place, &Origin> = HashMap::new();
        let here = |object: &NodeWorkloadEntry| object.node.as_deref().is_none_or(|n| n == node);
        // This node's first: where two nodes name one entry, each calls it by its own name.
        let mut objects: Vec<&NodeWorkloadEntry> = node_workloads.iter().collect();
        // Those that are in force already before newer ones.
        objects.sort_by_key(|object| {
            let newer = !incumbents.contains(&object.meta.origin.object);
            (!here(object), newer, object.meta.namespace.clone(), object.meta.name.clone())
        });
        for object in objects {
            let origin = &object.meta.origin;
            let Some(chosen) = choose(object, entries, errors) else { continue };
            let namesake = entries.iter().enumerate().find(|(index, entry)| {
                entry.meta.namespace == object.meta.namespace
                    && entry.meta.name == object.meta.name
                    && !chosen.contains(index)
            });
            if let Some((_, entry)) = namesake {
                let reason = format!(
                    "two workloads would be called {}/{}: {} is not among workloadEntries",
                    object.meta.namespace,
                    object.meta.name,
                    entry.meta.origin.place()
                );
                // Whoever had the name keeps it.
                let newer = |origin: &Origin| !incumbents.contains(&origin.object);
                let yields = match newer(&entry.meta.origin) && !newer(origin) {
                    true => &entry.meta.origin,
                    false => origin,
                };
                errors.push(yields.error("metadata.name", Code::Conflict, reason));
            }
            if here(object) {
                if let Some(other) = places.insert(object.place.clone(), origin) {
                    let reason = format!("{} is also of {}", object.place, other.place());
                    let field = match &object.place {
                        Place::Namespace(_) => "spec.networkNamespace",
                        Place::Host(Cgroup::Path(_)) => "spec.cgroup",
                        Place::Host(Cgroup::Unit(_)) => "spec.systemdUnit",
                    };
                    errors.push(origin.error(field, Code::Conflict, reason));
                }
                for index in &chosen {
                    if let Some(other) = claimed.insert(*index, origin) {
                        let entry = &entries[*index];
                        let reason =
                            format!("{} is also of {}", entry.meta.origin.object, other.place());
                        errors.push(origin.error("spec.workloadEntries", Code::Conflict, reason));
                    }
                }
            }
            let parts: Vec<&WorkloadEntry> = chosen.iter().map(|index| &entries[*index]).collect();
            let workload = match combine(object, &parts, settings) {
                Ok(workload) => Arc::new(workload),
                Err(reason) => {
                    errors.push(origin.error("spec.workloadEntries", Code::FieldValue, reason));
                    continue;
                }
            };
            for index in chosen {
                merged[index].get_or_insert_with(|| workload.clone());
            }
            if here(object) {
                if !workload.speaks_mtls {
                    warnings.push(origin.error(
                        "spec.workloadEntries",
                        Code::WarnSuspicious,
                        "the workload is enrolled, but its entries lack the label \
                         security.istio.io/tlsMode: istio, so clients send it plaintext",
                    ));
                }
                self.node_workloads.push(Arc::new(NodeWorkload {
                    namespace: object.meta.namespace.clone(),
                    name: object.meta.name.clone(),
                    place: object.place.clone(),
                    forward_client_cert: object.forward_client_cert,
                    workload,
                }));
            }
        }
        merged
    }
}

/// Indexes of the entries that the object names. None: an error was reported.
fn choose(
    object: &NodeWorkloadEntry,
    entries: &[WorkloadEntry],
    errors: &mut Vec<ConfigError>,
) -> Option<Vec<usize>> {
    let mut chosen = Vec::new();
    for (position, (name, line)) in object.workload_entries.iter().enumerate() {
        let found = entries
            .iter()
            .position(|e| e.meta.name == *name && e.meta.namespace == object.meta.namespace);
        match found {
            Some(index) => chosen.push(index),
            None => {
                let mut error = object.meta.origin.error(
                    &format!("spec.workloadEntries[{position}]"),
                    Code::Reference,
                    format!("there is no WorkloadEntry {}/{name}", object.meta.namespace),
                );
                error.line = *line;
                errors.push(error);
            }
        }
    }
    (chosen.len() == object.workload_entries.len() && !chosen.is_empty()).then_some(chosen)
}

/// One workload of all the entries: they must agree where they overlap.
fn combine(
    object: &NodeWorkloadEntry,
    parts: &[&WorkloadEntry],
    settings: &MeshSettings,
) -> Result<Workload, String> {
    let mut labels = BTreeMap::new();
    let mut ports = BTreeMap::new();
    let mut account: Option<&Arc<str>> = None;
    for part in parts {
        let object = &part.meta.origin.object;
        let own = part.service_account.as_ref().ok_or_else(|| {
            format!("{object} has no serviceAccount: an enrolled workload needs an identity")
        })?;
        if account.is_some_and(|first| first != own) {
            return Err(format!("{object} has another serviceAccount than the entries before it"));
        }
        account = Some(own);
        for (key, value) in &part.labels {
            if labels.insert(key.clone(), value.clone()).is_some_and(|old| old != *value) {
                return Err(format!("{object} has another value for label {key}"));
            }
        }
        for (key, value) in &part.ports {
            if ports.insert(key.clone(), *value).is_some_and(|old| old != *value) {
                return Err(format!("{object} has another number for port {key}"));
            }
        }
    }
    let account = account.ok_or("no WorkloadEntry is named")?;
    let id = SpiffeId::istio(&settings.trust_domain, &object.meta.namespace, account)
        .map_err(|error| error.to_string())?;
    Ok(Workload {
        namespace: object.meta.namespace.clone(),
        name: object.meta.name.clone(),
        service_account: account.clone(),
        id,
        speaks_mtls: speaks_mtls(&labels),
        labels,
        addresses: parts.iter().map(|part| part.address).collect(),
        ports,
        host_ports: object.host_ports.clone(),
    })
}

fn single(entry: &WorkloadEntry, settings: &MeshSettings) -> Result<Arc<Workload>, String> {
    let namespace = &entry.meta.namespace;
    let id = match &entry.service_account {
        Some(account) => SpiffeId::istio(&settings.trust_domain, namespace, account)
            .map_err(|error| error.to_string())?,
        None => naming::nobody(settings),
    };
    Ok(Arc::new(Workload {
        namespace: namespace.clone(),
        name: entry.meta.name.clone(),
        service_account: entry.service_account.clone().unwrap_or_default(),
        id,
        labels: entry.labels.clone(),
        addresses: vec![entry.address],
        ports: entry.ports.clone(),
        speaks_mtls: speaks_mtls(&entry.labels),
        host_ports: None,
    }))
}
