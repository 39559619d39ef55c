//! Which version of each object is in force: the one that was read, else the one before it, else
//! what stands in for it. One tenant's mistake neither opens a door nor freezes the mesh.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::in_place::InPlace;
use super::objects::{Object, Objects, Read};
use crate::policy::authz::{Action, RefusedPolicy};
use crate::policy::error::{Code, ConfigError};

/// The objects of a configuration that is in force, by what messages call them.
#[derive(Debug, Clone, Default)]
pub struct Accepted {
    pub(super) objects: BTreeMap<Arc<str>, Object>,
    /// Names that several objects have, of which none was in force alone before: what the others
    /// wanted stays closed for as long as they are there.
    pub(super) disputed: BTreeSet<Arc<str>>,
}

/// Objects on the way into a snapshot.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    pub objects: BTreeMap<Arc<str>, Object>,
    pub in_place: Vec<InPlace>,
    /// What claims nothing that it did not claim before: in a conflict the other one yields.
    pub incumbents: HashSet<Arc<str>>,
    pub errors: Vec<ConfigError>,
    /// Somebody's place is not known, which without an earlier version nothing makes up for.
    pub incomplete: bool,
    pub disputed: BTreeSet<Arc<str>>,
    tried: BTreeSet<Arc<str>>,
}

impl Chosen {
    /// `previous`: None at the first start.
    pub fn of(objects: &mut Objects, previous: Option<&Accepted>) -> Self {
        let mut chosen = Self::default();
        let unclear = std::mem::take(&mut objects.unclear);
        let mut by_name: Vec<(Arc<str>, Vec<Read>)> = Vec::new();
        let mut positions: HashMap<Arc<str>, usize> = HashMap::new();
        for read in std::mem::take(&mut objects.read) {
            let key = read.origin.object.clone();
            let position = *positions.entry(key.clone()).or_insert(by_name.len());
            if position == by_name.len() {
                by_name.push((key, Vec::new()));
            }
            by_name[position].1.push(read);
        }
        chosen.incomplete = objects.unreadable;
        for (key, candidates) in by_name {
            let earlier = previous.and_then(|p| p.objects.get(&key));
            let disputed = previous.is_some_and(|p| p.disputed.contains(&key));
            chosen.choose(key, candidates, earlier, disputed);
        }
        // What is no longer there is gone, unless its file cannot tell. A policy may have moved to
        // any file that cannot.
        let known = |key: &Arc<str>| positions.contains_key(key);
        for (key, object) in previous.iter().flat_map(|p| &p.objects) {
            let its_own = unclear.contains(&object.meta().origin.file);
            let moved = !unclear.is_empty() && is_policy(object);
            if !known(key) && (its_own || moved) {
                let reason = match its_own {
                    true => "stays in force: its file can no longer be understood",
                    false => {
                        "stays in force: it is nowhere, and may have moved to a file that cannot \
                         be understood"
                    }
                };
                chosen.errors.push(object.meta().origin.error("", Code::Refused, reason));
                chosen.keep(key.clone(), object.clone());
            }
        }
        chosen
    }

    fn keep(&mut self, key: Arc<str>, object: Object) {
        self.incumbents.insert(key.clone());
        self.objects.insert(key, object);
    }

    /// Of several objects with one name, the one that is in force already: the one of its file. Else
    /// the first, by file and line.
    fn choose(
        &mut self,
        key: Arc<str>,
        candidates: Vec<Read>,
        earlier: Option<&Object>,
        disputed: bool,
    ) {
        let of_file = |read: &Read| {
            earlier.is_some_and(|earlier| read.origin.file == earlier.meta().origin.file)
        };
        let winner = candidates.iter().position(of_file).unwrap_or(0);
        let first = candidates.get(winner).map(|read| read.origin.clone());
        for (index, Read { origin, outcome }) in candidates.into_iter().enumerate() {
            let duplicate = first.as_ref().filter(|_| index != winner);
            if let Some(first) = duplicate {
                let reason = format!("is there twice: also at {}:{}", first.file, first.line);
                self.errors.push(origin.error("metadata.name", Code::ObjectDuplicate, reason));
            }
            let instead = match (outcome, earlier) {
                (Ok(object), _) if duplicate.is_none() => {
                    if earlier.is_some_and(|earlier| claims(earlier) == claims(&object)) {
                        self.incumbents.insert(key.clone());
                    }
                    self.objects.insert(key.clone(), object);
                    continue;
                }
                (_, Some(earlier)) if duplicate.is_none() || !disputed => {
                    let reason = "refused: the version that was read before stays in force";
                    self.errors.push(origin.error("", Code::Refused, reason));
                    if duplicate.is_none() {
                        self.keep(key.clone(), earlier.clone());
                    }
                    continue;
                }
                (Ok(object), _) => instead_of(object),
                (Err(instead), _) => instead,
            };
            if duplicate.is_some() {
                self.disputed.insert(key.clone());
            }
            self.incomplete |= matches!(instead, InPlace::Unplaced | InPlace::Unknown);
            self.errors.push(origin.error("", Code::Refused, instead.says()));
            self.in_place.push(instead);
        }
    }

