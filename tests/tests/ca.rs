//! A CA for many nodes: its root is replaced under load, and it may be away for a while.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mtls_tests::client::{self, converse, ping};
use mtls_tests::daemon::Daemon;
use mtls_tests::demo::SLEEP;
use mtls_tests::process::{Process, bound, sibling};
use mtls_tests::wait::{patience, until};
use mtls_tests::world::To;
use mtls_tests::{Ca, Pod, World};
use nix::sys::signal::Signal;
use serde_json::Value;

const PORT: u16 = 9000;
const IDENTITIES: [&str; 3] = ["full/sleep", "full/httpbin", "partial/httpbin"];
const SOON: Duration = Duration::from_secs(60);

/// Two nodes that joined one CA, an echo server, and certificates that live for a few seconds.
fn world(lifetime: Duration) -> Result<(World, Ca)> {
    let mut world = World::without_daemons(&[Ca::pod(0)])?;
    let lifetime = format!("{}s", patience(lifetime).as_secs());
    let ca = Ca::start(&world.bed, &["--default-lifetime", &lifetime])?;
    world.mesh.mode("full", "httpbin", "STRICT");
    world.start(|spec| {
        ca.joined(spec, &IDENTITIES).with("--svid-lifetime", &lifetime).with("--ca-poll", "1s")
    })?;
    world.serve("httpbin-full", "echo", PORT)?;
    Ok((world, ca))
}

/// How many roots the node's identities trust, every one of them each.
fn trusted(daemon: &Daemon) -> Result<usize> {
    let trust = &daemon.status()?["trust"];
    let roots = trust["roots"].as_array().context("roots")?;
    ensure!(roots.iter().all(|root| root["identities"] == trust["identities"]), "{trust}");
    Ok(roots.len())
}

fn serials(world: &World) -> Result<Vec<String>> {
    let mut serials = Vec::new();
    for daemon in [world.a(), world.b()] {
        let status = daemon.status()?;
        for svid in status["svids"].as_array().context("svids")? {
            serials.push(svid["serial"].as_str().context("a serial")?.to_owned());
        }
    }
    Ok(serials)
}

/// Both nodes trust so many roots, and every SVID is of a later day than `before`.
fn observed(world: &World, roots: usize, before: &[String]) -> Result<()> {
    until(SOON, &format!("both nodes to trust {roots} and to renew"), || {
        let now = serials(world).map_err(|error| format!("{error:#}"))?;
        let trust = [world.a(), world.b()].map(|daemon| trusted(daemon).unwrap_or_default());
        match trust == [roots; 2] && !now.iter().any(|serial| before.contains(serial)) {
            true => Ok(()),
            false => Err(format!("they trust {trust:?}; {before:?}, now {now:?}")),
        }
    })
}

/// A step of the rotation without `--force`: the CA says how long it still has to wait.
fn step(ca: &Ca, verb: &str) -> Result<()> {
    until(SOON, &format!("ca root {verb}"), || match ca.command(&["root", verb]) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{error:#}")),
    })
}

/// Requests, one after the other, until told to end; how many there were. The first that fails ends it.
fn load(pod: &Pod, end: &AtomicBool, count: &AtomicUsize) -> Result<()> {
    pod.inside(|| {
        while !end.load(Ordering::Relaxed) {
            let talk = converse(To::Full.v4(PORT), "canary under load")?;
            let number = count.fetch_add(1, Ordering::Relaxed);
            ensure!(talk.worked(), "request {number}: {talk:?}");
        }
        Ok(())
    })
}

#[test]
fn a_root_is_replaced_in_three_steps_and_no_request_fails() -> Result<()> {
    let (world, ca) = world(Duration::from_secs(8))?;
    let client = world.pod("sleep-full");
    let mut open = client.inside(|| client::connect(To::Full.v4(PORT)))?;
    ping(&mut open, "from before")?;
    let old = ca.command(&["root", "show"])?;

    let (end, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let loading = scope.spawn(|| load(client, &end, &count));
        let rotated = (|| -> Result<()> {
            let before = serials(&world)?;
            ca.command(&["root", "prepare"])?;
            observed(&world, 2, &before)?;
            step(&ca, "switch")?;
            let before = serials(&world)?;
            observed(&world, 2, &before)?;
            step(&ca, "retire")?;
            let before = serials(&world)?;
            observed(&world, 1, &before)
        })();
        // A while on the new root alone.
        thread::sleep(Duration::from_secs(2));
        end.store(true, Ordering::Relaxed);
        let loaded = loading.join().map_err(|_| anyhow::anyhow!("the load panicked"))?;
        rotated.and(loaded)
    })?;
    ensure!(count.load(Ordering::Relaxed) > 20, "{count:?} requests are no load");
    ping(&mut open, "and it is still open")?;

    let new = ca.command(&["root", "show"])?;
    ensure!(new != old && new.matches("BEGIN CERTIFICATE").count() == 1, "{new}");
    for daemon in [world.a(), world.b()] {
        let lines = daemon.process.stdout.json_after(0);
        let failed: Vec<&Value> = lines.iter().filter(|line| line["outcome"] != "ok").collect();
        ensure!(failed.is_empty(), "{failed:?}");
    }
    Ok(())
}

