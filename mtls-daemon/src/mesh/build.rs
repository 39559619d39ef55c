//! Objects to a snapshot.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::compile::{Direct, Policy, declared};
use super::members::Members;
use super::service_entry::ServiceEntry;
use super::services::{self, target_port};
use super::snapshot::{Answers, HeadlessPort};
use super::{MeshSettings, Objects, Service, Snapshot};
use crate::identity::SpiffeId;
use crate::policy::authz::{Authorizations, AuthzSettings};
use crate::policy::error::{Code, ConfigError};
use crate::policy::{DestinationRules, PeerAuthentications, TlsMode};

/// A snapshot and what looked odd on the way.
#[derive(Debug)]
pub struct Built {
    pub snapshot: Snapshot,
    pub warnings: Vec<ConfigError>,
}

impl Snapshot {
    /// Puts `objects` together for the daemon of `node`. One error refuses all of them: half a
    /// configuration could open what the other half closes.
    pub fn build(
        objects: Objects,
        settings: MeshSettings,
        node: &str,
        generation: u64,
    ) -> Result<Built, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let mut warnings = Vec::new();
        warn_policies(&objects, &settings, &mut warnings);
        let members = Members::build(
            &objects.workload_entries,
            &objects.node_workloads,
            node,
            &settings,
            &mut errors,
            &mut warnings,
        );
        let services = services::build(
            &objects.service_entries,
            &members,
            &objects.names,
            &mut errors,
            &mut warnings,
        );
        errors.extend(objects.errors);
        warnings.extend(objects.warnings);
        if !errors.is_empty() {
            errors.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
            return Err(errors);
        }
        let authentications =
            PeerAuthentications::new(&settings.root_namespace, objects.peer_authentications);
        let aliases: Vec<String> =
            settings.trust_domain_aliases.iter().map(ToString::to_string).collect();
        let authorizations = Authorizations::new(
            &AuthzSettings {
                root_namespace: &settings.root_namespace,
                trust_domain: settings.trust_domain.as_str(),
                aliases: &aliases,
            },
            objects.authorization_policies,
            objects.refused_policies,
        );
        let rules = DestinationRules::new(&settings.root_namespace, objects.destination_rules);
        let policy = Policy {
            settings: &settings,
            authentications: &authentications,
            authorizations: &authorizations,
            rules: &rules,
            subset: objects.subset.as_deref(),
        };
        let mut answers = Answers::default();
        for member in &members.list {
            answers.direct.insert(member.address, policy.direct(&member.workload));
        }
        for (service, _) in &services {
            add_endpoints(&mut answers.direct, service, &policy);
        }
        for (index, (service, entry)) in services.iter().enumerate() {
            answers.services.push(policy.service(service, entry));
            add_service(&mut answers, index, service);
        }
        warn_disagreements(&answers, &services, &mut warnings);
        answers.node_workloads = members.node_workloads;
        warnings.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        let snapshot =
            Snapshot::new(generation, settings, authentications, authorizations, answers);
        Ok(Built { snapshot, warnings })
    }
}

fn add_service(answers: &mut Answers, index: usize, service: &Arc<Service>) {
    for address in &service.addresses {
        answers.virtual_addresses.entry(*address).or_default().push(index);
    }
    if !service.addresses.is_empty() {
        return;
    }
    // Headless: the endpoints' own addresses stand for the service. Positions are those of the
    // plans, which hold ready endpoints by family.
    for port in &service.ports {
        let (mut v4, mut v6) = (0, 0);
        for endpoint in service.endpoints.iter().filter(|endpoint| endpoint.ready) {
            let count = if endpoint.address.is_ipv4() { &mut v4 } else { &mut v6 };
            let address = SocketAddr::new(endpoint.address, target_port(endpoint, port));
            answers.headless.entry(address).or_default().push(HeadlessPort {
                service: index,
                port: port.number,
                position: *count,
            });
            *count += 1;
        }
    }
}

/// Addresses that only services know, and what services declare about their ports.
fn add_endpoints(direct: &mut HashMap<IpAddr, Direct>, service: &Service, policy: &Policy<'_>) {
    for endpoint in &service.endpoints {
        if endpoint.workload.is_none() {
            let new = policy.direct_endpoint(service, endpoint);
            match direct.get_mut(&endpoint.address) {
                None => {
                    direct.insert(endpoint.address, new);
                }
                Some(known) if known.speaks_mtls != new.speaks_mtls => {
                    // Services disagree: mTLS, so that nothing goes out in plaintext by mistake.
                    if new.speaks_mtls == Some(true) {
                        let protocols = std::mem::take(&mut known.protocols);
                        *known = Direct { protocols, ..new };
                    }
                    known.speaks_mtls = None;
                }
                Some(_) => {}
            }
        }
        // The application has one port on all of the workload's addresses, also where the service
        // lists only some of them.
        let addresses = match &endpoint.workload {
            Some(workload) => workload.addresses.as_slice(),
            None => std::slice::from_ref(&endpoint.address),
        };
        for address in addresses {
            if let Some(known) = direct.get_mut(address) {
                for port in &service.ports {
                    let entry = known.protocols.entry(target_port(endpoint, port)).or_default();
                    *entry = entry.with(declared(port));
                }
            }
        }
    }
}

/// Connections to such an address are refused (policy.md 2.3).
fn warn_disagreements(
    answers: &Answers,
    services: &[(Arc<Service>, &ServiceEntry)],
    warnings: &mut Vec<ConfigError>,
) {
    for (address, found) in &answers.headless {
        let target = |at: &HeadlessPort| {
            let port = answers.services[at.service].common_plan().port(at.port)?;
            Some(&port.targets(address.ip()).get(at.position)?.tls)
        };
        let Some((first, others)) = found.split_first() else { continue };
        let Some(tls) = target(first) else { continue };
        let differs = |at: &&HeadlessPort| target(at).is_some_and(|other| !tls.agrees_with(other));
        for other in others.iter().filter(differs) {
            let place = services[first.service].1.meta.origin.place();
            warnings.push(services[other.service].1.meta.origin.error(
                "spec.hosts",
                Code::WarnSuspicious,
                format!(
                    "{address} is also of {place}, and the rules for the two disagree about TLS: \
                         connections to it are refused; give the services addresses of their own"
                ),
            ));
        }
    }
}

fn warn_policies(objects: &Objects, settings: &MeshSettings, warnings: &mut Vec<ConfigError>) {
    for object in &objects.peer_authentications {
        if object.meta.namespace == settings.root_namespace && !object.selector.is_empty() {
            warnings.push(object.meta.origin.error(
                "spec.selector",
                Code::WarnSuspicious,
                "the object is ignored: in the root namespace a selector has no meaning",
            ));
        }
    }
    for rule in &objects.destination_rules {
        let top = rule.traffic.iter();
        let settings = top.flat_map(|t| t.tls.iter().chain(t.ports.values().flatten()));
        // Towards servers outside the mesh they are names of any kind.
        let settings = settings.filter(|tls| tls.mode == TlsMode::IstioMutual);
        let names = settings.flat_map(|tls| &tls.subject_alt_names);
        for name in names.filter(|name| SpiffeId::parse(name).is_err()) {
            warnings.push(rule.meta.origin.error(
                "spec.trafficPolicy.tls.subjectAltNames",
                Code::WarnSuspicious,
                format!("{name:?} is no SPIFFE ID: no workload's certificate matches it"),
            ));
        }
    }
}