    /// Takes back what was refused when the objects were put together: to the version before, and
    /// without one it goes. A workload's entries go back with it. False: nothing was left to do.
    pub fn take_back(&mut self, refused: &[ConfigError], previous: Option<&Accepted>) -> bool {
        let before = |key: &Arc<str>| previous.and_then(|p| p.objects.get(key)).cloned();
        let mut changed = false;
        for key in refused.iter().map(|error| error.object.clone()).collect::<BTreeSet<_>>() {
            let Some(object) = self.objects.get(&key) else { continue };
            let origin = object.meta().origin.clone();
            changed = true;
            if let Some(earlier) = before(&key).filter(|_| self.tried.insert(key.clone())) {
                if let Object::NodeWorkload(workload) = &earlier {
                    for (name, _) in &workload.workload_entries {
                        let entry: Arc<str> =
                            format!("WorkloadEntry {}/{name}", workload.meta.namespace).into();
                        if let Some(object) = before(&entry) {
                            self.keep(entry, object);
                        }
                    }
                }
                let reason = "refused: the version that was read before stays in force";
                self.errors.push(origin.error("", Code::Refused, reason));
                self.keep(key, earlier);
            } else {
                self.errors.push(origin.error("", Code::Refused, InPlace::Unplaced.says()));
                self.incumbents.remove(&key);
                self.objects.remove(&key);
            }
        }
        changed
    }
}

/// It can close something.
fn is_policy(object: &Object) -> bool {
    match object {
        Object::AuthorizationPolicy(_)
        | Object::PeerAuthentication(_)
        | Object::Legacy(_)
        | Object::DestinationRule(_) => true,
        Object::WorkloadEntry(_) | Object::ServiceEntry(_) | Object::NodeWorkload(_) => false,
    }
}

/// A second object of a name that is taken: what it wanted is closed as well.
fn instead_of(object: Object) -> InPlace {
    match object {
        Object::AuthorizationPolicy(policy)
            if policy.dry_run || policy.targets_gateway || policy.action == Action::Audit =>
        {
            InPlace::Nothing
        }
        Object::AuthorizationPolicy(policy) => InPlace::Denied(RefusedPolicy {
            reason: format!("{} is refused", policy.meta.origin.place()).into(),
            selector: Some(policy.selector),
            meta: policy.meta,
        }),
        Object::PeerAuthentication(policy) => InPlace::Strict(policy.into_refused()),
        Object::Legacy(policy) => InPlace::Strict(policy.into_refused()),
        Object::DestinationRule(rule) => InPlace::Closed(rule.into_refused()),
        Object::WorkloadEntry(_) | Object::ServiceEntry(_) | Object::NodeWorkload(_) => {
            InPlace::Unplaced
        }
    }
}

/// What only one object can have.
fn claims(object: &Object) -> Vec<String> {
    match object {
        Object::WorkloadEntry(entry) => vec![entry.address.to_string()],
        Object::ServiceEntry(entry) => entry
            .virtual_addresses()
            .iter()
            .flat_map(|(address, _)| entry.ports.iter().map(move |p| (address, p.number)))
            .map(|(address, port)| format!("{address} {port}"))
            .chain(entry.server_addresses().map(|address| address.to_string()))
            .collect(),
        Object::NodeWorkload(workload) => workload
            .workload_entries
            .iter()
            .map(|(name, _)| name.to_string())
            .chain([workload.place.to_string()])
            .chain(workload.host_ports.iter().flat_map(|ports| ports.iter()).map(u16::to_string))
            .collect(),
        _ => Vec::new(),
    }
}
