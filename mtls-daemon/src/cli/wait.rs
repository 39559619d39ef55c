//! `mtls-daemon wait`: what a unit, or whoever starts a program in a network namespace, runs before the
//! program, and the daemon's unit after the daemon's.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use clap::Args;

use super::Failed;
use super::status::{self, ask};
use crate::admin::Status;
use crate::admin::status::{SvidStatus, WorkloadState, WorkloadStatus};
use crate::config::{NodeArgs, NodePaths};

/// Between two questions. The daemon itself looks for cgroups as often.
const AGAIN: Duration = Duration::from_millis(100);

/// The flags of `mtls-daemon wait`.
#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    #[command(flatten)]
    node: NodeArgs,

    /// Wait for the daemon to be ready, whoever asks, and not for a workload
    #[arg(long)]
    ready: bool,

    /// Give up after so long
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "60s",
        value_parser = humantime::parse_duration
    )]
    timeout: Duration,
}

/// What is waited for.
enum Awaited {
    Ready,
    Workload(Own),
}

/// Which workload this process is.
struct Own {
    /// That of one of these cgroups, the nearest first;
    cgroups: Vec<u64>,
    /// else that of this network namespace, by device and inode. None: it is the host's.
    namespace: Option<(u64, u64)>,
}

impl Own {
    fn find() -> anyhow::Result<Self> {
        let (own, hosts) = (namespace("/proc/self/ns/net")?, namespace("/proc/1/ns/net").ok());
        let namespace = Some(own).filter(|own| hosts != Some(*own));
        let cgroups = match own_cgroups() {
            Err(error) if namespace.is_none() => return Err(error),
            found => found.unwrap_or_default(),
        };
        Ok(Self { cgroups, namespace })
    }

    fn is(&self, workload: &WorkloadStatus) -> bool {
        let path = workload.network_namespace.as_ref();
        self.namespace.is_some() && path.is_some_and(|path| namespace(path).ok() == self.namespace)
    }
}

fn namespace(path: impl AsRef<Path>) -> anyhow::Result<(u64, u64)> {
    let path = path.as_ref();
    let found = path.metadata().with_context(|| format!("cannot look at {}", path.display()))?;
    Ok((found.dev(), found.ino()))
}

pub(super) fn wait(args: WaitArgs) -> Result<(), Failed> {
    let awaited = if args.ready { Awaited::Ready } else { Awaited::Workload(Own::find()?) };
    let whose = match &awaited {
        // A unit need not know what its node is called: its cgroup is one daemon's alone.
        Awaited::Workload(_) if args.node.node.is_none() => Whose::Any(args.node.run_dir),
        _ => Whose::One(NodePaths::try_from(args.node)?.admin_socket),
    };
    let deadline = Instant::now() + args.timeout;
    loop {
        let Err(reason) = whose.ask(&awaited) else { return Ok(()) };
        if Instant::now() >= deadline {
            return Err(reason.context("gave up waiting").into());
        }
        std::thread::sleep(AGAIN);
    }
}

/// The daemons that are asked.
enum Whose {
    One(PathBuf),
    /// All that run with this --run-dir.
    Any(PathBuf),
}

impl Whose {
    fn ask(&self, awaited: &Awaited) -> anyhow::Result<()> {
        let directory = match self {
            Self::One(socket) => return look(socket, awaited),
            Self::Any(directory) => directory,
        };
        let mut reasons = Vec::new();
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let socket = entry.path().join("admin.sock");
            if !socket.exists() {
                continue;
            }
            match look(&socket, awaited) {
                Ok(()) => return Ok(()),
                Err(reason) => reasons.push(format!("{reason:#}")),
            }
        }
        ensure!(
            !reasons.is_empty(),
            "no daemon answers: there is no socket {}/<node>/admin.sock; is `mtls-daemon run` up with the \
             same --run-dir?",
            directory.display()
        );
        reasons.sort();
        bail!(reasons.join("; "))
    }
}

fn look(socket: &Path, awaited: &Awaited) -> anyhow::Result<()> {
    let status = ask::ask(socket, "/status").and_then(|json| status::parse(&json))?;
    match awaited {
        Awaited::Ready => is_ready(&status),
        Awaited::Workload(own) => can_talk(&status, own, SystemTime::now()),
    }
}

