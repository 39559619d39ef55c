//! Objects that change nothing, because what they name is not there: a slip in a host or a label
//! leaves in the clear what the object was to protect, and nothing else would say so.

use std::collections::{BTreeMap, HashSet};

use super::MeshSettings;
use super::kinds::Kinds;
use super::members::Members;
use super::service_entry::ServiceEntry;
use crate::policy::error::{Code, ConfigError, Origin};
use crate::policy::host;

/// Warns of rules without a service and of selectors without a workload. A configuration without any
/// service or workload, such as a folder of policies in CI, is not judged.
pub(super) fn warn(
    kinds: &Kinds,
    entries: &[ServiceEntry],
    members: &Members,
    settings: &MeshSettings,
    warnings: &mut Vec<ConfigError>,
) {
    if !entries.is_empty() {
        let hosts = Hosts::of(entries);
        let rules = kinds.destination_rules.iter().filter(|rule| rule.refused.is_none());
        for rule in rules.filter(|rule| rule.tls().next().is_some() && !hosts.has(&rule.host)) {
            let reason = format!(
                "no ServiceEntry whose servers are known has the host {}, so what this rule says of TLS is for nobody's \
                 connections",
                rule.host
            );
            warnings.push(rule.meta.origin.error("spec.host", Code::WarnSuspicious, reason));
        }
    }
    if members.list.is_empty() {
        return;
    }
    let labels = Labels::of(members, &settings.root_namespace);
    let mut judge = |namespace: &str, origin: &Origin, field: &str, selector: &Selector| {
        if let Some((key, value)) = labels.missing(namespace, selector) {
            let reason = format!(
                "no workload that this could be for has the label {key}: {value}, so nobody is \
                 selected"
            );
            warnings.push(origin.error(field, Code::WarnSuspicious, reason));
        }
    };
    const FIELD: &str = "spec.selector.matchLabels";
    for policy in &kinds.authorization_policies {
        judge(&policy.meta.namespace, &policy.meta.origin, FIELD, &policy.selector);
    }
    for policy in &kinds.peer_authentications {
        // In the root namespace its selector has no meaning, which is said elsewhere.
        if policy.meta.namespace != settings.root_namespace {
            judge(&policy.meta.namespace, &policy.meta.origin, FIELD, &policy.selector);
        }
    }
    for rule in &kinds.destination_rules {
        let field = "spec.workloadSelector.matchLabels";
        judge(&rule.meta.namespace, &rule.meta.origin, field, &rule.workload_selector);
    }
}

/// The hosts of all services, so that thousands of rules are not compared with each.
struct Hosts {
    exact: HashSet<String>,
    wildcards: Vec<String>,
}

impl Hosts {
    fn of(entries: &[ServiceEntry]) -> Self {
        let placed = entries.iter().filter(|entry| !entry.everywhere);
        let hosts = placed.flat_map(|entry| &entry.hosts);
        let (wildcards, exact): (Vec<String>, Vec<String>) =
            hosts.map(|host| host.to_ascii_lowercase()).partition(|host| host.starts_with('*'));
        Self { exact: exact.into_iter().collect(), wildcards }
    }

    fn has(&self, rule: &str) -> bool {
        let rule = rule.to_ascii_lowercase();
        let overlaps = |other: &String| host::matches(&rule, other);
        self.exact.contains(&rule)
            || self.wildcards.iter().any(overlaps)
            || (rule.starts_with('*') && self.exact.iter().any(overlaps))
    }
}

type Selector = BTreeMap<String, String>;

/// Every label of every workload, by namespace; in the root namespace, those of all.
struct Labels<'a>(HashSet<(&'a str, &'a str, &'a str)>);

impl<'a> Labels<'a> {
    fn of(members: &'a Members, root: &'a str) -> Self {
        let workloads = members.list.iter().map(|member| &member.workload);
        let known = workloads
            .flat_map(|workload| workload.labels.iter().map(|label| (&*workload.namespace, label)))
            .flat_map(|(namespace, (key, value))| {
                [(namespace, &**key, &**value), (root, key, value)]
            })
            .collect();
        Self(known)
    }

    /// A label that no workload of `namespace` has; of the root namespace, no workload at all.
    fn missing<'s>(&self, namespace: &str, selector: &'s Selector) -> Option<(&'s str, &'s str)> {
        let mut labels = selector.iter().map(|(key, value)| (&**key, &**value));
        labels.find(|(key, value)| !self.0.contains(&(namespace, *key, *value)))
    }
}
