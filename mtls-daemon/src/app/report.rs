//! What the daemon's parts know, in the words of `status`.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::admin::status::{
    PolicyStatus, RefusedStatus, SvidStatus, WorkloadState, WorkloadStatus, timestamp as shown,
};
use crate::mesh::{Place, Snapshot};
use crate::node;
use crate::policy::authz::InForce;
use crate::policy::error::{Code, ConfigError};

pub fn workload(workload: node::WorkloadStatus) -> WorkloadStatus {
    let (state, reason) = match workload.state {
        node::WorkloadState::Enrolled => (WorkloadState::Enrolled, None),
        node::WorkloadState::Pending(reason) => (WorkloadState::Pending, Some(reason)),
        node::WorkloadState::Refused(reason) => (WorkloadState::Refused, Some(reason)),
    };
    let ports = [("outbound", workload.outbound_port), ("inbound", workload.inbound_port)];
    let (network_namespace, cgroup) = match workload.place {
        Place::Namespace(path) => (Some(path), None),
        Place::Host(cgroup) => (None, Some(cgroup.to_string())),
    };
    WorkloadStatus {
        workload: workload.workload,
        identity: workload.identity.to_string(),
        network_namespace,
        cgroup,
        cgroup_id: workload.cgroup_id,
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
        issuer: svid.issuer,
        not_before: timestamp(svid.not_before),
        not_after: timestamp(svid.not_after),
        next_renewal: timestamp(svid.next_renewal),
        last_error: svid.last_error,
    }
}

/// Why objects were refused, each reason with what is in force in their place.
pub fn refused(errors: &[ConfigError]) -> Vec<RefusedStatus> {
    let (instead, reasons): (Vec<&ConfigError>, Vec<&ConfigError>) =
        errors.iter().partition(|error| error.code == Code::Refused);
    // Before an object's name is known its kind alone is said, and its line for what stands in.
    let same = |instead: &ConfigError, error: &ConfigError| {
        let unnamed = || {
            let (object, kind) = (&*instead.object, &*error.object);
            !kind.contains(' ') && object.starts_with(kind) && object.contains(" at ")
        };
        instead.file == error.file && (instead.object == error.object || unnamed())
    };
    // Of several such objects in one file, the one that the line is in.
    let of = |error: &ConfigError| {
        let its = instead.iter().filter(|instead| same(instead, error));
        its.filter(|instead| instead.line <= error.line).max_by_key(|instead| instead.line)
    };
    let explained = reasons.iter().map(|error| {
        // A file, or all of the configuration: each object that is affected is told besides.
        let unchanged = "the objects that were in it before";
        refusal(error, of(error).map_or(unchanged, |found| &found.reason))
    });
    // Nothing is wrong with the object itself: where it was can no longer be read.
    let alone = instead.iter().filter(|found| !reasons.iter().any(|error| same(error, found)));
    let alone = alone.map(|found| refusal(found, &found.reason));
    explained.chain(alone).collect()
}

fn refusal(error: &ConfigError, instead: &str) -> RefusedStatus {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    // `Kind namespace/name`, with ` of group` for a namesake; `Kind at FILE:LINE` without a name.
    let mut words = error.object.split(' ');
    let kind = words.next().and_then(some);
    let place = words.next().and_then(|name| name.split_once('/'));
    RefusedStatus {
        kind,
        namespace: place.map(|(namespace, _)| namespace.to_owned()),
        name: place.map(|(_, name)| name.to_owned()),
        file: error.file.to_string(),
        line: (error.line > 0).then_some(error.line),
        field: some(&error.field),
        code: error.code.as_str().to_owned(),
        message: error.reason.clone(),
        instead: instead.to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::error::Origin;

    fn origin(file: &str, line: u32, object: &str) -> Origin {
        Origin { file: file.into(), line, object: object.into() }
    }

    #[test]
    fn each_reason_comes_with_what_is_in_force_instead() {
        let first = origin("a.yaml", 3, "PeerAuthentication full/default");
        let second = origin("a.yaml", 20, "PeerAuthentication full/default");
        let gone = origin("b.yaml", 1, "AuthorizationPolicy full/deny");
        let mut mode = first.error("spec.mtls.mode", Code::FieldValue, "\"X\" is no mode");
        mode.line = 6;
        let file = origin("c.yaml", 0, "").error("", Code::FileRead, "permission denied");
        let unnamed = origin("d.yaml", 2, "DestinationRule at d.yaml:2");
        let no_name = unnamed.error("metadata.name", Code::FieldType, "no text");
        let errors = [
            mode,
            first.error("", Code::Refused, "STRICT"),
            second.error("metadata.name", Code::ObjectDuplicate, "is there twice"),
            second.error("", Code::Refused, "also STRICT"),
            gone.error("", Code::Refused, "stays in force"),
            file,
            ConfigError { object: "DestinationRule".into(), line: 4, ..no_name },
            unnamed.error("", Code::Refused, "closed"),
        ];
        let found = refused(&errors);
        let short: Vec<String> = found
            .iter()
            .map(|one| {
                let name = |part: &Option<String>| part.clone().unwrap_or_else(|| "-".into());
                let (kind, namespace) = (name(&one.kind), name(&one.namespace));
                let line = one.line.map_or_else(|| "-".into(), |line| line.to_string());
                let place = format!("{}:{line}", one.file);
                let (field, instead) = (name(&one.field), &one.instead);
                format!(
                    "{kind} {namespace} {} {place} {field} {} -> {instead}",
                    name(&one.name),
                    one.code
                )
            })
            .collect();
        assert_eq!(
            short,
            [
                "PeerAuthentication full default a.yaml:6 spec.mtls.mode E_FIELD_VALUE -> STRICT",
                "PeerAuthentication full default a.yaml:20 metadata.name E_OBJECT_DUPLICATE -> also STRICT",
                "- - - c.yaml:- - E_FILE_READ -> the objects that were in it before",
                "DestinationRule - - d.yaml:4 metadata.name E_FIELD_TYPE -> closed",
                "AuthorizationPolicy full deny b.yaml:1 - E_REFUSED -> stays in force",
            ]
        );
        assert_eq!(found[0].message, "\"X\" is no mode");
    }
}
