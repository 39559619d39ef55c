//! Objects to a snapshot.

use std::net::SocketAddr;
use std::sync::Arc;

use super::accept::{Accepted, Chosen};
use super::compile::{Direct, Policy, declared};
use super::kinds::Kinds;
use super::members::Members;
use super::service_entry::ServiceEntry;
use super::services::{self, target_port};
use super::snapshot::{Answers, HeadlessPort};
use super::{Endpoint, MeshSettings, Objects, Service, Snapshot, legacy, unmatched};
use crate::identity::SpiffeId;
use crate::policy::authz::{Authorizations, AuthzSettings};
use crate::policy::error::{Code, ConfigError};
use crate::policy::{DestinationRules, PeerAuthentications, TlsMode};

/// A snapshot, what it was made of, and what was wrong or looked odd on the way.
#[derive(Debug)]
pub struct Built {
    pub snapshot: Snapshot,
    /// For the next time.
    pub accepted: Accepted,
    /// Objects that were refused, each with what is in force in its place.
    pub errors: Vec<ConfigError>,
    pub warnings: Vec<ConfigError>,
}

impl Snapshot {
    /// Puts `objects` together for the daemon of `node`. An object that is refused keeps the version
    /// that it has in `previous`; without one, it is as closed as it could have meant.
    ///
    /// # Errors
    /// Without `previous`, where nothing makes up for what was refused: a file that cannot be
    /// understood, or an object that says where somebody is.
    pub fn build(
        mut objects: Objects,
        previous: Option<&Accepted>,
        settings: MeshSettings,
        node: &str,
        generation: u64,
    ) -> Result<Built, Vec<ConfigError>> {
        let mut chosen = Chosen::of(&mut objects, previous);
        let mut errors = objects.errors;
        let mut incomplete = chosen.incomplete && previous.is_none();
        let (kinds, members, entries, mut warnings) = loop {
            let (mut conflicts, mut warnings) = (Vec::new(), Vec::new());
            let mut kinds = Kinds::of(&chosen);
            let members = Members::build(
                &kinds.workload_entries,
                &kinds.node_workloads,
                node,
                &settings,
                &chosen.incumbents,
                &mut conflicts,
                &mut warnings,
            );
            let entries = std::mem::take(&mut kinds.service_entries);
            services::build(
                &entries,
                &members,
                &chosen.incumbents,
                &objects.names,
                &mut conflicts,
                &mut warnings,
            );
            // Without an earlier version nobody can be put back where he was.
            incomplete |= previous.is_none() && !conflicts.is_empty();
            let done =
                conflicts.is_empty() || incomplete || !chosen.take_back(&conflicts, previous);
            errors.append(&mut conflicts);
            if done {
                break (kinds, members, entries, warnings);
            }
        };
        warnings.extend(objects.warnings);
        let services = services::build(
            &entries,
            &members,
            &chosen.incumbents,
            &objects.names,
            &mut Vec::new(),
            &mut Vec::new(),
        );
        let mut kinds = kinds;
        kinds.take_in_place(std::mem::take(&mut chosen.in_place), &settings.root_namespace);
        warn_policies(&kinds, &settings, &mut warnings);
        unmatched::warn(&kinds, &entries, &members, &settings, &mut warnings);
        legacy::convert(
            std::mem::take(&mut kinds.legacy),
            &entries,
            &kinds.workload_entries,
            &settings,
            &mut kinds.peer_authentications,
            &mut errors,
        );
        errors.append(&mut chosen.errors);
        let place = |error: &ConfigError| (error.file.clone(), error.line);
        errors.sort_by_key(place);
        warnings.sort_by_key(place);
        if incomplete {
            return Err(errors);
        }
        let authentications =
            PeerAuthentications::new(&settings.root_namespace, kinds.peer_authentications);
        let aliases: Vec<String> =
            settings.trust_domain_aliases.iter().map(ToString::to_string).collect();
        let authorizations = Authorizations::new(
            &AuthzSettings {
                root_namespace: &settings.root_namespace,
                trust_domain: settings.trust_domain.as_str(),
                aliases: &aliases,
            },
            kinds.authorization_policies,
            kinds.refused_policies,
        );
        let rules = DestinationRules::new(&settings.root_namespace, kinds.destination_rules);
        let policy = Policy {
            settings: &settings,
            authentications: &authentications,
            authorizations: &authorizations,
            rules: &rules,
            members: &members,
            subset: objects.subset.as_deref(),
        };
        let mut answers = Answers::default();
        for member in &members.list {
            if member.workload.host_ports.is_some() {
                answers.hosts.add(member.address, &member.workload, &policy);
            } else {
                answers.direct.insert(member.address, policy.direct(&member.workload));
            }
        }
        for (service, _) in &services {
            add_endpoints(&mut answers, service, &policy);
        }
        for (index, (service, entry)) in services.iter().enumerate() {
            answers.services.push(policy.service(service, entry));
            add_service(&mut answers, index, service, &members);
        }
        warn_disagreements(&answers, &services, &mut warnings);
        answers.node_workloads = members.node_workloads;
        let snapshot =
            Snapshot::new(generation, settings, authentications, authorizations, answers);
        let accepted = Accepted { objects: chosen.objects, disputed: chosen.disputed };
        Ok(Built { snapshot, accepted, errors, warnings })
    }
}

