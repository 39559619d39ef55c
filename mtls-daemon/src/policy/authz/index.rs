//! All policies, found by the workload that they select.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::ask::{Connection, Request};
use super::model::AuthorizationPolicy;
use super::verdict::{Reason, Verdict};
use crate::policy::ObjectMeta;
use crate::policy::effective::selects;

/// What the meaning of policies depends on beside themselves.
#[derive(Debug, Clone, Copy)]
pub struct AuthzSettings<'a> {
    pub root_namespace: &'a str,
    pub trust_domain: &'a str,
    pub aliases: &'a [String],
}

/// An object that was refused: what it selects is denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedPolicy {
    pub meta: ObjectMeta,
    /// None: not even that could be read, so everything in its scope is denied.
    pub selector: Option<BTreeMap<String, String>>,
    pub reason: Arc<str>,
}

/// Every policy, by the namespace that it counts in: the others cost a workload nothing.
#[derive(Debug, Default)]
pub struct Authorizations {
    by_namespace: HashMap<Arc<str>, Vec<Arc<AuthorizationPolicy>>>,
    refused: HashMap<Arc<str>, Vec<RefusedPolicy>>,
    root_namespace: Arc<str>,
}

/// The policies in force for one workload, ready to be asked.
#[derive(Debug, Default)]
pub struct WorkloadAuthorization {
    policies: Vec<Arc<str>>,
}

impl Authorizations {
    pub fn new(
        settings: &AuthzSettings<'_>,
        objects: Vec<AuthorizationPolicy>,
        refused: Vec<RefusedPolicy>,
    ) -> Self {
        let mut all = Self { root_namespace: settings.root_namespace.into(), ..Self::default() };
        for object in objects {
            let namespace = object.meta.namespace.clone();
            all.by_namespace.entry(namespace).or_default().push(Arc::new(object));
        }
        for object in refused {
            all.refused.entry(object.meta.namespace.clone()).or_default().push(object);
        }
        all
    }

    /// What is in force for a workload of this namespace with these labels.
    pub fn for_workload(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Arc<WorkloadAuthorization> {
        let mut policies = Vec::new();
        for place in [&*self.root_namespace, namespace] {
            for object in self.by_namespace.get(place).into_iter().flatten() {
                if selects(&object.selector, labels) {
                    policies.push(object.meta.origin.object.clone());
                }
            }
            for object in self.refused.get(place).into_iter().flatten() {
                if object.selector.as_ref().is_none_or(|selector| selects(selector, labels)) {
                    policies.push(object.meta.origin.object.clone());
                }
            }
        }
        Arc::new(WorkloadAuthorization { policies })
    }
}

impl WorkloadAuthorization {
    /// No policy selects the workload: everything is allowed, nobody needs to ask.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// Some rule that can apply to this port of the workload has a field that only HTTP has.
    pub fn needs_http(&self, _port: u16) -> bool {
        !self.is_empty()
    }

    /// Whether a connection may be, as far as that can be told without HTTP (policy.md 4.8).
    pub fn connection(&self, _connection: &Connection<'_>) -> Verdict {
        self.refuse()
    }

    /// Whether a request may be.
    pub fn request(&self, _connection: &Connection<'_>, _request: &Request<'_>) -> Verdict {
        self.refuse()
    }

    /// Rules are not evaluated yet, so whatever is selected by a policy is denied.
    fn refuse(&self) -> Verdict {
        let policy = self.policies.first().cloned();
        let reason = if policy.is_some() { Reason::Refused } else { Reason::NoAllowPolicy };
        let allowed = policy.is_none();
        Verdict { allowed, policy, rule: None, reason, audit: None, dry_run: None }
    }
}
