//! `ServiceEntry` objects to services with their endpoints resolved.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::members::{Member, Members};
use super::names::Answers;
use super::service_entry::{Resolution, ServiceEntry};
use super::workload_entry::EndpointSpec;
use super::{Endpoint, Service, ServicePort};
use crate::policy::effective::selects;
use crate::policy::error::{Code, ConfigError, Origin};

/// A service beside the object that it came from, sorted by namespace and name.
pub fn build<'e>(
    entries: &'e [ServiceEntry],
    members: &Members,
    incumbents: &HashSet<Arc<str>>,
    names: &Answers,
    errors: &mut Vec<ConfigError>,
    warnings: &mut Vec<ConfigError>,
) -> Vec<(Arc<Service>, &'e ServiceEntry)> {
    let mut services: Vec<(Arc<Service>, &ServiceEntry)> = entries
        .iter()
        .map(|entry| (Arc::new(service(entry, members, names, warnings)), entry))
        .collect();
    services.sort_by(|(a, _), (b, _)| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    check_addresses(&services, members, incumbents, errors);
    for (_, entry) in &services {
        check_shared(entry, members, incumbents, errors);
    }
    for (service, entry) in &services {
        let own = |e: &Endpoint| {
            e.workload.as_ref().is_none_or(|workload| workload.namespace == service.namespace)
        };
        if service.external && service.endpoints.iter().any(|e| e.speaks_mtls && own(e)) {
            warnings.push(entry.meta.origin.error(
                "spec.location",
                Code::WarnSuspicious,
                "is MESH_EXTERNAL (the default), so auto mTLS never applies although endpoints \
                 speak mTLS; say MESH_INTERNAL",
            ));
        }
    }
    services
}

fn service(
    entry: &ServiceEntry,
    members: &Members,
    names: &Answers,
    warnings: &mut Vec<ConfigError>,
) -> Service {
    let mut unresolved = None;
    let endpoints = match &entry.selector {
        Some(selector) => members
            .list
            .iter()
            .filter(|m| m.workload.namespace == entry.meta.namespace)
            .filter(|m| selects(selector, &m.workload.labels))
            .map(of_member)
            .collect(),
        None => match entry.resolution {
            Resolution::Static => {
                entry.endpoints.iter().map(|spec| of_spec(spec, members)).collect()
            }
            // Each address is a server's own, or a host's.
            Resolution::None => entry
                .addresses
                .iter()
                .flat_map(|(address, _)| match members.all_at(*address) {
                    found if found.is_empty() => vec![unknown(*address)],
                    found => found.into_iter().map(of_member).collect(),
                })
                .collect(),
            Resolution::Dns => {
                let (endpoints, error) = resolved(entry, members, names, warnings);
                unresolved = error;
                endpoints
            }
        },
    };
    Service {
        namespace: entry.meta.namespace.clone(),
        name: entry.meta.name.clone(),
        hosts: entry.hosts.clone(),
        addresses: entry.virtual_addresses().iter().map(|(address, _)| *address).collect(),
        ports: entry.ports.clone(),
        endpoints,
        external: entry.external,
        subject_alt_names: entry.subject_alt_names.clone(),
        unresolved,
    }
}

/// What the hosts' names stand for. Without a virtual address clients resolve them as well, perhaps
/// to what an earlier answer had; with one the daemon alone chooses.
fn resolved(
    entry: &ServiceEntry,
    members: &Members,
    names: &Answers,
    warnings: &mut Vec<ConfigError>,
) -> (Vec<Endpoint>, Option<Arc<str>>) {
    let mut addresses: Vec<IpAddr> = Vec::new();
    let mut error = None;
    for host in &entry.hosts {
        let Some(answer) = names.get(host) else { continue };
        let found = if entry.addresses.is_empty() { &answer.remembered } else { &answer.current };
        let warn =
            |reason: String| entry.meta.origin.error("spec.hosts", Code::WarnSuspicious, reason);
        if let Some(why) = &answer.error {
            warnings.push(warn(format!("{host} has no address: {why}")));
            error = Some(why.clone());
        }
        for address in found {
            if let Some(member) = members.at(*address) {
                // Whoever answers for the name must not take over a workload's connections.
                let place = member.origin.place();
                warnings.push(warn(format!("{host} is {address}, left out: it is of {place}")));
            } else if !addresses.contains(address) {
                addresses.push(*address);
            }
        }
    }
    (addresses.into_iter().map(unknown).collect(), error)
}

/// An endpoint of which only the address is known.
fn unknown(address: IpAddr) -> Endpoint {
    Endpoint {
        address,
        ports: BTreeMap::new(),
        labels: BTreeMap::new(),
        service_account: None,
        speaks_mtls: false,
        ready: true,
        workload: None,
    }
}

fn of_member(member: &Member) -> Endpoint {
    Endpoint {
        address: member.address,
        ports: member.ports.clone(),
        labels: member.workload.labels.clone(),
        service_account: member
            .has_service_account
            .then(|| member.workload.service_account.clone()),
        speaks_mtls: member.workload.speaks_mtls,
        ready: true,
        workload: Some(member.workload.clone()),
    }
}

/// An endpoint whose address is a workload's has that workload's data: an object that lists an
/// address must not be able to change whose identity is expected there.
fn of_spec(spec: &EndpointSpec, members: &Members) -> Endpoint {
    match members.at(spec.address) {
        Some(member) => {
            let mut endpoint = of_member(member);
            endpoint.ports.extend(spec.ports.clone());
            endpoint
        }
        None => Endpoint {
            address: spec.address,
            ports: spec.ports.clone(),
            labels: spec.labels.clone(),
            service_account: spec.service_account.clone(),
            speaks_mtls: spec.speaks_mtls(),
            ready: true,
            workload: None,
        },
    }
}

/// The endpoint's port behind a service port: named by the endpoint, else the service's target
/// port, else the same number.
pub fn target_port(endpoint: &Endpoint, port: &ServicePort) -> u16 {
    endpoint.ports.get(&*port.name).copied().or(port.target_port).unwrap_or(port.number)
}

/// A port's ready endpoints, each with its index and its own port. A workload is none where another one
/// of its host declared the port: whoever selects it has no say in how that one is reached.
pub fn ready<'s>(
    service: &'s Service,
    port: &'s ServicePort,
    members: &'s Members,
) -> impl Iterator<Item = (usize, &'s Endpoint, u16)> {
    let all = service.endpoints.iter().enumerate().filter(|(_, endpoint)| endpoint.ready);
    all.map(|(index, endpoint)| (index, endpoint, target_port(endpoint, port)))
        .filter(|(_, endpoint, number)| !members.is_anothers(endpoint, *number))
}

