//! PeerAuthentication objects to one effective mode for each workload and port (policy.md 1.1-1.6).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::peer_authentication::Standing;
use super::{EffectiveMode, Mode, PeerAuthentication};

/// All PeerAuthentication objects, sorted by scope.
#[derive(Debug, Clone)]
pub struct PeerAuthentications {
    mesh: Option<PeerAuthentication>,
    namespaces: HashMap<Arc<str>, PeerAuthentication>,
    /// With a selector, by namespace, oldest first.
    workloads: HashMap<Arc<str>, Vec<PeerAuthentication>>,
    none: EffectiveMode,
}

/// One workload's modes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadModes {
    /// For every port that is not in `ports`.
    pub default: EffectiveMode,
    pub ports: BTreeMap<u16, EffectiveMode>,
}

impl WorkloadModes {
    pub fn at(&self, port: u16) -> &EffectiveMode {
        self.ports.get(&port).unwrap_or(&self.default)
    }
}

impl PeerAuthentications {
    pub fn new(root_namespace: &str, mut objects: Vec<PeerAuthentication>) -> Self {
        // Conflicts in one scope: the oldest wins, losers are dropped whole (policy.md 1.3).
        objects.sort_by(|a, b| {
            (a.standing, a.meta.age_order()).cmp(&(b.standing, b.meta.age_order()))
        });
        let mut all = Self {
            mesh: None,
            namespaces: HashMap::new(),
            workloads: HashMap::new(),
            none: EffectiveMode {
                mode: Mode::Permissive,
                because: "default (no PeerAuthentication)".into(),
            },
        };
        for object in objects {
            let in_root = *object.meta.namespace == *root_namespace;
            match (in_root, object.selector.is_empty()) {
                (true, true) => {
                    all.mesh.get_or_insert(object);
                }
                // A selector in the root namespace: ignored, mode and ports (policy.md 1.2).
                (true, false) => {}
                (false, true) => {
                    all.namespaces.entry(object.meta.namespace.clone()).or_insert(object);
                }
                (false, false) => {
                    all.workloads.entry(object.meta.namespace.clone()).or_default().push(object);
                }
            }
        }
        all
    }

    /// The mode that clients infer for a service of `namespace`: workload objects take no part
    /// (policy.md 2.4.2).
    pub fn namespace_mode(&self, namespace: &str) -> EffectiveMode {
        let mut effective = self.none.clone();
        for object in self.mesh.iter().chain(self.namespaces.get(namespace)) {
            if let Some(mode) = object.mode {
                effective = decided_by(object, mode);
            }
        }
        effective
    }

    /// The objects that take part for a workload: the mesh's, the namespace's, and those that select
    /// it, of which the oldest wins.
    pub fn applying(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Vec<&PeerAuthentication> {
        let selecting = self.workloads.get(namespace).into_iter().flatten();
        self.mesh
            .iter()
            .chain(self.namespaces.get(namespace))
            .chain(selecting.filter(|object| selects(&object.selector, labels)))
            .collect()
    }

    /// Modes of the workload with these labels: mesh, then namespace, then the oldest selecting
    /// object, each unless UNSET (policy.md 1.4).
    pub fn workload_modes(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> WorkloadModes {
        let inherited = self.namespace_mode(namespace);
        let selected = self
            .workloads
            .get(namespace)
            .and_then(|objects| objects.iter().find(|o| selects(&o.selector, labels)));
        let Some(object) = selected else {
            return WorkloadModes { default: inherited, ports: BTreeMap::new() };
        };
        let default = object.mode.map_or(inherited, |mode| decided_by(object, mode));
        // Ports come from the winning workload object only; UNSET takes the workload's effective
        // mode, not the mesh's (policy.md 1.5).
        let ports = object
            .ports
            .iter()
            .map(|(port, mode)| {
                let effective = mode.map_or_else(
                    || default.clone(),
                    |mode| {
                        let because = format!("{} (port {port})", object.meta.origin.object).into();
                        EffectiveMode { mode, because }
                    },
                );
                (*port, effective)
            })
            .collect();
        WorkloadModes { default, ports }
    }
}

/// Every label of a selector is there with its value.
pub fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn decided_by(object: &PeerAuthentication, mode: Mode) -> EffectiveMode {
    let because = match object.standing {
        Standing::Refused => format!("{} (refused)", object.meta.origin.object).into(),
        Standing::Given | Standing::Converted => object.meta.origin.object.clone(),
    };
    EffectiveMode { mode, because }
}
