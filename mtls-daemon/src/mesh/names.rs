//! What is known of the names of hosts outside the mesh. Somebody else resolves them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// By name.
pub type Answers = BTreeMap<Arc<str>, Answer>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Answer {
    /// The last good answer.
    pub current: Vec<IpAddr>,
    /// That, and what answers before it had: clients may still use them.
    pub remembered: Vec<IpAddr>,
    /// Why there is none at all.
    pub error: Option<Arc<str>>,
}
