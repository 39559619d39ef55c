//! The nodes that joined, and the identities that each may run.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::identity::NodeName;

pub const FILE: &str = "nodes.json";

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nodes(pub BTreeMap<NodeName, Node>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Whole SPIFFE IDs.
    pub identities: BTreeSet<String>,
    /// In seconds since 1970: the latest time that it used a join token.
    pub joined: u64,
}
