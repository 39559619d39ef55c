//! Legacy policies name services: which workloads and ports those are (policy.md 1.13).

use std::collections::BTreeSet;

use super::MeshSettings;
use super::service_entry::ServiceEntry;
use super::workload_entry::WorkloadEntry;
use crate::policy::PeerAuthentication;
use crate::policy::effective::selects;
use crate::policy::error::{Code, ConfigError};
use crate::policy::legacy::{LegacyPolicy, Resolved, ServicePortName, Target};

/// Adds what `policies` mean to `authentications`; what cannot be resolved is STRICT for its scope.
pub(super) fn convert(
    policies: Vec<LegacyPolicy>,
    services: &[ServiceEntry],
    entries: &[WorkloadEntry],
    settings: &MeshSettings,
    authentications: &mut Vec<PeerAuthentication>,
    errors: &mut Vec<ConfigError>,
) {
    for policy in policies {
        let namespace = policy.meta.namespace.clone();
        let converted = policy.convert(&settings.root_namespace, |target| {
            let named = |service: &&ServiceEntry| {
                service.meta.namespace == namespace
                    && (service.meta.name == target.name
                        || service.hosts.iter().any(|h| h.split('.').next() == Some(&*target.name)))
            };
            let service = services.iter().find(named).ok_or_else(|| {
                format!("there is no ServiceEntry for {namespace}/{}", target.name)
            })?;
            resolve(target, service, entries)
        });
        match converted {
            Ok(objects) => authentications.extend(objects),
            Err((field, reason)) => {
                let reason = format!("{reason}; until there is, its namespace is STRICT");
                errors.push(policy.meta.origin.error(&field, Code::Reference, reason));
                authentications.push(policy.into_refused());
            }
        }
    }
}

fn resolve(
    target: &Target,
    service: &ServiceEntry,
    entries: &[WorkloadEntry],
) -> Result<Resolved, String> {
    let place = service.meta.origin.place();
    let Some(selector) = &service.selector else {
        return Err(format!(
            "{place} has no workloadSelector, so it selects no workload by labels"
        ));
    };
    let mut ports = BTreeSet::new();
    for wanted in &target.ports {
        let port = service
            .ports
            .iter()
            .find(|port| match wanted {
                ServicePortName::Number(number) => port.number == *number,
                ServicePortName::Name(name) => port.name == *name,
            })
            .ok_or_else(|| format!("{place} has no port {wanted}"))?;
        // Each workload may have the port under a number of its own.
        ports.insert(port.target_port.unwrap_or(port.number));
        let selected = entries
            .iter()
            .filter(|e| e.meta.namespace == service.meta.namespace && selects(selector, &e.labels));
        ports.extend(selected.filter_map(|entry| entry.ports.get(&*port.name)));
    }
    Ok(Resolved { selector: selector.clone(), ports: ports.into_iter().collect() })
}
