//! The immutable state of the mesh that the data path reads.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::compile::{CompiledService, Direct, Target};
use super::hosts::Hosts;
use super::{ClientTls, InboundPlan, NodeWorkload, OutboundPlan, PeerKnowledge, Service, Workload};
use crate::identity::TrustDomain;
use crate::policy::authz::Authorizations;
use crate::policy::{PeerAuthentications, PortProtocol, TlsSettings, WorkloadModes};

pub use super::build::Built;

/// Mesh-wide settings that configuration fixes at start.
#[derive(Debug, Clone)]
pub struct MeshSettings {
    pub trust_domain: TrustDomain,
    pub trust_domain_aliases: Vec<TrustDomain>,
    pub root_namespace: Arc<str>,
    pub enable_auto_mtls: bool,
    /// Addresses inside these ranges are never assumed to be outside the mesh.
    pub mesh_ranges: Vec<IpNet>,
}

/// Workloads, services and compiled policy of one configuration generation. Look-ups allocate
/// nothing; what they return is cloned references.
#[derive(Debug)]
pub struct Snapshot {
    pub generation: u64,
    pub settings: MeshSettings,
    authentications: PeerAuthentications,
    authorizations: Authorizations,
    pub(super) answers: Answers,
    unknown: Arc<str>,
    unknown_in_range: Arc<str>,
}

/// What was compiled, by what is asked for.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// Sorted by namespace and name.
    pub services: Vec<CompiledService>,
    /// Services by virtual address: several may share one, on different ports.
    pub virtual_addresses: HashMap<IpAddr, Vec<usize>>,
    /// Ports of hosts that are workloads'.
    pub hosts: Hosts,
    /// Workloads' and endpoints' own addresses.
    pub direct: HashMap<IpAddr, Direct>,
    /// Several services may stand at one endpoint's port, in the order of `services`: which of
    /// them a client sees is the client's matter.
    pub headless: HashMap<SocketAddr, Vec<HeadlessPort>>,
    pub node_workloads: Vec<Arc<NodeWorkload>>,
}

/// An endpoint's port that stands for a headless service's port.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadlessPort {
    pub service: usize,
    pub port: u16,
    /// Among the ready targets of the address's family.
    pub position: usize,
}

/// Who is meant by the address of a headless service's endpoint.
pub(super) enum Headless<'s> {
    One(&'s Target, &'s Arc<Service>),
    /// The first, and those whose rules say something else.
    Disagreeing(&'s Arc<Service>, Vec<Arc<Service>>),
}

impl Snapshot {
    /// Nothing known: what a daemon with an empty configuration serves.
    pub fn empty(settings: MeshSettings) -> Self {
        let authentications = PeerAuthentications::new(&settings.root_namespace, Vec::new());
        Self::new(0, settings, authentications, Authorizations::default(), Answers::default())
    }

    pub(super) fn new(
        generation: u64,
        settings: MeshSettings,
        authentications: PeerAuthentications,
        authorizations: Authorizations,
        answers: Answers,
    ) -> Self {
        Self {
            generation,
            settings,
            authentications,
            authorizations,
            answers,
            unknown: "unknown destination".into(),
            unknown_in_range: "unknown destination inside the mesh ranges".into(),
        }
    }

    /// The settings of every rule that originates TLS for some client.
    pub fn originations(&self) -> impl Iterator<Item = &TlsSettings> {
        self.answers.services.iter().flat_map(CompiledService::originations)
    }

