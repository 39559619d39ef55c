//! Every answer of the data path made beforehand: services, policy and identities become targets
//! whose TLS side is ready to be cloned.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::members::Members;
use super::service_entry::ServiceEntry;
use super::{
    AskFor, ClientTls, Endpoint, MeshSettings, Origination, Service, ServicePort, Workload, naming,
    services,
};
use crate::identity::SpiffeId;
use crate::policy::authz::{Authorizations, WorkloadAuthorization};
use crate::policy::effective::selects;
use crate::policy::export::ExportTo;
use crate::policy::{
    DestinationRules, EffectiveMode, Mode, PeerAuthentications, PortProtocol, ResolvedRule,
    TlsMode, TlsSettings, WorkloadModes, auto, speaks_http2,
};

/// What compilation reads.
pub(super) struct Policy<'p> {
    pub settings: &'p MeshSettings,
    pub authentications: &'p PeerAuthentications,
    pub authorizations: &'p Authorizations,
    pub rules: &'p DestinationRules,
    pub members: &'p Members,
    /// The subset that a route sends connections to. Nothing that is read here routes: only
    /// questions from the command line name one.
    pub subset: Option<&'p str>,
}

/// A service with its plans.
#[derive(Debug)]
pub(super) struct CompiledService {
    pub service: Arc<Service>,
    pub export_to: ExportTo,
    /// Client namespaces whose rules differ from everyone else's.
    plans: HashMap<Arc<str>, ClientPlans>,
    otherwise: ClientPlans,
}

/// One client namespace's plans, by the client's labels.
#[derive(Debug, Clone)]
struct ClientPlans {
    selected: Vec<(BTreeMap<String, String>, Arc<ServicePlan>)>,
    otherwise: Arc<ServicePlan>,
}

impl ClientPlans {
    /// Whether they are the same plans.
    fn is_as(&self, other: &Self) -> bool {
        let mut pairs = self.selected.iter().zip(&other.selected);
        Arc::ptr_eq(&self.otherwise, &other.otherwise)
            && self.selected.len() == other.selected.len()
            && pairs.all(|((a, plan), (b, same))| a == b && Arc::ptr_eq(plan, same))
    }
}

/// A service under one rule: ready endpoints by service port.
#[derive(Debug)]
pub(super) struct ServicePlan {
    pub ports: Vec<PortPlan>,
}

#[derive(Debug)]
pub(super) struct PortPlan {
    pub number: u16,
    pub v4: Vec<Target>,
    pub v6: Vec<Target>,
}

impl PortPlan {
    /// The targets of the destination's own address family; the other one's if it has none.
    pub fn targets(&self, destination: IpAddr) -> &[Target] {
        let (own, other) =
            if destination.is_ipv4() { (&self.v4, &self.v6) } else { (&self.v6, &self.v4) };
        if own.is_empty() { other } else { own }
    }
}

/// One endpoint's port, ready to connect to.
#[derive(Debug)]
pub(super) struct Target {
    pub address: SocketAddr,
    pub tls: ClientTls,
    pub workload: Option<Arc<Workload>>,
}

impl Target {
    /// A workload of the service's own namespace.
    pub fn is_in(&self, service: &Service) -> bool {
        self.workload.as_ref().is_some_and(|workload| workload.namespace == service.namespace)
    }
}

/// An endpoint with what policy says about it as a server.
pub(super) struct Server {
    pub namespace: Arc<str>,
    pub service_account: Option<Arc<str>>,
    pub speaks_mtls: bool,
    pub modes: WorkloadModes,
    /// See [`Workload::host_ports`].
    pub host_ports: Option<Arc<[u16]>>,
    /// As messages call it: `namespace/name`, or the address.
    pub label: String,
}

impl CompiledService {
    pub fn plan(&self, client: &Workload) -> &Arc<ServicePlan> {
        let plans = self.plans.get(&client.namespace).unwrap_or(&self.otherwise);
        plans
            .selected
            .iter()
            .find(|(selector, _)| selects(selector, &client.labels))
            .map_or(&plans.otherwise, |(_, plan)| plan)
    }

    /// What clients see of whom no rule speaks by name.
    pub fn common_plan(&self) -> &ServicePlan {
        &self.otherwise.otherwise
    }

