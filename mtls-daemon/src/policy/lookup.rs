//! Which DestinationRule a client uses for a host, and which TLS settings inside it
//! (policy.md 2.1, 2.2).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::client_tls::TlsSettings;
use super::destination_rule::{DestinationRule, Subset, TrafficPolicy};
use super::effective::selects;
use super::export::ExportTo;
use super::host;

/// One namespace's rules by host, oldest first.
type Hosts = BTreeMap<Arc<str>, Vec<Arc<DestinationRule>>>;

/// All rules, oldest first within a namespace and host.
#[derive(Debug, Clone, Default)]
pub struct DestinationRules {
    root_namespace: Arc<str>,
    by_namespace: HashMap<Arc<str>, Hosts>,
    /// Refused rules whose host could not be read: each may be for any host, and for that one as
    /// specific as any other rule.
    of_any_host: HashMap<Arc<str>, Vec<Arc<DestinationRule>>>,
    /// Namespaces with a rule for exactly this host.
    with_host: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Namespaces with a rule for more than one host, and the root namespace.
    with_any: BTreeSet<Arc<str>>,
    /// Namespaces that the rules of this one name in `exportTo`.
    named_by: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
}

/// The rules that apply to one client and host, merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedRule {
    /// Its traffic policy's object, for example `DestinationRule ns/name`.
    pub because: Arc<str>,
    pub traffic: Option<TrafficPolicy>,
    pub subsets: Vec<Subset>,
    /// One of its objects was refused: the host is closed.
    pub refused: bool,
}

/// Rules of one namespace that a client may use for a host, by the client's labels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Candidates {
    /// With a `workloadSelector`, oldest first: the first that selects the client wins.
    pub selected: Vec<(BTreeMap<String, String>, Arc<ResolvedRule>)>,
    /// For every other client. None: the namespace's only rules select other clients; as in
    /// Istio, the search still ends here, and auto mTLS decides.
    pub otherwise: Option<Arc<ResolvedRule>>,
}

impl Candidates {
    pub fn for_client(&self, labels: &BTreeMap<String, String>) -> Option<&Arc<ResolvedRule>> {
        self.selected
            .iter()
            .find(|(selector, _)| selects(selector, labels))
            .map(|(_, rule)| rule)
            .or(self.otherwise.as_ref())
    }
}

impl DestinationRules {
    pub fn new(root_namespace: &str, mut rules: Vec<DestinationRule>) -> Self {
        rules.sort_by(|a, b| a.meta.age_order().cmp(&b.meta.age_order()));
        let mut all = Self { root_namespace: root_namespace.into(), ..Self::default() };
        all.with_any.insert(all.root_namespace.clone());
        for rule in rules {
            let namespace = &rule.meta.namespace;
            if let ExportTo::Names(names) = &rule.export_to {
                all.named_by.entry(namespace.clone()).or_default().extend(names.iter().cloned());
            }
            let unread = rule.refused.is_some_and(|untold| untold.host);
            match unread || rule.host.starts_with('*') {
                true => all.with_any.insert(namespace.clone()),
                false => {
                    all.with_host.entry(rule.host.clone()).or_default().insert(namespace.clone())
                }
            };
            if unread {
                let known = all.of_any_host.entry(rule.meta.namespace.clone()).or_default();
                known.push(Arc::new(rule));
                continue;
            }
            all.by_namespace
                .entry(rule.meta.namespace.clone())
                .or_default()
                .entry(rule.host.clone())
                .or_default()
                .push(Arc::new(rule));
        }
        all
    }

    /// Every namespace whose clients may see other rules than clients elsewhere, for a service of
    /// namespace `service` with these names.
    pub fn namespaces<H: AsRef<str>>(&self, service: &str, hosts: &[H]) -> BTreeSet<Arc<str>> {
        let of_host = hosts.iter().filter_map(|host| self.with_host.get(host.as_ref()));
        let exporting = [service, &*self.root_namespace];
        let named = exporting.into_iter().filter_map(|namespace| self.named_by.get(namespace));
        of_host.chain(named).chain([&self.with_any]).flatten().cloned().collect()
    }

    /// The rules for clients of `client` that call a service of namespace `service` with these
    /// names. Looked up in the client's namespace, the service's, the root namespace: the first
    /// with a match for any of the names wins whole (policy.md 2.1.2).
    pub fn find<H: AsRef<str>>(
        &self,
        client: &str,
        service: &str,
        hosts: &[H],
    ) -> Option<Candidates> {
        let root = &*self.root_namespace;
        let own = if client == root {
            // Clients of the root namespace: its private rules first, then the ordinary order.
            let private =
                |rule: &DestinationRule| rule.export_to == ExportTo::Own || rule.is_for_anyone();
            self.in_namespace(client, hosts, private)
        } else {
            // One that is exported to others alone is none for clients beside it.
            let visible = |rule: &DestinationRule| {
                rule.export_to.visible_from(client, client) || rule.is_for_anyone()
            };
            self.in_namespace(client, hosts, visible)
        };
        let exported = |namespace: &str| self.exported(namespace, client, hosts);
        own.or_else(|| exported(service)).or_else(|| exported(root))
    }

