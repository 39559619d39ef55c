//! What the daemon's parts know, in the words of `status`.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::admin::status::{
    CrlStatus, FederatedStatus, PolicyStatus, RevocationListStatus, RevocationStatus, SvidStatus,
    WorkloadState, WorkloadStatus, timestamp as shown,
};
use crate::mesh::Snapshot;
use crate::node;
use crate::policy::authz::InForce;
use crate::telemetry::metrics::ListMetrics;
use crate::tls::Checks;
use crate::tls::revocation::CrlFacts;

pub fn workload(workload: node::WorkloadStatus) -> WorkloadStatus {
    let (state, reason) = match workload.state {
        node::WorkloadState::Enrolled => (WorkloadState::Enrolled, None),
        node::WorkloadState::Pending(reason) => (WorkloadState::Pending, Some(reason)),
        node::WorkloadState::Refused(reason) => (WorkloadState::Refused, Some(reason)),
    };
    let ports = [("outbound", workload.outbound_port), ("inbound", workload.inbound_port)];
    WorkloadStatus {
        workload: workload.workload,
        identity: workload.identity.to_string(),
        network_namespace: workload.network_namespace,
        state,
        reason,
        addresses: workload.addresses,
        ports: ports
            .into_iter()
            .filter_map(|(name, port)| Some((name.to_owned(), port?)))
            .collect(),
    }
}

pub fn svid(svid: crate::identity::SvidStatus) -> SvidStatus {
    let timestamp = |time: Option<SystemTime>| time.map(shown);
    SvidStatus {
        identity: svid.id.to_string(),
        source: svid.source.to_owned(),
        serial: svid.serial,
        not_before: timestamp(svid.not_before),
        not_after: timestamp(svid.not_after),
        next_renewal: timestamp(svid.next_renewal),
        last_error: svid.last_error,
    }
}

pub fn federated(domain: crate::identity::federation::FederatedStatus) -> FederatedStatus {
    FederatedStatus {
        trust_domain: domain.trust_domain.to_string(),
        origin: domain.origin,
        authorities: domain.authorities,
        sequence: domain.sequence,
        confirmed: domain.confirmed.map(shown),
        last_error: domain.last_error,
    }
}

/// What is known of revoked certificates.
pub fn revocation(checks: &Checks, now: SystemTime) -> RevocationStatus {
    let rules = checks.list().rules();
    let list = checks.list().current().map(|list| RevocationListStatus {
        number: list.number(),
        entries: list.entries(),
        issued: shown(list.issued()),
        age_seconds: list.age(now).as_secs(),
    });
    let file = |facts: CrlFacts| CrlStatus {
        file: facts.file.to_string(),
        issuer: facts.issuer.to_string(),
        entries: facts.entries,
        this_update: shown(facts.this_update),
        next_update: shown(facts.next_update),
        age_seconds: seconds_between(facts.this_update, now),
        seconds_left: seconds_between(now, facts.next_update),
    };
    let crls = checks.crls();
    RevocationStatus {
        required: checks.list().is_required(),
        max_age_seconds: rules.max_age.map(|age| age.as_secs()),
        list,
        files: crls.map(|it| it.facts().into_iter().map(file).collect()).unwrap_or_default(),
        problems: crls.map(|it| it.problems()).unwrap_or_default(),
    }
}

/// The same for metrics.
pub fn revocation_lists(status: &RevocationStatus) -> Vec<ListMetrics> {
    let ca = status.list.as_ref().map(|list| ListMetrics {
        list: "ca".to_owned(),
        age: i64::try_from(list.age_seconds).unwrap_or(i64::MAX),
        entries: list.entries,
        left: None,
    });
    let files = status.files.iter().map(|crl| ListMetrics {
        list: crl.file.clone(),
        age: crl.age_seconds,
        entries: crl.entries,
        left: Some(crl.seconds_left),
    });
    ca.into_iter().chain(files).collect()
}

/// Negative: `to` is earlier.
fn seconds_between(from: SystemTime, to: SystemTime) -> i64 {
    let seconds = |time: std::time::Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    match to.duration_since(from) {
        Ok(time) => seconds(time),
        Err(error) => -seconds(error.duration()),
    }
}

/// The AuthorizationPolicy objects that select a workload of this node, by name.
pub fn policies(snapshot: &Snapshot) -> Vec<PolicyStatus> {
    let mut found: BTreeMap<String, PolicyStatus> = BTreeMap::new();
    for here in snapshot.node_workloads() {
        // Which policies select a workload does not depend on the port.
        let authorization = snapshot.inbound(&here.workload, 0).authorization;
        for policy in authorization.policies() {
            let entry = found.entry(policy.object.to_string()).or_insert_with(|| status(&policy));
            entry.workloads.push(format!("{}/{}", here.namespace, here.name));
        }
    }
    found.into_values().collect()
}

fn status(policy: &InForce<'_>) -> PolicyStatus {
    let name = policy.object.strip_prefix("AuthorizationPolicy ").unwrap_or(policy.object);
    PolicyStatus {
        policy: name.to_owned(),
        action: policy.action.to_string(),
        dry_run: policy.dry_run,
        refused: policy.refused.map(ToString::to_string),
        differs: policy.differences.iter().map(ToString::to_string).collect(),
        workloads: Vec::new(),
    }
}