fn is_ready(status: &Status) -> anyhow::Result<()> {
    let (node, awaited) = (&status.node, status.awaited.join(", "));
    ensure!(status.ready, "node {node} is not ready: awaited: {awaited}");
    Ok(())
}

/// Whether the workload is enrolled and has a certificate: without one its connections would fail.
fn can_talk(status: &Status, own: &Own, now: SystemTime) -> anyhow::Result<()> {
    let enrolled = || status.workloads.iter().filter(|it| it.state == WorkloadState::Enrolled);
    let of_cgroup = |id: &u64| enrolled().find(|it| it.cgroup_id == Some(*id));
    let workload = own.cgroups.iter().find_map(of_cgroup);
    let Some(WorkloadStatus { workload, identity, .. }) =
        workload.or_else(|| enrolled().find(|it| own.is(it)))
    else {
        let (node, refused) = (&status.node, refused(status));
        bail!(
            "no workload of node {node} is in this process' cgroup or network namespace{refused}"
        );
    };
    let svid = status.svids.iter().find(|svid| svid.identity == *identity);
    if svid.is_some_and(|svid| is_valid(svid, now)) {
        return Ok(());
    }
    let error = svid.and_then(|svid| svid.last_error.as_ref());
    let why = error.map_or_else(String::new, |error| format!(": {error}"));
    bail!("{workload} is enrolled and waits for the certificate of {identity}{why}")
}

fn is_valid(svid: &SvidStatus, now: SystemTime) -> bool {
    let not_after = svid.not_after.as_deref().map(humantime::parse_rfc3339);
    matches!(not_after, Some(Ok(not_after)) if not_after > now)
}

/// Perhaps one of them is why.
fn refused(status: &Status) -> String {
    let workloads = status.workloads.iter();
    workloads
        .filter_map(|workload| {
            Some(format!("; {}: {}", workload.workload, workload.reason.as_ref()?))
        })
        .collect()
}

/// Ids of this process' cgroup and of those above it, but for the root.
fn own_cgroups() -> anyhow::Result<Vec<u64>> {
    let text =
        std::fs::read_to_string("/proc/self/cgroup").context("cannot read /proc/self/cgroup")?;
    let path = unified(&text).context("this process is in no cgroup v2")?;
    let mounts =
        std::fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let root = mount_point(&mounts).context("cgroup v2 is not mounted")?;
    let directory = root.join(path.trim_start_matches('/'));
    let ancestors = directory.ancestors().take_while(|it| *it != root);
    ancestors
        .map(|it| {
            Ok(it.metadata().with_context(|| format!("cannot look at {}", it.display()))?.ino())
        })
        .collect()
}

