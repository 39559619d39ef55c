//! `mtls-daemon wait`: what a unit runs before its own program.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::Args;

use super::Failed;
use super::status::{self, ask};
use crate::admin::Status;
use crate::admin::status::WorkloadState;
use crate::config::{NodeArgs, NodePaths};

/// Between two questions. The daemon itself looks for cgroups as often.
const AGAIN: Duration = Duration::from_millis(100);

/// The flags of `mtls-daemon wait`.
#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    #[command(flatten)]
    node: NodeArgs,

    /// Give up after so long
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "60s",
        value_parser = humantime::parse_duration
    )]
    timeout: Duration,
}

pub(super) fn wait(args: WaitArgs) -> Result<(), Failed> {
    let paths = NodePaths::try_from(args.node)?;
    let own = own_cgroups()?;
    let deadline = Instant::now() + args.timeout;
    loop {
        let answer = ask::ask(&paths.admin_socket, "/status").and_then(|json| status::parse(&json));
        let reason = match answer {
            Ok(status) if is_enrolled(&status, &own) => return Ok(()),
            Ok(status) => anyhow!(
                "no workload of node {} is in this process' cgroup{}",
                status.node,
                refused(&status)
            ),
            Err(error) => error,
        };
        if Instant::now() >= deadline {
            return Err(reason.context("gave up waiting").into());
        }
        std::thread::sleep(AGAIN);
    }
}

fn is_enrolled(status: &Status, own: &HashSet<u64>) -> bool {
    status.workloads.iter().any(|workload| {
        workload.state == WorkloadState::Enrolled
            && workload.cgroup_id.is_some_and(|id| own.contains(&id))
    })
}

/// Perhaps one of them is why.
fn refused(status: &Status) -> String {
    let on_host = status.workloads.iter().filter(|workload| workload.cgroup.is_some());
    on_host
        .filter_map(|workload| {
            Some(format!("; {}: {}", workload.workload, workload.reason.as_ref()?))
        })
        .collect()
}

/// Ids of this process' cgroup and of those above it, but for the root.
fn own_cgroups() -> anyhow::Result<HashSet<u64>> {
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

    #[test]
    fn the_unified_hierarchy_is_found_among_others() {
        let text = "9:name=systemd:/a\n0::/system.slice/web.service\n";
        assert_eq!(unified(text), Some("/system.slice/web.service"));
        assert_eq!(unified("9:cpu:/a\n"), None);
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mount_point(mounts), Some("/sys/fs/cgroup/unified".into()));
    }
}