/// `ca root rotate`, which goes on by itself.
fn rotate(ca: &Ca) -> Result<Process> {
    let mut command = bound(sibling("mtls-daemon", "MTLS_DAEMON_BIN")?);
    command.args(["ca", "root", "rotate", "--dir"]).arg(&ca.directory);
    Process::start("ca root rotate", command)
}

#[test]
fn one_command_replaces_the_root_and_goes_on_where_it_was_ended() -> Result<()> {
    let (world, ca) = world(Duration::from_secs(8))?;
    let client = world.pod("sleep-full");
    let old = ca.command(&["root", "show"])?;
    let (end, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let loading = scope.spawn(|| load(client, &end, &count));
        let rotated = (|| -> Result<()> {
            let mut first = rotate(&ca)?;
            let waits = |line: &str| line.starts_with("waits ").then_some(());
            first.stdout.find_after(0, SOON, "that it waits", waits)?;
            // Not SIGINT, which background jobs of a shell ignore.
            first.signal(Signal::SIGTERM)?;
            ensure!(!first.wait(SOON)?.success(), "it was not at its end");
            let phases = ca.command(&["root", "show", "--phases"])?;
            ensure!(phases.contains("signs next"), "{phases}");

            let mut second = rotate(&ca)?;
            let status = second.wait(SOON)?;
            ensure!(status.success(), "{status}: {:?}", second.stderr.all());
            let goes_on = |line: &str| line.contains("it goes on").then_some(());
            second.stdout.find_after(0, SOON, "that it goes on", goes_on)?;
            let before = serials(&world)?;
            observed(&world, 1, &before)
        })();
        end.store(true, Ordering::Relaxed);
        let loaded = loading.join().map_err(|_| anyhow::anyhow!("the load panicked"))?;
        rotated.and(loaded)
    })?;
    let new = ca.command(&["root", "show"])?;
    ensure!(new != old && new.matches("BEGIN CERTIFICATE").count() == 1, "{new}");
    Ok(())
}

#[test]
fn a_ca_that_is_away_breaks_nothing_until_certificates_end_and_is_said_before() -> Result<()> {
    let lifetime = Duration::from_secs(12);
    let (world, mut ca) = world(lifetime)?;
    let works = || -> Result<bool> {
        let client = world.pod("sleep-full");
        Ok(client.inside(|| converse(To::Full.v4(PORT), "hello"))?.worked())
    };
    ensure!(works()?, "with the CA");
    ca.stop()?;
    let away = Instant::now();
    let said =
        |what: &str| world.a().said(0, what, |line| line.contains(what) && line.contains(SLEEP));
    let unreachable = "reason=\"unreachable\"";
    until(SOON, "a renewal that fails", || {
        match world.a().metric("mtls_svid_failures_total", &[unreachable]) {
            Ok(count) if count > 0.0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    ensure!(works()?, "a CA that is away breaks nothing");
    let status = world.a().status()?;
    let error = status["svids"][0]["last_error"].as_str().unwrap_or_default();
    ensure!(error.contains(&ca.address.to_string()), "{status}");
    said("the SVID expires soon, and there is no new one")?;
    said("the SVID has expired: connections as this identity are refused")?;
    let mark = world.a().mark();
    ensure!(!works()?, "an expired certificate");
    let line = world.a().logged(mark, "the refusal", |line| line["outcome"] == "no_identity")?;
    ensure!(line["detail"].as_str().is_some_and(|it| it.contains(SLEEP)), "{line}");
    ensure!(world.a().reported("mtls_svid_expiry_seconds", &[SLEEP])? <= 0.0, "it has ended");

    let own = format!("spiffe://cluster.local/node/{}", world.a().spec.name);
    world.a().said(0, "the node's own", |line| {
        line.contains("the node's own SVID expires soon") && line.contains(&own)
    })?;
    let shown = world.a().status()?["svids"]
        .as_array()
        .context("svids")?
        .iter()
        .any(|svid| svid["identity"] == own.as_str() && svid["last_error"].is_string());
    ensure!(shown, "a row for {own}");
    world.a().reported("mtls_svid_expiry_seconds", &[&own])?;

    // The nodes' own certificates, which live as long here, are to end as well.
    thread::sleep(patience(lifetime).saturating_sub(away.elapsed()) + Duration::from_secs(1));
    ca.restart()?;
    said("a new token in")?;
    for daemon in [world.a(), world.b()] {
        ca.renew_token(&daemon.spec, &IDENTITIES)?;
    }
    until(SOON, "the nodes to recover", || match works() {
        Ok(true) => Ok(()),
        other => Err(format!("{other:?}")),
    })
}