    /// The settings by which some client originates TLS to it.
    pub fn originations(&self) -> impl Iterator<Item = &TlsSettings> {
        let plans = self.plans.values().chain([&self.otherwise]).flat_map(|plans| {
            plans.selected.iter().map(|(_, plan)| plan).chain([&plans.otherwise])
        });
        let ports = plans.flat_map(|plan| &plan.ports);
        let targets = ports.flat_map(|port| port.v4.iter().chain(&port.v6));
        targets.filter_map(|target| match &target.tls {
            ClientTls::Originate { origination, .. } => Some(&*origination.settings),
            ClientTls::Plaintext { .. }
            | ClientTls::IstioMutual { .. }
            | ClientTls::Refused { .. } => None,
        })
    }

    pub fn visible_from(&self, namespace: &str) -> bool {
        self.export_to.visible_from(&self.service.namespace, namespace)
    }
}

impl ServicePlan {
    pub fn port(&self, number: u16) -> Option<&PortPlan> {
        self.ports.iter().find(|port| port.number == number)
    }
}

/// What is declared about a service's port.
pub(super) fn declared(port: &ServicePort) -> PortProtocol {
    PortProtocol::declared(&port.protocol, &port.name, port.number)
}

/// The rule's `sni`, else the service's host, decides which server is asked for (policy.md 2.3).
fn originate(
    service: &Service,
    port: &ServicePort,
    settings: &Arc<TlsSettings>,
) -> Arc<Origination> {
    let ask_for = match (&settings.sni, service.hosts.as_slice()) {
        (Some(sni), _) => AskFor::Name(sni.clone()),
        (None, [only]) if !only.starts_with('*') => AskFor::Name(only.clone()),
        (None, hosts) => AskFor::HostOfRequest(hosts.into()),
    };
    let http2 = speaks_http2(&port.protocol, &port.name);
    Arc::new(Origination { settings: settings.clone(), ask_for, http2 })
}

