//! For whom a caller may ask: impersonation (policy.md 7.4).

use std::collections::BTreeSet;

use super::authenticate::token_review::Account;
use super::nodes::Nodes;
use crate::identity::{NodeName, SpiffeId, TrustDomain};

/// What the cluster says of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub service_account: String,
    /// Empty: it has not been placed yet.
    pub node: String,
}

/// The cluster's pods that have not ended.
pub trait Pods: Send + Sync {
    fn pod(&self, namespace: &str, name: &str) -> Option<Pod>;
    /// Whether a pod of this service account is on the node, and has not failed.
    fn runs_on(&self, node: &str, namespace: &str, service_account: &str) -> bool;
}

/// Namespace and name of a service account.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AccountName {
    pub namespace: String,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    #[error("{caller} may not ask for others: it is no trusted node account")]
    NotTrusted { caller: String },
    #[error("the CA does not know the cluster's pods")]
    NoPods,
    #[error("{requested:?} is no workload's identity: {why}")]
    Identity { requested: String, why: String },
    #[error("{requested} is of another trust domain than {trust_domain}")]
    TrustDomain { requested: SpiffeId, trust_domain: TrustDomain },
    #[error("the caller's token names no pod")]
    NoPod,
    #[error("the caller's pod {namespace}/{name} does not exist")]
    PodUnknown { namespace: String, name: String },
    #[error("the caller's pod {namespace}/{name} is another one by now: its UID differs")]
    PodUid { namespace: String, name: String },
    #[error("the caller's pod {namespace}/{name} has another service account")]
    PodAccount { namespace: String, name: String },
    #[error("no pod of {requested} is on the caller's node {node}")]
    NotOnNode { requested: SpiffeId, node: String },
    #[error("node {0} has not joined, or was removed")]
    NodeUnknown(NodeName),
    #[error("node {node} may not run {requested}: its join token did not name it")]
    NotOnList { requested: SpiffeId, node: NodeName },
}

/// A node proxy's service account asks for a pod on its own node. The node, too.
pub fn account(
    trusted: &BTreeSet<AccountName>,
    caller: &Account,
    requested: &str,
    trust_domain: &TrustDomain,
    pods: Option<&dyn Pods>,
) -> Result<(SpiffeId, String), NotAllowed> {
    let own = AccountName { namespace: caller.namespace.clone(), name: caller.name.clone() };
    if !trusted.contains(&own) {
        return Err(NotAllowed::NotTrusted { caller: format!("{}/{}", own.namespace, own.name) });
    }
    let requested = workload(requested, trust_domain)?;
    let pods = pods.ok_or(NotAllowed::NoPods)?;
    let reference = caller.pod.as_ref().ok_or(NotAllowed::NoPod)?;
    let (namespace, name) = (caller.namespace.clone(), reference.name.clone());
    let Some(pod) = pods.pod(&namespace, &name) else {
        return Err(NotAllowed::PodUnknown { namespace, name });
    };
    if pod.uid != reference.uid {
        return Err(NotAllowed::PodUid { namespace, name });
    }
    if pod.service_account != caller.name {
        return Err(NotAllowed::PodAccount { namespace, name });
    }
    let (asked_namespace, asked_account) = requested.istio_parts().unwrap_or_default();
    // A pod without a node shares that with every other such pod: nothing is on it.
    if pod.node.is_empty() || !pods.runs_on(&pod.node, asked_namespace, asked_account) {
        return Err(NotAllowed::NotOnNode { requested, node: pod.node });
    }
    Ok((requested, pod.node))
}

/// A node that joined asks for one of the identities that it was allowed then.
pub fn node(
    nodes: &Nodes,
    caller: &NodeName,
    requested: &str,
    trust_domain: &TrustDomain,
) -> Result<SpiffeId, NotAllowed> {
    let requested = workload(requested, trust_domain)?;
    let node = nodes.0.get(caller).ok_or_else(|| NotAllowed::NodeUnknown(caller.clone()))?;
    if !node.identities.contains(requested.as_str()) {
        return Err(NotAllowed::NotOnList { requested, node: caller.clone() });
    }
    Ok(requested)
}

/// An identity that a workload of this trust domain can have. Istio does not compare the trust domain:
/// a trusted node could ask for a peer mesh's identities.
pub fn workload(requested: &str, trust_domain: &TrustDomain) -> Result<SpiffeId, NotAllowed> {
    let shown = || requested.chars().take(256).collect::<String>();
    let id = SpiffeId::parse(requested)
        .map_err(|error| NotAllowed::Identity { requested: shown(), why: error.to_string() })?;
    if id.istio_parts().is_none() {
        let why = "it is not of the form ns/<namespace>/sa/<service account>".to_owned();
        return Err(NotAllowed::Identity { requested: shown(), why });
    }
    if id.trust_domain() != trust_domain.as_str() {
        let trust_domain = trust_domain.clone();
        return Err(NotAllowed::TrustDomain { requested: id, trust_domain });
    }
    Ok(id)
}

#[cfg(test)]
#[path = "allow_tests.rs"]
mod tests;
