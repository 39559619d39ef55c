//! A status for people: what is wrong first, then tables.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use crate::admin::Status;
use crate::admin::status::{
    FederatedStatus, PolicyStatus, RevocationStatus, SvidStatus, TrustStatus, WorkloadStatus,
};
use crate::cli::table::table;

/// `now` makes certificates' times relative.
pub(super) fn render(status: &Status, now: SystemTime) -> String {
    let mut out = String::new();
    summary(&mut out, status).expect("writing to a String does not fail");
    out.push('\n');
    out.push_str(&section("workloads", workloads(&status.workloads)));
    out.push('\n');
    out.push_str(&section("identities", svids(&status.svids, now)));
    if let Some(trust) = trust(&status.trust, now) {
        out.push('\n');
        out.push_str(&trust);
    }
    if let Some(federation) = federation(&status.federation, now) {
        out.push('\n');
        out.push_str(&federation);
    }
    if let Some(policies) = policies(&status.policies) {
        out.push('\n');
        out.push_str(&policies);
    }
    if !status.kernel.programs.is_empty() || !status.kernel.decisions.is_empty() {
        out.push('\n');
        kernel(&mut out, status);
    }
    out
}

fn summary(out: &mut String, status: &Status) -> std::fmt::Result {
    let Status { node, version, pid, started, .. } = status;
    writeln!(out, "node {node}: mtls-daemon {version}, pid {pid}, since {started}")?;
    if status.ready {
        writeln!(out, "ready")?;
    } else {
        writeln!(out, "NOT READY: awaited: {}", status.awaited.join(", "))?;
    }
    let config = &status.config;
    let (dir, generation) = (config.dir.display(), config.generation);
    writeln!(out, "configuration {dir}: generation {generation}, loaded {}", config.loaded_at)?;
    if let Some(error) = &config.last_error {
        writeln!(out, "  REFUSED since, and not in force: {}", indent(error))?;
    }
    for warning in &config.warnings {
        writeln!(out, "  warning: {}", indent(warning))?;
    }
    for full in &status.kernel.full {
        writeln!(out, "KERNEL TABLE FULL: {full}")?;
    }
    revocation(out, &status.revocation)?;
    let open = status.connections;
    writeln!(out, "open connections: {} in, {} out", open.open_inbound, open.open_outbound)
}

/// Nothing where nobody could tell of any.
fn revocation(out: &mut String, status: &RevocationStatus) -> std::fmt::Result {
    let RevocationStatus { required, max_age_seconds, list, files, problems } = status;
    let age = |seconds: i64| short(Duration::from_secs(seconds.unsigned_abs()));
    if let Some(list) = list {
        let seconds = i64::try_from(list.age_seconds).unwrap_or(i64::MAX);
        let stale = max_age_seconds.is_some_and(|most| list.age_seconds > most);
        let stale = if stale { ": TOO OLD, everybody is refused" } else { "" };
        let (number, entries, old) = (list.number, list.entries, age(seconds));
        writeln!(out, "revocations: the CA's list {number}, entries {entries}, {old} old{stale}")?;
    } else if *required && files.is_empty() {
        writeln!(out, "revocations: NO LIST YET, everybody is refused")?;
    }
    for crl in files {
        let (file, issuer, entries) = (&crl.file, &crl.issuer, crl.entries);
        let end = match crl.seconds_left {
            left @ 1.. => format!("next due in {}", age(left)),
            late => format!("EXPIRED {} ago, its issuer's certificates are refused", age(late)),
        };
        writeln!(out, "revocations: {file}, list of {issuer}, entries {entries}, {end}")?;
    }
    for problem in problems {
        writeln!(out, "  PROBLEM: {}", indent(problem))?;
    }
    Ok(())
}

/// Errors have several lines where several things are wrong.
fn indent(text: &str) -> String {
    text.trim_end().replace('\n', "\n    ")
}

fn section(name: &str, rows: Option<String>) -> String {
    rows.unwrap_or_else(|| format!("no {name}\n"))
}

