//! What the daemon's parts know, in the words of `status`.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::admin::status::{
    CrlStatus, FederatedStatus, PolicyStatus, RefusedStatus, RevocationListStatus,
    RevocationStatus, RootStatus, SvidStatus, TrustStatus, WorkloadState, WorkloadStatus,
    timestamp as shown,
};
use crate::identity::TrustDomain;
use crate::mesh::{Place, Snapshot};
use crate::node;
use crate::policy::authz::InForce;
use crate::policy::error::{Code, ConfigError};
use crate::telemetry::metrics::ListMetrics;
use crate::tls::Checks;
use crate::tls::revocation::CrlFacts;

pub fn workload(workload: node::WorkloadStatus) -> WorkloadStatus {
    let (state, reason) = match workload.state {
        node::WorkloadState::Enrolled => (WorkloadState::Enrolled, workload.cgroup_refused),
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

/// Nothing of a configuration came into force.
pub fn all_refused(errors: &[ConfigError]) -> Vec<RefusedStatus> {
    let wrong = errors.iter().filter(|error| error.code != Code::Refused);
    wrong.map(|error| refusal(error, "the whole configuration before this one")).collect()
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
        // Without a word about it the object is in force, closed where the reason says so.
        let unchanged = match error.object.contains(' ') {
            true => "the object itself, as the message says",
            false => "the objects that were in it before",
        };
        refusal(error, of(error).map_or(unchanged, |found| &found.reason))
    });
    // Nothing is wrong with the object itself: where it was can no longer be read.
    let alone = instead.iter().filter(|found| !reasons.iter().any(|error| same(found, error)));
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

pub fn trust(trust: crate::identity::trust::TrustStatus, domain: &TrustDomain) -> TrustStatus {
    let root = |root: crate::identity::trust::RootStatus| RootStatus {
        subject: root.subject,
        sha256: root.sha256,
        not_after: root.not_after.map(shown),
        identities: root.identities,
    };
    TrustStatus {
        trust_domain: domain.to_string(),
        identities: trust.identities,
        roots: trust.roots.into_iter().map(root).collect(),
        problem: trust.trouble,
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
    let of_files = crls.map(|it| it.problems()).unwrap_or_default();
    let of_files = of_files.iter().map(|it| format!("{it}; what was read before stays in force"));
    RevocationStatus {
        required: checks.list().is_required(),
        max_age_seconds: rules.max_age.map(|age| age.as_secs()),
        list,
        files: crls.map(|it| it.facts().into_iter().map(file).collect()).unwrap_or_default(),
        problems: checks.list().troubles().into_iter().chain(of_files).collect(),
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
    // A file has one series and may have several lists: the oldest, and the first that ends.
    let mut files: BTreeMap<&str, ListMetrics> = BTreeMap::new();
    for crl in &status.files {
        let file = files.entry(&crl.file).or_insert_with(|| ListMetrics {
            list: crl.file.clone(),
            age: crl.age_seconds,
            entries: 0,
            left: Some(crl.seconds_left),
        });
        file.age = file.age.max(crl.age_seconds);
        file.entries += crl.entries;
        file.left = file.left.min(Some(crl.seconds_left));
    }
    ca.into_iter().chain(files.into_values()).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::error::Origin;

    fn origin(file: &str, line: u32, object: &str) -> Origin {
        Origin { file: file.into(), line, object: object.into() }
    }

    #[test]
    fn a_file_of_several_lists_is_as_old_as_its_oldest_and_ends_with_its_first() {
        let crl = |age_seconds, seconds_left, entries| CrlStatus {
            file: "/etc/crls.pem".to_owned(),
            issuer: "CN=a".to_owned(),
            entries,
            this_update: String::new(),
            next_update: String::new(),
            age_seconds,
            seconds_left,
        };
        let lists = [crl(5, 60, 2), crl(7, 4000, 1)];
        let [first, second] = lists.clone();
        for files in [vec![first, second], lists.into_iter().rev().collect()] {
            let status = RevocationStatus { files, ..RevocationStatus::default() };
            let folded = ListMetrics {
                list: "/etc/crls.pem".to_owned(),
                age: 7,
                entries: 3,
                left: Some(60),
            };
            assert_eq!(revocation_lists(&status), [folded]);
        }
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
        let custom = origin("e.yaml", 1, "AuthorizationPolicy full/ask");
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
            custom.error("spec.action", Code::Unsupported, "is denied"),
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
                "AuthorizationPolicy full ask e.yaml:1 spec.action E_UNSUPPORTED -> the object itself, as the message says",
                "AuthorizationPolicy full deny b.yaml:1 - E_REFUSED -> stays in force",
            ]
        );
        assert_eq!(found[0].message, "\"X\" is no mode");
    }
}