fn unified(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| Path::new(&point.replace("\\040", " ")).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(not_after: Option<&str>, last_error: Option<&str>) -> Status {
        let workload = |name: &str, id: Option<u64>, reason: Option<&str>| {
            serde_json::json!({
                "workload": format!("metal/{name}"), "identity": format!("spiffe://td/{name}"),
                "network_namespace": null, "cgroup": name, "cgroup_id": id,
                "state": if reason.is_some() { "refused" } else { "enrolled" }, "reason": reason,
                "addresses": [], "ports": {},
            })
        };
        let svid = |name: &str, not_after: Option<&str>, last_error: Option<&str>| {
            serde_json::json!({
                "identity": format!("spiffe://td/{name}"), "source": "files", "serial": null,
                "not_before": null, "not_after": not_after, "last_error": last_error,
            })
        };
        let status = serde_json::json!({
            "node": "vm-1", "pid": 1, "version": "0", "started": "", "ready": false,
            "awaited": ["SVID of metal/web", "the moon"],
            "config": {"dir": "/c", "generation": 1, "loaded_at": "", "last_error": null, "warnings": []},
            "workloads": [
                workload("slice", Some(7), None),
                workload("web", Some(8), None),
                workload("other", None, Some("no address of this host")),
            ],
            "svids": [
                svid("slice", Some("2100-01-01T00:00:00Z"), None),
                svid("web", not_after, last_error),
            ],
            "kernel": {"programs": {}, "decisions": {}},
            "connections": {"open_inbound": 0, "open_outbound": 0},
        });
        serde_json::from_value(status).expect("a status")
    }

    fn error(result: anyhow::Result<()>) -> String {
        result.expect_err("not yet").to_string()
    }

    #[test]
    fn the_nearest_workload_must_have_a_certificate() {
        let now = humantime::parse_rfc3339("2026-01-01T00:00:00Z").expect("a time");
        let own = |cgroups: &[u64]| Own { cgroups: cgroups.to_vec(), namespace: None };
        let (good, past) = (Some("2026-01-01T00:00:01Z"), Some("2026-01-01T00:00:00Z"));
        assert!(can_talk(&status(good, Some("the CA is away")), &own(&[8, 7]), now).is_ok());
        // The one above it has one all the while.
        assert!(can_talk(&status(None, None), &own(&[9, 7]), now).is_ok());
        let waits = "metal/web is enrolled and waits for the certificate of spiffe://td/web";
        assert_eq!(error(can_talk(&status(None, None), &own(&[8, 7]), now)), waits);
        let why = format!("{waits}: the CA is away");
        assert_eq!(error(can_talk(&status(past, Some("the CA is away")), &own(&[8, 7]), now)), why);
        let nobody = error(can_talk(&status(good, None), &own(&[9]), now));
        assert!(
            nobody.contains("of node vm-1 is in this process' cgroup or network namespace"),
            "{nobody}"
        );
        assert!(nobody.ends_with("; metal/other: no address of this host"), "{nobody}");
    }

    #[test]
    fn a_workload_is_known_by_its_network_namespace() {
        let now = humantime::parse_rfc3339("2026-01-01T00:00:00Z").expect("a time");
        let directory = tempfile::tempdir().expect("a directory");
        let (web, other) = (directory.path().join("web"), directory.path().join("other"));
        for file in [&web, &other] {
            std::fs::write(file, "").expect("written");
        }
        let mut status = status(Some("2026-01-01T00:00:01Z"), None);
        status.workloads[1].network_namespace = Some(web.clone());
        status.workloads[1].cgroup_id = None;
        let own = |path| Own { cgroups: vec![9], namespace: Some(namespace(path).expect("there")) };
        assert!(can_talk(&status, &own(&web), now).is_ok());
        assert!(can_talk(&status, &own(&other), now).is_err());
        assert!(can_talk(&status, &Own { cgroups: vec![9], namespace: None }, now).is_err());
        std::fs::remove_file(&web).expect("gone");
        assert!(can_talk(&status, &own(&other), now).is_err());
    }

    #[test]
    fn what_readiness_waits_for_is_said() {
        let mut status = status(None, None);
        let awaited = "node vm-1 is not ready: awaited: SVID of metal/web, the moon";
        assert_eq!(error(is_ready(&status)), awaited);
        status.ready = true;
        assert!(is_ready(&status).is_ok());
    }

    #[test]
    fn without_a_daemon_the_directory_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path().to_path_buf();
        let nobody = error(Whose::Any(place.clone()).ask(&Awaited::Ready));
        assert!(nobody.contains(&format!("{}/<node>/admin.sock", place.display())), "{nobody}");
        let socket = place.join("vm-1").join("admin.sock");
        std::fs::create_dir(place.join("vm-1")).expect("made");
        drop(std::os::unix::net::UnixListener::bind(&socket).expect("bound"));
        let dead = error(Whose::Any(place).ask(&Awaited::Ready));
        assert!(dead.contains(&socket.display().to_string()), "{dead}");
    }

    #[test]
    fn the_unified_hierarchy_is_found_among_others() {
        let text = "9:name=systemd:/a\n0::/system.slice/web.service\n";
        assert_eq!(unified(text), Some("/system.slice/web.service"));
        assert_eq!(unified("9:cpu:/a\n"), None);
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mount_point(mounts), Some("/sys/fs/cgroup/unified".into()));
    }
}
