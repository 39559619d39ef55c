//! Names in a trust domain that no workload has: its nodes' and its CA's own. They are known by their
//! SVIDs to each other, and are no peers in the data path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{SpiffeId, SpiffeIdError, TrustDomain};

const NODE: &str = "/node/";
const CA: &str = "/ca/";

/// A node's name: one segment of `spiffe://<trust domain>/node/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl NodeName {
    pub fn parse(name: &str) -> Result<Self, SpiffeIdError> {
        // Checks the characters; a '/' would be a second segment.
        SpiffeId::parse(&format!("spiffe://x{NODE}{name}"))?;
        if name.contains('/') {
            return Err(SpiffeIdError::PathCharacter('/'));
        }
        Ok(Self(name.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn id(&self, trust_domain: &TrustDomain) -> Result<SpiffeId, SpiffeIdError> {
        SpiffeId::parse(&format!("spiffe://{trust_domain}{NODE}{}", self.0))
    }

    /// The node that `id` names, if it names one.
    pub fn of(id: &SpiffeId) -> Option<Self> {
        Self::parse(id.path().strip_prefix(NODE)?).ok()
    }
}

/// The CA's own identities: `server` is what it serves with, `revocations` what it signs its list with.
pub fn ca_id(trust_domain: &TrustDomain, role: &str) -> Result<SpiffeId, SpiffeIdError> {
    SpiffeId::parse(&format!("spiffe://{trust_domain}{CA}{role}"))
}

/// Whether `id` is a node's or the CA's, and so no workload's.
pub fn is_reserved(id: &SpiffeId) -> bool {
    let path = id.path();
    path.starts_with(NODE) || path.starts_with(CA)
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for NodeName {
    type Err = SpiffeIdError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::parse(name)
    }
}

impl TryFrom<String> for NodeName {
    type Error = SpiffeIdError;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::parse(&name)
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_one_segment() {
        let domain = TrustDomain::parse("cluster.local").unwrap();
        let node = NodeName::parse("rack-1.vm_2").unwrap();
        let id = node.id(&domain).unwrap();
        assert_eq!(id.as_str(), "spiffe://cluster.local/node/rack-1.vm_2");
        assert_eq!(NodeName::of(&id), Some(node));
        for bad in ["", "a/b", "..", "a b", "a/", "é"] {
            assert!(NodeName::parse(bad).is_err(), "{bad:?}");
        }
        for other in ["spiffe://x/node", "spiffe://x/node/a/b", "spiffe://x/nodes/a"] {
            let id = SpiffeId::parse(other).unwrap();
            assert_eq!(NodeName::of(&id), None, "{other}");
        }
    }

    #[test]
    fn nodes_and_the_ca_are_no_workloads() {
        let reserved = |id| is_reserved(&SpiffeId::parse(id).unwrap());
        assert!(reserved("spiffe://x/node/a") && reserved("spiffe://x/node/a/b"));
        assert!(reserved("spiffe://x/ca/server"));
        assert!(!reserved("spiffe://x/ns/node/sa/ca") && !reserved("spiffe://x/nodes/a"));
    }
}