    fn in_namespace<H: AsRef<str>>(
        &self,
        namespace: &str,
        hosts: &[H],
        eligible: impl Fn(&DestinationRule) -> bool,
    ) -> Option<Candidates> {
        let best = self.best(namespace, hosts, &eligible);
        let rules: Vec<_> = best.filter(|rule| eligible(rule)).collect();
        if rules.is_empty() { None } else { Some(candidates(&rules)) }
    }

    /// Among rules exported beyond their namespace, the best host is chosen first and visibility
    /// checked after: what the client cannot see ends the search in this namespace (policy.md 2.1.4).
    fn exported<H: AsRef<str>>(
        &self,
        namespace: &str,
        client: &str,
        hosts: &[H],
    ) -> Option<Candidates> {
        let public = |rule: &DestinationRule| rule.export_to != ExportTo::Own;
        let best = self.best(namespace, hosts, &public);
        let rules: Vec<_> = best
            .filter(|rule| public(rule) && rule.export_to.visible_from(namespace, client))
            .collect();
        if rules.is_empty() { None } else { Some(candidates(&rules)) }
    }

    /// The rules of `namespace` whose host fits best, and those that are for nobody knows which.
    fn best<'r, H: AsRef<str>>(
        &'r self,
        namespace: &str,
        hosts: &[H],
        eligible: &impl Fn(&DestinationRule) -> bool,
    ) -> impl Iterator<Item = &'r Arc<DestinationRule>> {
        let by_host = self.by_namespace.get(namespace);
        let best = by_host.and_then(|by_host| by_host.get(best_match(hosts, by_host, eligible)?));
        self.of_any_host.get(namespace).into_iter().chain(best).flatten()
    }
}

/// The rules' host that fits any of a service's names best; of two that fit equally well the one
/// of the name that is listed first.
fn best_match<'r, H: AsRef<str>>(
    hosts: &[H],
    by_host: &'r Hosts,
    eligible: &impl Fn(&DestinationRule) -> bool,
) -> Option<&'r str> {
    let eligible =
        || by_host.iter().filter(|(_, rules)| rules.iter().any(|r| eligible(r))).map(|(h, _)| &**h);
    hosts
        .iter()
        .filter_map(|host| {
            let best = host::most_specific(host.as_ref(), eligible())?;
            Some((best == host.as_ref(), best.len(), best))
        })
        .reduce(|best, next| if (next.0, next.1) > (best.0, best.1) { next } else { best })
        .map(|(.., best)| best)
}

/// A selecting rule overrides; the others are merged: the oldest `trafficPolicy` wins whole,
/// subsets are added by name, the first wins (policy.md 2.1.6).
fn candidates(rules: &[&Arc<DestinationRule>]) -> Candidates {
    let mut all = Candidates::default();
    let mut merged: Option<ResolvedRule> = None;
    for rule in rules {
        let resolved = ResolvedRule {
            because: rule.meta.origin.object.clone(),
            traffic: rule.traffic.clone(),
            subsets: rule.subsets.clone(),
            refused: rule.refused.is_some(),
        };
        if rule.is_for_anyone() {
            // Also for those that the other rules select.
            all.selected.insert(0, (BTreeMap::new(), Arc::new(resolved.clone())));
        }
        if !rule.workload_selector.is_empty() {
            all.selected.push((rule.workload_selector.clone(), Arc::new(resolved)));
            continue;
        }
        let Some(merged) = &mut merged else {
            merged = Some(resolved);
            continue;
        };
        // A refused one could have set anything: the others do not open what it would have closed.
        if merged.refused || resolved.refused {
            if !merged.refused {
                *merged = resolved;
            }
            continue;
        }
        if merged.traffic.is_none() && resolved.traffic.is_some() {
            merged.traffic = resolved.traffic;
            merged.because = resolved.because;
        }
        for subset in resolved.subsets {
            if !merged.subsets.iter().any(|known| known.name == subset.name) {
                merged.subsets.push(subset);
            }
        }
    }
    all.otherwise = merged.map(Arc::new);
    all
}

impl ResolvedRule {
    /// The TLS settings for a service port: subset's port, subset, port, top level. A port entry
    /// replaces its level wholesale; a subset that sets nothing falls back to the rule
    /// (policy.md 2.2). None: no setting, auto mTLS decides.
    pub fn tls(&self, port: u16, subset: Option<&str>) -> Option<&Arc<TlsSettings>> {
        let of_subset = subset
            .and_then(|name| self.subsets.iter().find(|s| *s.name == *name))
            .and_then(|s| s.traffic.as_ref());
        if let Some(traffic) = of_subset {
            match traffic.ports.get(&port) {
                Some(entry) => return entry.as_ref(),
                None if traffic.tls.is_some() => return traffic.tls.as_ref(),
                None => {}
            }
        }
        let traffic = self.traffic.as_ref()?;
        match traffic.ports.get(&port) {
            Some(entry) => entry.as_ref(),
            None => traffic.tls.as_ref(),
        }
    }
}
