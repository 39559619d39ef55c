//! A host where cgroup v2 is not mounted: the daemon brings its own.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use mtls_tests::client::converse;
use mtls_tests::daemon::Daemon;
use mtls_tests::process::Process;
use mtls_tests::world::{To, serve};
use mtls_tests::{Capture, DaemonSpec, World, cgroup};

const PORT: u16 = 9000;

/// The daemon's command, started where cgroup v2 has been taken out of the mount table.
fn without_cgroup(spec: &DaemonSpec, mounted: &std::path::Path) -> Result<Process> {
    let inner = spec.command()?;
    let mut command = spec.node.place.command("unshare")?;
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.arg("umount -l \"$0\" && exec \"$@\"").arg(mounted);
    // The command is `mtls-testbed exec ... -- mtls-daemon ...`: what follows the dashes is wanted,
    // as this process is already in its place.
    let dashes = inner.get_args().position(|word| word == "--").context("a launcher's command")?;
    command.args(inner.get_args().skip(dashes + 1));
    Process::start(format!("mtls-daemon of {} without cgroup v2", spec.name), command)
}

#[test]
fn interception_works_and_outlives_the_daemon() -> Result<()> {
    let mounted = cgroup::root().context("this test takes cgroup v2 away: it must be mounted")?;
    let mut world = World::without_daemons(&[])?;
    world.mesh.write()?;
    world.daemons.push(DaemonSpec::new(&world.bed, 0).spawn()?);
    world.daemons.push(DaemonSpec::new(&world.bed, 1).start()?);
    world.daemons[0].ready()?;
    world.daemons[0].kill9()?;
    world.daemons[0].cleanup()?;
    let process = without_cgroup(&world.daemons[0].spec, &mounted)?;
    world.daemons[0].process = process;
    Daemon::ready(&mut world.daemons[0])?;

    let _echo = serve(world.pod("httpbin-full"), "echo", PORT)?;
    let capture = Capture::start(world.node(0))?;
    let client = world.pod("sleep-full").clone();
    let talk = client.inside(|| converse(To::Full.v4(PORT), "canary-own-cgroup"))?;
    ensure!(talk.worked(), "{talk:?}");
    ensure!(!capture.saw("canary-own-cgroup")?);
    // Its mounts were private or they were not: what is pinned must outlive it either way.
    world.daemons[0].kill9()?;
    let server = world.pod("httpbin-full").v4(PORT);
    let talk = client.inside(|| converse(server, "canary-after-death"))?;
    ensure!(!talk.worked(), "fail-closed died with the daemon: {talk:?}");
    ensure!(!capture.saw("canary-after-death")?);
    Ok(())
}