fn add_service(answers: &mut Answers, index: usize, service: &Service, members: &Members) {
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
        for (_, endpoint, number) in services::ready(service, port, members) {
            let count = if endpoint.address.is_ipv4() { &mut v4 } else { &mut v6 };
            let address = SocketAddr::new(endpoint.address, number);
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
fn add_endpoints(answers: &mut Answers, service: &Service, policy: &Policy<'_>) {
    let direct = &mut answers.direct;
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
        // What a workload's ports speak is its own namespace's to say (policy.md 2.6).
        if endpoint.workload.as_ref().is_some_and(|w| w.namespace != service.namespace) {
            continue;
        }
        // The application has one port on all of the workload's addresses, also where the service
        // lists only some of them.
        if let Some(known) = endpoint.workload.as_ref().and_then(|w| answers.hosts.of_mut(w)) {
            declare(known, service, endpoint);
            continue;
        }
        let addresses = match &endpoint.workload {
            Some(workload) => workload.addresses.as_slice(),
            None => std::slice::from_ref(&endpoint.address),
        };
        for address in addresses {
            if let Some(known) = direct.get_mut(address) {
                declare(known, service, endpoint);
            }
        }
    }
}

fn declare(known: &mut Direct, service: &Service, endpoint: &Endpoint) {
    for port in &service.ports {
        let entry = known.protocols.entry(target_port(endpoint, port)).or_default();
        *entry = entry.with(declared(port));
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
        // Services of the workload's own namespace count before others (policy.md 2.6).
        let direct = answers.hosts.at(*address).or_else(|| answers.direct.get(&address.ip()));
        let owner = direct.and_then(|direct| direct.workload.as_ref());
        let is_own = |at: &&HeadlessPort| {
            owner.is_some_and(|owner| {
                owner.namespace == answers.services[at.service].service.namespace
            })
        };
        let own: Vec<&HeadlessPort> = found.iter().filter(is_own).collect();
        let counting = if own.is_empty() { found.iter().collect() } else { own };
        let Some((first, others)) = counting.split_first() else { continue };
        let Some(tls) = target(first) else { continue };
        let differs = |at: &&&HeadlessPort| target(at).is_some_and(|other| !tls.agrees_with(other));
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

fn warn_policies(kinds: &Kinds, settings: &MeshSettings, warnings: &mut Vec<ConfigError>) {
    for object in &kinds.peer_authentications {
        if object.meta.namespace == settings.root_namespace && !object.selector.is_empty() {
            warnings.push(object.meta.origin.error(
                "spec.selector",
                Code::WarnSuspicious,
                "the object is ignored: in the root namespace a selector has no meaning",
            ));
        }
    }
    for rule in &kinds.destination_rules {
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
