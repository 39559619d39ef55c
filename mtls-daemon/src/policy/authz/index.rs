//! All policies, found by the workload that they select (policy.md 4.2).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::compile::{Compiled, compile};
use super::model::{Action, AuthorizationPolicy};
use super::refused::RefusedPolicy;
use super::workload::WorkloadAuthorization;
use crate::policy::effective::selects;

/// What the meaning of policies depends on beside themselves.
#[derive(Debug, Clone, Copy)]
pub struct AuthzSettings<'a> {
    pub root_namespace: &'a str,
    pub trust_domain: &'a str,
    pub aliases: &'a [String],
}

/// Every policy, compiled once. A workload costs what its own namespace and labels select, however
/// many policies there are elsewhere.
#[derive(Debug, Default)]
pub struct Authorizations {
    by_namespace: HashMap<Arc<str>, Scope>,
    root_namespace: Arc<str>,
}

/// The policies of one namespace, oldest first.
#[derive(Debug, Default)]
struct Scope {
    /// Without a selector.
    everyone: Vec<Selected>,
    /// By one label of their selector, key and value.
    by_label: HashMap<String, HashMap<String, Vec<Selected>>>,
}

#[derive(Debug, Clone)]
struct Selected {
    /// Oldest first, over all namespaces.
    place: usize,
    selector: Arc<BTreeMap<String, String>>,
    policy: Arc<Compiled>,
}

impl Authorizations {
    pub fn new(
        settings: &AuthzSettings<'_>,
        mut objects: Vec<AuthorizationPolicy>,
        refused: Vec<RefusedPolicy>,
    ) -> Self {
        objects.sort_by(|a, b| a.meta.age_order().cmp(&b.meta.age_order()));
        let mut all = Self { root_namespace: settings.root_namespace.into(), ..Self::default() };
        let mut place = 0;
        let mut add = |namespace: &Arc<str>, selector, policy: Compiled| {
            let selected = Selected { place, selector: Arc::new(selector), policy: policy.into() };
            all.by_namespace.entry(namespace.clone()).or_default().add(selected);
            place += 1;
        };
        for object in refused {
            let policy = Compiled {
                object: object.meta.origin.object.clone(),
                action: Action::Deny,
                dry_run: false,
                refused: Some(object.reason),
                differences: Vec::new(),
                rules: Vec::new(),
            };
            add(&object.meta.namespace, object.selector.unwrap_or_default(), policy);
        }
        // What is for gateways and waypoints selects no workload.
        for object in objects.iter().filter(|object| !object.targets_gateway) {
            add(&object.meta.namespace, object.selector.clone(), compile(object, settings));
        }
        all
    }

    /// What is in force for a workload of this namespace with these labels: its own namespace's
    /// policies and the root namespace's, all together.
    pub fn for_workload(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Arc<WorkloadAuthorization> {
        let root = (*self.root_namespace != *namespace).then_some(&*self.root_namespace);
        let mut selected = Vec::new();
        for scope in [root, Some(namespace)].into_iter().flatten() {
            if let Some(scope) = self.by_namespace.get(scope) {
                scope.select(labels, &mut selected);
            }
        }
        selected.sort_by_key(|selected| selected.place);
        let policies = selected.into_iter().map(|selected| selected.policy.clone());
        Arc::new(WorkloadAuthorization::new(policies))
    }
}

impl Scope {
    fn add(&mut self, selected: Selected) {
        match selected.selector.iter().next() {
            None => self.everyone.push(selected),
            Some((key, value)) => self
                .by_label
                .entry(key.clone())
                .or_default()
                .entry(value.clone())
                .or_default()
                .push(selected),
        }
    }

    fn select<'s>(&'s self, labels: &BTreeMap<String, String>, into: &mut Vec<&'s Selected>) {
        into.extend(&self.everyone);
        for (key, value) in labels {
            let found = self.by_label.get(key).and_then(|values| values.get(value));
            into.extend(found.into_iter().flatten().filter(|s| selects(&s.selector, labels)));
        }
    }
}