    /// Whose the address is; None for a host's, which several have.
    pub fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.answers.direct.get(&address.to_canonical())?.workload.as_ref()
    }

    /// The workloads that this node's daemon enrols.
    pub fn node_workloads(&self) -> &[Arc<NodeWorkload>] {
        &self.answers.node_workloads
    }

    /// Every service, sorted by namespace and name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.answers.services.iter().map(|compiled| &compiled.service)
    }

    /// Every workload once, sorted by namespace and name.
    pub fn workloads(&self) -> Vec<&Arc<Workload>> {
        let mut all: Vec<_> =
            self.answers.direct.values().filter_map(|direct| direct.workload.as_ref()).collect();
        all.extend(self.answers.hosts.workloads());
        all.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        all.dedup_by(|a, b| Arc::ptr_eq(a, b));
        all
    }

    /// Plans one outbound connection. `pick(n)` returns an index below `n` (random choice of an
    /// endpoint; a parameter so that tests choose).
    pub fn outbound(
        &self,
        client: &Workload,
        destination: SocketAddr,
        pick: &mut dyn FnMut(usize) -> usize,
    ) -> OutboundPlan {
        let address = destination.ip().to_canonical();
        if let Some(services) = self.answers.virtual_addresses.get(&address) {
            let mut visible = services
                .iter()
                .map(|index| &self.answers.services[*index])
                .filter(|compiled| compiled.visible_from(&client.namespace))
                .peekable();
            let first = visible.peek().map(|compiled| compiled.service.clone());
            for compiled in visible {
                if let Some(port) = compiled.plan(client).port(destination.port()) {
                    let targets = port.targets(address);
                    let service = compiled.service.clone();
                    if targets.is_empty() {
                        return OutboundPlan::NoEndpoint { service };
                    }
                    // A wrong index from the caller must not end the data path.
                    let index = pick(targets.len()).min(targets.len() - 1);
                    return connect(&targets[index], Some(service));
                }
            }
            if let Some(service) = first {
                return OutboundPlan::NoSuchPort { service };
            }
            if let Some(index) = services.first() {
                let service = self.answers.services[*index].service.clone();
                return OutboundPlan::NotExported { service };
            }
        }
        let address = SocketAddr::new(address, destination.port());
        match self.headless(client, address) {
            Some(Headless::One(target, service)) => return connect(target, Some(service.clone())),
            Some(Headless::Disagreeing(service, others)) => {
                let service = service.clone();
                return OutboundPlan::RulesDisagree { address, service, others };
            }
            None => {}
        }
        let direct = self.answers.hosts.at(address);
        let direct = direct.or_else(|| self.answers.direct.get(&address.ip()));
        let (tls, workload) = match direct {
            Some(direct) => (direct.tls(address.port()).clone(), direct.workload.clone()),
            None => (self.unknown_tls(address.ip()), None),
        };
        OutboundPlan::Connect { address, tls, service: None, workload }
    }

    /// The endpoint of a headless service at `address`, as `client`'s rules see it: of those that
    /// count and are exported to the client the first, by namespace and name, unless TLS is to be
    /// originated for one and not alike for the others. Services of the workload's own namespace
    /// count before others, of which one cannot take back that another wants mTLS (policy.md 2.6).
    pub(super) fn headless(&self, client: &Workload, address: SocketAddr) -> Option<Headless<'_>> {
        let found = self.answers.headless.get(&address)?;
        let visible = || {
            found.iter().filter_map(|found| {
                let compiled = &self.answers.services[found.service];
                if !compiled.visible_from(&client.namespace) {
                    return None;
                }
                let port = compiled.plan(client).port(found.port)?;
                let target = port.targets(address.ip()).get(found.position)?;
                Some((target, &compiled.service))
            })
        };
        let owners = visible().any(|(target, service)| target.is_in(service));
        let counting = || visible().filter(|(target, service)| !owners || target.is_in(service));
        let closed = |(target, _): &(&Target, _)| !target.tls.is_plaintext();
        let first = if owners { counting().next() } else { counting().find(closed) };
        let (target, service) = first.or_else(|| counting().next())?;
        let others: Vec<_> = counting()
            .filter(|(other, _)| !target.tls.agrees_with(&other.tls))
            .map(|(_, service)| service.clone())
            .collect();
        if others.is_empty() {
            Some(Headless::One(target, service))
        } else {
            Some(Headless::Disagreeing(service, others))
        }
    }

    fn unknown_tls(&self, address: IpAddr) -> ClientTls {
        let inside = self.settings.mesh_ranges.iter().any(|range| range.contains(&address));
        let because = if inside { &self.unknown_in_range } else { &self.unknown };
        ClientTls::Plaintext { because: because.clone() }
    }

    /// Every mode of `server`: for the command line, which asks for no port in particular.
    pub fn modes(&self, server: &Workload) -> WorkloadModes {
        self.authentications.workload_modes(&server.namespace, &server.labels)
    }

    /// Whether some service has this port of `server`.
    pub fn in_service(&self, server: &Workload, port: u16) -> bool {
        self.compiled(server).is_some_and(|direct| direct.protocols.contains_key(&port))
    }

    pub fn inbound(&self, server: &Workload, port: u16) -> InboundPlan {
        match self.compiled(server) {
            Some(direct) => InboundPlan {
                mode: direct.mode(port).clone(),
                protocol: direct.protocol(port),
                authorization: direct.authorization.clone(),
            },
            // A workload of an older snapshot, still served: its policy as of now.
            None => self.inbound_of(&server.namespace, &server.labels, port),
        }
    }

    /// What holds for a workload with these labels, whether or not there is one.
    pub fn inbound_of(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        port: u16,
    ) -> InboundPlan {
        InboundPlan {
            mode: self.authentications.workload_modes(namespace, labels).at(port).clone(),
            protocol: PortProtocol::Auto,
            authorization: self.authorizations.for_workload(namespace, labels),
        }
    }

    /// The compiled answers for `server`, if this snapshot has that workload: as the snapshot describes
    /// it, whatever labels the asker knows. Policy and labels of two moments judge nothing.
    pub(super) fn compiled(&self, server: &Workload) -> Option<&Direct> {
        let direct = match &server.host_ports {
            Some(_) => self.answers.hosts.of(server)?,
            None => self.answers.direct.get(server.addresses.first()?)?,
        };
        let known = direct.workload.as_deref()?;
        let same = std::ptr::eq(known, server)
            || (known.namespace == server.namespace && known.name == server.name);
        same.then_some(direct)
    }

    pub fn peer_knowledge(&self, address: IpAddr) -> PeerKnowledge {
        match self.answers.direct.get(&address.to_canonical()).map(|direct| direct.speaks_mtls) {
            Some(Some(true)) => PeerKnowledge::SpeaksMtls,
            Some(Some(false)) => PeerKnowledge::Plaintext,
            Some(None) | None => PeerKnowledge::Unknown,
        }
    }

    /// Every address that always goes to the daemon unless an `OutboundRow` says otherwise:
    /// workloads' and services' addresses (they may lie outside the mesh ranges).
    pub fn addresses(&self) -> Vec<IpAddr> {
        let all: BTreeSet<IpAddr> = self
            .answers
            .direct
            .keys()
            .chain(self.answers.virtual_addresses.keys())
            .chain(self.answers.hosts.addresses())
            .copied()
            .collect();
        all.into_iter().collect()
    }
}

fn connect(target: &Target, service: Option<Arc<Service>>) -> OutboundPlan {
    OutboundPlan::Connect {
        address: target.address,
        tls: target.tls.clone(),
        service,
        workload: target.workload.clone(),
    }
}