/// An address of several workloads names none of them. (Of those by selector, each is an endpoint of
/// its own.) Whoever comes to share an address that an entry in force names yields.
fn check_shared(
    entry: &ServiceEntry,
    members: &Members,
    incumbents: &HashSet<Arc<str>>,
    errors: &mut Vec<ConfigError>,
) {
    let newer = |origin: &Origin| !incumbents.contains(&origin.object);
    let origin = &entry.meta.origin;
    for endpoint in entry.endpoints.iter().filter(|e| members.is_shared(e.address)) {
        let address = endpoint.address;
        let all = members.all_at(address);
        // (the first had it to itself)
        let newcomers: Vec<_> = all.iter().skip(1).filter(|m| newer(&m.origin)).collect();
        if newer(origin) || newcomers.is_empty() {
            let reason = format!(
                "{address} is a host's, and several workloads have ports there: name them by workloadSelector"
            );
            let field = format!("{}.address", endpoint.path);
            let error = origin.error(&field, Code::Conflict, reason);
            errors.push(ConfigError { line: endpoint.line, ..error });
            continue;
        }
        for member in newcomers {
            let place = origin.place();
            let reason = format!(
                "{address} is an endpoint of {place}, which means {}",
                all[0].workload.key()
            );
            errors.push(member.origin.error("spec.address", Code::Conflict, reason));
        }
    }
}

/// Two objects claim one address: the one that is not in force already yields.
fn check_addresses(
    services: &[(Arc<Service>, &ServiceEntry)],
    members: &Members,
    incumbents: &HashSet<Arc<str>>,
    errors: &mut Vec<ConfigError>,
) {
    let mut claims: HashMap<SocketAddr, &ServiceEntry> = HashMap::new();
    let mut inline: HashMap<IpAddr, &ServiceEntry> = HashMap::new();
    for (_, entry) in services {
        inline.extend(entry.server_addresses().map(|address| (address, *entry)));
    }
    let newer = |origin: &Origin| !incumbents.contains(&origin.object);
    let mut entries: Vec<&ServiceEntry> = services.iter().map(|(_, entry)| *entry).collect();
    entries.sort_by_key(|entry| newer(&entry.meta.origin));
    for entry in entries {
        let origin = &entry.meta.origin;
        for (position, (address, line)) in entry.virtual_addresses().iter().enumerate() {
            let conflict = |reason: String| {
                let field = format!("spec.addresses[{position}]");
                ConfigError { line: *line, ..origin.error(&field, Code::Conflict, reason) }
            };
            if let Some(member) = members.at(*address) {
                if newer(&member.origin) && !newer(origin) {
                    let reason = format!("{address} is the address of {}", origin.place());
                    errors.push(member.origin.error("spec.address", Code::Conflict, reason));
                } else {
                    errors.push(conflict(format!(
                        "{address} is the address of {}",
                        member.origin.place()
                    )));
                }
            } else if let Some(other) = inline.get(address) {
                let field = match other.resolution {
                    Resolution::None => "spec.addresses",
                    Resolution::Static | Resolution::Dns => "spec.endpoints",
                };
                let other = &other.meta.origin;
                if newer(other) && !newer(origin) {
                    let reason = format!("{address} is an address of {}", origin.place());
                    errors.push(other.error(field, Code::Conflict, reason));
                } else {
                    errors.push(conflict(format!("{address} is an endpoint of {}", other.place())));
                }
            }
            for port in &entry.ports {
                let claim = SocketAddr::new(*address, port.number);
                if let Some(other) = claims.insert(claim, entry) {
                    errors.push(conflict(format!(
                        "{claim} is also of {}",
                        other.meta.origin.place()
                    )));
                    // The other ports usually conflict as well: once an address is enough.
                    break;
                }
            }
        }
    }
}