fn workloads(workloads: &[WorkloadStatus]) -> Option<String> {
    let rows: Vec<_> = workloads
        .iter()
        .map(|workload| {
            [
                workload.workload.clone(),
                workload.state.as_str().to_owned(),
                join(workload.addresses.iter()),
                place(workload),
                workload.identity.clone(),
                workload.reason.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let header = ["WORKLOAD", "STATE", "ADDRESSES", "PLACE", "IDENTITY", "REASON"];
    (!rows.is_empty()).then(|| table(header, &rows))
}

fn place(workload: &WorkloadStatus) -> String {
    match (&workload.network_namespace, &workload.cgroup, workload.cgroup_id) {
        (Some(path), _, _) => path.display().to_string(),
        (None, Some(cgroup), Some(_)) => cgroup.clone(),
        (None, Some(cgroup), None) => format!("{cgroup} (not there)"),
        (None, None, _) => String::new(),
    }
}

fn policies(policies: &[PolicyStatus]) -> Option<String> {
    let rows: Vec<_> = policies
        .iter()
        .map(|policy| {
            let mut action = policy.action.clone();
            if policy.dry_run {
                action.push_str(" (dry run)");
            }
            let note = match &policy.refused {
                Some(reason) => format!("REFUSED, denies what it selects: {reason}"),
                None => policy.differs.join("; "),
            };
            [policy.policy.clone(), action, join(policy.workloads.iter()), note]
        })
        .collect();
    let header = ["AUTHORIZATION POLICY", "ACTION", "WORKLOADS", "NOT AS WRITTEN"];
    (!rows.is_empty()).then(|| table(header, &rows))
}

fn join(items: impl Iterator<Item = impl ToString>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

fn svids(svids: &[SvidStatus], now: SystemTime) -> Option<String> {
    let rows: Vec<_> = svids
        .iter()
        .map(|svid| {
            [
                svid.identity.clone(),
                svid.not_after.as_deref().map_or_else(|| "NONE YET".to_owned(), |it| left(it, now)),
                svid.next_renewal.as_deref().map_or_else(String::new, |it| wait(it, now)),
                svid.serial.clone().unwrap_or_default(),
                svid.source.clone(),
                svid.last_error.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let header = ["IDENTITY", "EXPIRES IN", "RENEWS IN", "SERIAL", "SOURCE", "LAST ERROR"];
    (!rows.is_empty()).then(|| table(header, &rows))
}

/// The CAs of the own trust domain. While a root is replaced, nodes' identities come to it one by one.
fn trust(trust: &TrustStatus, now: SystemTime) -> Option<String> {
    let rows: Vec<_> = trust
        .roots
        .iter()
        .map(|root| {
            [
                root.subject.clone(),
                root.sha256.chars().take(16).collect(),
                root.not_after.as_deref().map_or_else(String::new, |it| left(it, now)),
                format!("{} of {} identities", root.identities, trust.identities),
            ]
        })
        .collect();
    let header = ["TRUSTED ROOT", "SHA-256", "EXPIRES IN", "BELIEVED BY"];
    let mut out = (!rows.is_empty()).then(|| table(header, &rows));
    if let Some(problem) = &trust.problem {
        let problem = format!("  PROBLEM: {}\n", indent(problem));
        out = Some(out.unwrap_or_default() + &problem);
    }
    out
}

fn federation(domains: &[FederatedStatus], now: SystemTime) -> Option<String> {
    let rows: Vec<_> = domains
        .iter()
        .map(|domain| {
            [
                domain.trust_domain.clone(),
                match domain.authorities {
                    0 => "NONE: nobody is believed".to_owned(),
                    some => some.to_string(),
                },
                domain.sequence.map_or_else(String::new, |it| it.to_string()),
                domain.confirmed.as_deref().map_or_else(String::new, |it| age(it, now)),
                domain.origin.clone(),
                domain.last_error.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let header = ["FEDERATED TRUST DOMAIN", "AUTHORITIES", "SEQUENCE", "AGE", "FROM", "LAST ERROR"];
    (!rows.is_empty()).then(|| table(header, &rows))
}

fn age(since: &str, now: SystemTime) -> String {
    match humantime::parse_rfc3339(since).map(|since| now.duration_since(since)) {
        Ok(Ok(age)) => short(age),
        Ok(Err(_)) => short(Duration::ZERO),
        Err(_) => since.to_owned(),
    }
}

/// How long a certificate is still good, for example `11h 59m`.
pub(in crate::cli) fn left(not_after: &str, now: SystemTime) -> String {
    let Ok(not_after) = humantime::parse_rfc3339(not_after) else { return not_after.to_owned() };
    match not_after.duration_since(now) {
        Ok(left) if !left.is_zero() => short(left),
        _ => "EXPIRED".to_owned(),
    }
}

/// How long until then, for example `5h 59m`.
pub(in crate::cli) fn wait(until: &str, now: SystemTime) -> String {
    let Ok(until) = humantime::parse_rfc3339(until) else { return until.to_owned() };
    match until.duration_since(now) {
        Ok(wait) if !wait.is_zero() => short(wait),
        _ => "now".to_owned(),
    }
}

/// The two greatest units.
fn short(time: Duration) -> String {
    let text = humantime::format_duration(Duration::from_secs(time.as_secs())).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

fn kernel(out: &mut String, status: &Status) {
    let pairs = |header, rows: Vec<[String; 2]>| {
        if rows.is_empty() { String::new() } else { table(header, &rows) }
    };
    let instructions = |name: &str| status.kernel.instructions.get(name).map(u32::to_string);
    let programs: Vec<_> = status
        .kernel
        .programs
        .iter()
        .map(|(name, at)| [name.clone(), at.clone(), instructions(name).unwrap_or_default()])
        .collect();
    if !programs.is_empty() {
        out.push_str(&table(["KERNEL PROGRAM", "ATTACHED TO", "VERIFIED INSTRUCTIONS"], &programs));
    }
    if !status.kernel.without.is_empty() {
        let _ = writeln!(out, "done without, on this kernel: {}", status.kernel.without.join(", "));
    }
    let decisions = status.kernel.decisions.iter();
    let decisions = decisions.map(|(name, count)| [name.clone(), count.to_string()]);
    out.push_str(&pairs(["KERNEL DECISION", "CONNECTIONS"], decisions.collect()));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::admin::status::{
        ConfigStatus, ConnectionsStatus, CrlStatus, KernelStatus, RevocationListStatus, RootStatus,
        WorkloadState, timestamp,
    };

    fn status() -> Status {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        Status {
            node: "node-1".into(),
            pid: 42,
            version: "0.1.0".into(),
            started: timestamp(start),
            ready: true,
            awaited: Vec::new(),
            config: ConfigStatus {
                dir: "/etc/mtls-daemon/config.d".into(),
                generation: 3,
                loaded_at: timestamp(start),
                last_error: None,
                refused: Vec::new(),
                warnings: Vec::new(),
            },
            workloads: Vec::new(),
            policies: Vec::new(),
            svids: Vec::new(),
            trust: TrustStatus::default(),
            federation: Vec::new(),
            revocation: RevocationStatus::default(),
            kernel: KernelStatus::default(),
            connections: ConnectionsStatus { open_inbound: 1, open_outbound: 2 },
        }
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    #[test]
    fn an_empty_daemon_says_so() {
        assert_eq!(
            render(&status(), now()),
            "node node-1: mtls-daemon 0.1.0, pid 42, since 2023-11-14T22:13:20Z\n\
             ready\n\
             configuration /etc/mtls-daemon/config.d: generation 3, loaded 2023-11-14T22:13:20Z\n\
             open connections: 1 in, 2 out\n\
             \n\
             no workloads\n\
             \n\
             no identities\n"
        );
    }

    #[test]
    fn what_is_wrong_stands_out() {
        let mut status = status();
        status.ready = false;
        status.awaited = vec!["SVID of full/server".into(), "kernel programs".into()];
        status.config.last_error = Some("a.yaml:3: bad mode\nb.yaml:1: bad kind\n".into());
        status.config.warnings = vec!["c.yaml:2: unknown field spec.x".into()];
        status.kernel.full = vec!["MESH_ADDRESSES is full".into()];
        let text = render(&status, now());
        assert!(text.contains("NOT READY: awaited: SVID of full/server, kernel programs\n"));
        assert!(
            text.contains("  REFUSED since, and not in force: a.yaml:3: bad mode\n    b.yaml:1")
        );
        assert!(text.contains("  warning: c.yaml:2: unknown field spec.x\n"), "{text}");
        assert!(text.contains("\nKERNEL TABLE FULL: MESH_ADDRESSES is full\n"), "{text}");
    }

    #[test]
    fn what_is_known_of_revocations_is_shown_with_its_age() {
        let mut status = status();
        let list = |age_seconds| {
            let issued = timestamp(now());
            Some(RevocationListStatus { number: 7, entries: 2, issued, age_seconds })
        };
        status.revocation.required = true;
        assert!(
            render(&status, now()).contains("revocations: NO LIST YET, everybody is refused\n")
        );
        status.revocation.list = list(4);
        let text = render(&status, now());
        assert!(text.contains("revocations: the CA's list 7, entries 2, 4s old\n"), "{text}");
        status.revocation.max_age_seconds = Some(60);
        status.revocation.list = list(61);
        assert!(render(&status, now()).contains("1m 1s old: TOO OLD, everybody is refused\n"));
        let crl = |seconds_left| CrlStatus {
            file: "/crl/a.pem".into(),
            issuer: "O=test".into(),
            entries: 1,
            this_update: timestamp(now()),
            next_update: timestamp(now()),
            age_seconds: 0,
            seconds_left,
        };
        status.revocation.files = vec![crl(3600), crl(-5)];
        status.revocation.problems = vec!["/crl/b.pem: is no well-formed PEM".into()];
        let text = render(&status, now());
        assert!(text.contains("/crl/a.pem, list of O=test, entries 1, next due in 1h\n"), "{text}");
        assert!(text.contains("EXPIRED 5s ago, its issuer's certificates are refused\n"), "{text}");
        assert!(text.contains("  PROBLEM: /crl/b.pem: is no well-formed PEM\n"), "{text}");
    }

    #[test]
    fn the_trusted_roots_are_shown_with_who_believes_them() {
        let mut status = status();
        let root = |name: &str, identities| RootStatus {
            subject: format!("O={name}"),
            sha256: "0123456789abcdef".repeat(4),
            not_after: Some(timestamp(now() + Duration::from_secs(3600))),
            identities,
        };
        status.trust.identities = 3;
        status.trust.roots = vec![root("old", 3), root("new", 1)];
        status.trust.problem = Some("no space left".into());
        let text = render(&status, now());
        let expected = "
TRUSTED ROOT  SHA-256           EXPIRES IN  BELIEVED BY
O=old         0123456789abcdef  1h          3 of 3 identities
O=new         0123456789abcdef  1h          1 of 3 identities
  PROBLEM: no space left
";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn workloads_identities_and_the_kernel_are_tables() {
        let mut status = status();
        let id = "spiffe://cluster.local/ns/full/sa/server";
        status.workloads = vec![
            WorkloadStatus {
                workload: "full/server".into(),
                identity: id.into(),
                network_namespace: Some("/run/netns/full".into()),
                cgroup: None,
                cgroup_id: None,
                state: WorkloadState::Enrolled,
                reason: None,
                addresses: vec!["10.0.0.2".parse().expect("v4"), "fd00::2".parse().expect("v6")],
                ports: BTreeMap::from([("inbound".into(), 40001)]),
            },
            WorkloadStatus {
                workload: "full/late".into(),
                identity: id.into(),
                network_namespace: Some("/run/netns/late".into()),
                cgroup: None,
                cgroup_id: None,
                state: WorkloadState::Pending,
                reason: Some("no such namespace yet".into()),
                addresses: vec!["10.0.0.3".parse().expect("v4")],
                ports: BTreeMap::new(),
            },
        ];
        let svid = SvidStatus {
            identity: id.into(),
            source: "embedded".into(),
            serial: Some("01ab".into()),
            issuer: None,
            not_before: None,
            not_after: Some(timestamp(now() + Duration::from_secs(12 * 3600 - 1))),
            next_renewal: Some(timestamp(now() + Duration::from_secs(6 * 3600 - 1))),
            last_error: None,
        };
        let expired = SvidStatus {
            not_after: Some(timestamp(now())),
            next_renewal: Some(timestamp(now())),
            ..svid.clone()
        };
        let none = SvidStatus {
            not_after: None,
            next_renewal: None,
            serial: None,
            last_error: Some("CA not reachable".into()),
            ..svid.clone()
        };
        status.svids = vec![svid, expired, none];
        status.kernel.programs.insert("connect4".into(), "/sys/fs/cgroup".into());
        status.kernel.programs.insert("connect6".into(), "/sys/fs/cgroup".into());
        status.kernel.instructions.insert("connect4".into(), 1234);
        status.kernel.decisions.insert("redirected".into(), 7);
        let text = render(&status, now());
        let expected = "\
WORKLOAD     STATE     ADDRESSES         PLACE            IDENTITY                                  REASON
full/server  enrolled  10.0.0.2,fd00::2  /run/netns/full  spiffe://cluster.local/ns/full/sa/server
full/late    pending   10.0.0.3          /run/netns/late  spiffe://cluster.local/ns/full/sa/server  no such namespace yet

IDENTITY                                  EXPIRES IN  RENEWS IN  SERIAL  SOURCE    LAST ERROR
spiffe://cluster.local/ns/full/sa/server  11h 59m     5h 59m     01ab    embedded
spiffe://cluster.local/ns/full/sa/server  EXPIRED     now        01ab    embedded
spiffe://cluster.local/ns/full/sa/server  NONE YET                       embedded  CA not reachable

KERNEL PROGRAM  ATTACHED TO     VERIFIED INSTRUCTIONS
connect4        /sys/fs/cgroup  1234
connect6        /sys/fs/cgroup
KERNEL DECISION  CONNECTIONS
redirected       7
";
        assert!(text.ends_with(expected), "{text}");
    }
}
