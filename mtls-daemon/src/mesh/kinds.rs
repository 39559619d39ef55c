//! The objects that are in force, by kind.

use super::accept::Chosen;
use super::in_place::InPlace;
use super::objects::Object;
use super::service_entry::ServiceEntry;
use super::workload_entry::{NodeWorkloadEntry, WorkloadEntry};
use crate::policy::authz::{AuthorizationPolicy, RefusedPolicy};
use crate::policy::legacy::LegacyPolicy;
use crate::policy::{DestinationRule, PeerAuthentication};

#[derive(Debug, Default)]
pub(super) struct Kinds {
    pub workload_entries: Vec<WorkloadEntry>,
    pub service_entries: Vec<ServiceEntry>,
    pub node_workloads: Vec<NodeWorkloadEntry>,
    pub peer_authentications: Vec<PeerAuthentication>,
    pub destination_rules: Vec<DestinationRule>,
    pub authorization_policies: Vec<AuthorizationPolicy>,
    pub refused_policies: Vec<RefusedPolicy>,
    pub legacy: Vec<LegacyPolicy>,
}

impl Kinds {
    /// Those that are in force already first, the others as they are written.
    pub fn of(chosen: &Chosen) -> Self {
        let mut objects: Vec<&Object> = chosen.objects.values().collect();
        objects.sort_by_key(|object| {
            let origin = &object.meta().origin;
            (!chosen.incumbents.contains(&origin.object), origin.file.clone(), origin.line)
        });
        let mut kinds = Self::default();
        for object in objects.into_iter().cloned() {
            match object {
                Object::WorkloadEntry(object) => kinds.workload_entries.push(object),
                Object::ServiceEntry(object) => kinds.service_entries.push(object),
                Object::NodeWorkload(object) => kinds.node_workloads.push(object),
                Object::PeerAuthentication(object) => kinds.peer_authentications.push(object),
                Object::DestinationRule(object) => kinds.destination_rules.push(object),
                Object::AuthorizationPolicy(object) => kinds.authorization_policies.push(object),
                Object::Legacy(object) => kinds.legacy.push(object),
            }
        }
        kinds
    }

    pub fn take_in_place(&mut self, all: Vec<InPlace>, root_namespace: &str) {
        for instead in all {
            match instead {
                InPlace::Denied(policy) => self.refused_policies.push(policy),
                InPlace::Strict(mut policy) => {
                    if policy.meta.origin.object.starts_with("MeshPolicy ") {
                        policy.meta.namespace = root_namespace.into();
                    }
                    self.peer_authentications.push(policy);
                }
                InPlace::Closed(rule) => self.destination_rules.push(rule),
                InPlace::Unplaced | InPlace::Nothing | InPlace::Unknown => {}
            }
        }
    }
}
