//! How many certificates each node holds that have not expired. Revoking a node lists them one by one, so
//! whoever stole its SVID must not get more than a list can have.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::issued::{self, Issued};
use super::{StateDir, seconds};
use crate::identity::NodeName;
use crate::identity::ca::CaError;

/// For a node that is not known to run anything, beside [`EACH`]: what a daemon that starts over and over gets in
/// some hours. A list that names them all is 2.6 MB.
const BASE: usize = 16_384;
/// For each identity that it may run: it is renewed at half of its life, and by each daemon that starts.
const EACH: usize = 16;

/// By node, until when each of its certificates is listed if it is revoked; the next to go first. What
/// another process issues is known after the next start.
#[derive(Default)]
pub struct Unexpired(Mutex<BTreeMap<NodeName, BinaryHeap<Reverse<u64>>>>);

impl Unexpired {
    /// Of the record of what was issued.
    pub fn read(directory: &StateDir, now: SystemTime) -> Result<Self, CaError> {
        let counted = Self::default();
        issued::each_valid(directory, now, |issued, _| {
            counted.add(&issued);
            Ok(())
        })?;
        Ok(counted)
    }

    pub fn add(&self, issued: &Issued) {
        if let Some(node) = &issued.node {
            self.held().entry(node.clone()).or_default().push(Reverse(issued.until()));
        }
    }

    /// Whether a node that may run so many identities may have one more. The error is how many it may.
    pub fn room(&self, node: &NodeName, identities: usize, now: SystemTime) -> Result<(), usize> {
        let most = BASE + EACH * identities;
        let mut held = self.held();
        let Some(until) = held.get_mut(node) else { return Ok(()) };
        while until.peek().is_some_and(|until| until.0 <= seconds(now)) {
            until.pop();
        }
        if until.len() < most { Ok(()) } else { Err(most) }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<NodeName, BinaryHeap<Reverse<u64>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
