//! An `AuthorizationPolicy` as it was written and validated; nothing is resolved yet.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::attribute::Attribute;
use crate::policy::ObjectMeta;

/// One object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    pub meta: ObjectMeta,
    pub action: Action,
    /// `istio.io/dry-run`: evaluated and reported, never enforced (policy.md 4.11).
    pub dry_run: bool,
    /// `matchLabels`; empty: the whole namespace, or the mesh in the root namespace.
    pub selector: BTreeMap<String, String>,
    /// Has `targetRef` or `targetRefs`: for gateways and waypoints, so no workload's (policy.md 4.2).
    pub targets_gateway: bool,
    /// None: an ALLOW policy that allows nothing (policy.md 4.3).
    pub rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    Allow,
    Deny,
    Audit,
    /// Asks an external authorizer, which is not supported: what it selects is denied.
    Custom,
}

/// Any `from`, any `to`, all `when`; an empty list asks nothing (policy.md 4.4).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    pub from: Vec<Source>,
    pub to: Vec<Operation>,
    pub when: Vec<Condition>,
}

/// A field's values, and those of its `not` twin. Both empty: the field is not there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Values {
    pub any: Vec<Arc<str>>,
    pub none: Vec<Arc<str>>,
}

impl Values {
    pub fn is_empty(&self) -> bool {
        self.any.is_empty() && self.none.is_empty()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    pub principals: Values,
    pub request_principals: Values,
    pub namespaces: Values,
    pub service_accounts: Values,
    pub trust_domains: Values,
    pub ip_blocks: Values,
    pub remote_ip_blocks: Values,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Operation {
    pub hosts: Values,
    pub ports: Values,
    pub methods: Values,
    pub paths: Values,
}

impl Source {
    /// Every field, with what it is compared with.
    pub fn fields(&self) -> [(Attribute, &Values); 7] {
        [
            (Attribute::Principal, &self.principals),
            (Attribute::Token, &self.request_principals),
            (Attribute::Namespace, &self.namespaces),
            (Attribute::ServiceAccount, &self.service_accounts),
            (Attribute::TrustDomain, &self.trust_domains),
            (Attribute::SourceIp, &self.ip_blocks),
            (Attribute::RemoteIp, &self.remote_ip_blocks),
        ]
    }
}

impl Operation {
    /// Every field, with what it is compared with.
    pub fn fields(&self) -> [(Attribute, &Values); 4] {
        [
            (Attribute::Host, &self.hosts),
            (Attribute::Port, &self.ports),
            (Attribute::Method, &self.methods),
            (Attribute::Path, &self.paths),
        ]
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    pub key: Arc<str>,
    pub values: Values,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
            Self::Custom => "CUSTOM",
        })
    }
}

/// The value of an annotation that is a boolean, as Go reads one.
pub(super) fn is_true(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}