impl Policy<'_> {
    pub fn service(&self, service: &Arc<Service>, entry: &ServiceEntry) -> CompiledService {
        let servers: Vec<Server> =
            service.endpoints.iter().map(|e| self.endpoint_server(service, e)).collect();
        // Clients under the same rule share one plan.
        let mut known: Vec<(Option<Arc<ResolvedRule>>, Arc<ServicePlan>)> = Vec::new();
        let mut plan = |rule: Option<&Arc<ResolvedRule>>| -> Arc<ServicePlan> {
            if let Some((_, plan)) = known.iter().find(|(known, _)| known.as_ref() == rule) {
                return plan.clone();
            }
            let plan = Arc::new(self.plan(service, &servers, rule.map(|rule| &**rule)));
            known.push((rule.cloned(), plan.clone()));
            plan
        };
        let mut for_namespace = |client: &str| -> ClientPlans {
            let found =
                self.rules.find(client, &service.namespace, &service.hosts).unwrap_or_default();
            ClientPlans {
                selected: found
                    .selected
                    .iter()
                    .map(|(selector, rule)| (selector.clone(), plan(Some(rule))))
                    .collect(),
                otherwise: plan(found.otherwise.as_ref()),
            }
        };
        // No namespace has the empty name: these are the rules that everyone sees.
        let otherwise = for_namespace("");
        let plans = self
            .rules
            .namespaces(&service.namespace, &service.hosts)
            .into_iter()
            .chain([service.namespace.clone()])
            .map(|namespace| {
                let plans = for_namespace(&namespace);
                (namespace, plans)
            })
            // Most see what everyone sees: with many namespaces and services that is most of the memory.
            .filter(|(_, plans)| !plans.is_as(&otherwise))
            .collect();
        CompiledService {
            service: service.clone(),
            export_to: entry.export_to.clone(),
            plans,
            otherwise,
        }
    }

    fn plan(
        &self,
        service: &Service,
        servers: &[Server],
        rule: Option<&ResolvedRule>,
    ) -> ServicePlan {
        let ports = service
            .ports
            .iter()
            .map(|port| {
                let host = service.hosts.first().map_or("", |host| host);
                let sni = naming::service_sni(port.number, host, &service.name, &service.namespace);
                let (mut v4, mut v6) = (Vec::new(), Vec::new());
                for (index, endpoint, number) in services::ready(service, port, self.members) {
                    let server = &servers[index];
                    let target = Target {
                        address: SocketAddr::new(endpoint.address, number),
                        tls: self.service_tls(service, port, server, number, rule, &sni),
                        workload: endpoint.workload.clone(),
                    };
                    if endpoint.address.is_ipv4() { v4.push(target) } else { v6.push(target) }
                }
                PortPlan { number: port.number, v4, v6 }
            })
            .collect();
        ServicePlan { ports }
    }

    /// DestinationRule over auto mTLS (policy.md 2.2-2.4), as far as the service may say it
    /// (policy.md 2.6).
    fn service_tls(
        &self,
        service: &Service,
        port: &ServicePort,
        server: &Server,
        number: u16,
        rule: Option<&ResolvedRule>,
        sni: &Arc<str>,
    ) -> ClientTls {
        let anothers = server.namespace != service.namespace;
        if anothers && service.addresses.is_empty() {
            // The address that clients use is another namespace's workload's own.
            let own = self.auto(None, server, Some(number), sni);
            if matches!(own, ClientTls::IstioMutual { .. }) {
                return own;
            }
        }
        if let Some(rule) = rule.filter(|rule| rule.refused) {
            return ClientTls::Refused { because: format!("{} is refused", rule.because).into() };
        }
        let set = rule.and_then(|rule| Some((rule, rule.tls(port.number, self.subset)?)));
        let Some((rule, settings)) = set else {
            // What lies outside the mesh is not another namespace's to say of a workload.
            return self.auto((!anothers).then_some(service), server, Some(number), sni);
        };
        match settings.mode {
            TlsMode::Disable => {
                ClientTls::Plaintext { because: format!("{}: DISABLE", rule.because).into() }
            }
            // Also towards a server without a proxy: the handshake fails, and nothing is sent in
            // plaintext (policy.md 2.3).
            TlsMode::IstioMutual => ClientTls::IstioMutual {
                expected: self.expected(settings, service, server),
                sni: settings.sni.clone().unwrap_or_else(|| sni.clone()),
                because: format!("{}: ISTIO_MUTUAL", rule.because).into(),
            },
            TlsMode::Simple | TlsMode::Mutual => ClientTls::Originate {
                origination: originate(service, port, settings),
                because: format!("{}: {}", rule.because, settings.mode.as_str()).into(),
            },
        }
    }

    /// The rule's names replace the endpoint's own identity; the service's names stand in where
    /// the endpoint's identity is not known (policy.md 2.5).
    fn expected(
        &self,
        settings: &TlsSettings,
        service: &Service,
        server: &Server,
    ) -> Arc<[SpiffeId]> {
        if !settings.subject_alt_names.is_empty() {
            return self.parse_names(settings.subject_alt_names.iter().map(|name| &**name));
        }
        match &server.service_account {
            Some(account) => self.own_identity(&server.namespace, account),
            None => self.parse_names(service.subject_alt_names.iter().map(|name| name.as_str())),
        }
    }

    fn parse_names<'n>(&self, names: impl Iterator<Item = &'n str>) -> Arc<[SpiffeId]> {
        // Names of other kinds (DNS) equal no URI SAN: they can never match.
        let ids: Vec<SpiffeId> = names.filter_map(|name| SpiffeId::parse(name).ok()).collect();
        if ids.is_empty() { [naming::nobody(self.settings)].into() } else { ids.into() }
    }

    fn own_identity(&self, namespace: &str, account: &str) -> Arc<[SpiffeId]> {
        naming::expected(self.settings, namespace, account)
            .unwrap_or_else(|_| [naming::nobody(self.settings)].into())
    }

    /// Auto mTLS for one endpoint (policy.md 2.4), headless or not. `number` is the endpoint's port;
    /// None: every port without a mode of its own.
    pub fn auto(
        &self,
        service: Option<&Service>,
        server: &Server,
        number: Option<u16>,
        sni: &Arc<str>,
    ) -> ClientTls {
        let plaintext = |reason: String| ClientTls::Plaintext {
            because: format!("auto mTLS: {reason}").into(),
        };
        let label = &server.label;
        if !self.settings.enable_auto_mtls {
            return plaintext("switched off (enable-auto-mtls)".to_owned());
        }
        if let Some(service) = service {
            let inferred = auto::service_mode(
                self.authentications,
                &service.namespace,
                service.external,
                None,
            );
            let Some(inferred) = inferred else {
                let host = service.hosts.first().map_or(&*service.name, |host| host);
                return plaintext(format!("{host} is MESH_EXTERNAL"));
            };
            if !auto::applies(true, Some(inferred.mode)) {
                return plaintext(format!("DISABLE by {}", inferred.because));
            }
        }
        if let (Some(ports), Some(number)) = (&server.host_ports, number)
            && !ports.contains(&number)
        {
            return plaintext(format!("{label} has not declared port {number} of its host"));
        }
        if !server.speaks_mtls {
            return plaintext(format!("{label} does not speak mTLS"));
        }
        let mode = number.map_or(&server.modes.default, |number| server.modes.at(number));
        if mode.mode == Mode::Disable {
            return plaintext(format!("{label} is DISABLE by {}", mode.because));
        }
        let expected = match &server.service_account {
            Some(account) => self.own_identity(&server.namespace, account),
            None => [naming::nobody(self.settings)].into(),
        };
        let because = format!("auto mTLS: {label} speaks mTLS").into();
        ClientTls::IstioMutual { expected, sni: sni.clone(), because }
    }

    fn endpoint_server(&self, service: &Service, endpoint: &Endpoint) -> Server {
        match &endpoint.workload {
            Some(workload) => self.workload_server(workload),
            None => Server {
                namespace: service.namespace.clone(),
                service_account: endpoint.service_account.clone(),
                speaks_mtls: endpoint.speaks_mtls,
                host_ports: None,
                modes: self.authentications.workload_modes(&service.namespace, &endpoint.labels),
                label: endpoint.address.to_string(),
            },
        }
    }

    pub fn workload_server(&self, workload: &Workload) -> Server {
        Server {
            namespace: workload.namespace.clone(),
            service_account: (!workload.service_account.is_empty())
                .then(|| workload.service_account.clone()),
            speaks_mtls: workload.speaks_mtls,
            host_ports: workload.host_ports.clone(),
            modes: self.authentications.workload_modes(&workload.namespace, &workload.labels),
            label: workload.key(),
        }
    }

    /// What holds for connections straight to `workload`'s address.
    pub fn direct(&self, workload: &Arc<Workload>) -> Direct {
        let server = self.workload_server(workload);
        let sni = naming::direct_sni(&workload.name, &workload.namespace);
        self.direct_server(Some(workload.clone()), server, &sni)
    }

    /// The same for an endpoint that is no workload of ours.
    pub fn direct_endpoint(&self, service: &Service, endpoint: &Endpoint) -> Direct {
        let mut server = self.endpoint_server(service, endpoint);
        // Auto mTLS never applies to what is outside the mesh (policy.md 2.4.1).
        server.speaks_mtls &= !service.external;
        let sni = naming::direct_sni(&service.name, &service.namespace);
        self.direct_server(None, server, &sni)
    }

    fn direct_server(
        &self,
        workload: Option<Arc<Workload>>,
        server: Server,
        sni: &Arc<str>,
    ) -> Direct {
        let authorization = match &workload {
            Some(workload) => {
                self.authorizations.for_workload(&workload.namespace, &workload.labels)
            }
            // No workload of ours: never served here.
            None => Arc::default(),
        };
        let ports = server
            .modes
            .ports
            .keys()
            .map(|port| (*port, self.auto(None, &server, Some(*port), sni)))
            .collect();
        Direct {
            default: self.auto(None, &server, None, sni),
            ports,
            speaks_mtls: Some(server.speaks_mtls),
            modes: server.modes,
            protocols: BTreeMap::new(),
            authorization,
            workload,
        }
    }
}

/// A workload's or endpoint's own address.
#[derive(Debug)]
pub(super) struct Direct {
    pub workload: Option<Arc<Workload>>,
    pub modes: WorkloadModes,
    pub default: ClientTls,
    /// Ports whose mode is set by number.
    pub ports: BTreeMap<u16, ClientTls>,
    /// Ports that services declare something about.
    pub protocols: BTreeMap<u16, PortProtocol>,
    pub authorization: Arc<WorkloadAuthorization>,
    /// None: objects disagree.
    pub speaks_mtls: Option<bool>,
}

impl Direct {
    pub fn tls(&self, port: u16) -> &ClientTls {
        self.ports.get(&port).unwrap_or(&self.default)
    }

    pub fn mode(&self, port: u16) -> &EffectiveMode {
        self.modes.at(port)
    }

    pub fn protocol(&self, port: u16) -> PortProtocol {
        self.protocols.get(&port).copied().unwrap_or_default()
    }
}
