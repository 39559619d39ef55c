//! Identities are renewed while traffic flows, and nobody notices.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mtls_tests::client::{self, converse, ping};
use mtls_tests::daemon::Daemon;
use mtls_tests::demo::SLEEP;
use mtls_tests::wait::patience;
use mtls_tests::world::{To, serve};
use mtls_tests::{Capture, World};

const PORT: u16 = 9000;
const HTTPBIN: &str = "spiffe://cluster.local/ns/full/sa/httpbin";
/// Renewed at about half of it.
fn lifetime() -> Duration {
    patience(Duration::from_secs(5))
}

fn serial(daemon: &Daemon, identity: &str) -> Result<String> {
    let status = daemon.status()?;
    let svids = status["svids"].as_array().context("svids")?;
    let svid = svids.iter().find(|svid| svid["identity"] == identity);
    let serial = svid.and_then(|svid| svid["serial"].as_str());
    Ok(serial.with_context(|| format!("no serial of {identity}: {status}"))?.to_owned())
}

#[test]
fn no_request_fails_while_svids_are_renewed_and_an_open_connection_lives_on() -> Result<()> {
    let flag = format!("{}s", lifetime().as_secs());
    let mut world = World::with(&[], |_, _| {}, |spec| spec.with("--svid-lifetime", &flag))?;
    world.serve("httpbin-full", "echo", PORT)?;
    world.change(|mesh| {
        mesh.mode("full", "httpbin", "STRICT");
    })?;
    let capture = Capture::start(world.node(0))?;
    let client = world.pod("sleep-full");
    let mut old = client.inside(|| client::connect(To::Full.v4(PORT)))?;
    ping(&mut old, "canary of an open connection")?;

    let started = Instant::now();
    let (mut clients, mut servers) = (BTreeSet::new(), BTreeSet::new());
    let mut requests = 0;
    while clients.len() < 3 || servers.len() < 3 || started.elapsed() < lifetime() * 3 / 2 {
        ensure!(started.elapsed() < patience(Duration::from_secs(40)), "{clients:?} {servers:?}");
        clients.insert(serial(world.a(), SLEEP)?);
        servers.insert(serial(world.b(), HTTPBIN)?);
        let talk = client.inside(|| converse(To::Full.v4(PORT), "canary of a new one"))?;
        ensure!(talk.worked(), "request {requests}, {:?} on: {talk:?}", started.elapsed());
        ping(&mut old, "canary of an open connection")?;
        requests += 1;
    }
    // Its certificates have expired by now, and it was opened while they were good.
    ping(&mut old, "canary of an open connection")?;
    ensure!(!capture.saw("canary of")?, "something left in the clear");
    for (daemon, identity) in [(world.a(), SLEEP), (world.b(), HTTPBIN)] {
        let failed: Vec<_> = daemon.process.stdout.json_after(0);
        let failed: Vec<_> = failed.iter().filter(|line| line["outcome"] != "ok").collect();
        ensure!(failed.is_empty(), "{failed:?}");
        let left = daemon.metric("mtls_svid_expiry_seconds", &[identity])?;
        ensure!(left > 0.0 && left <= lifetime().as_secs_f64(), "{identity}: {left} s left");
        ensure!(daemon.metric("mtls_svids_issued_total", &["result=\"failed\""])? == 0.0);
    }
    Ok(())
}

#[test]
fn an_idle_node_renews_too() -> Result<()> {
    let world = World::with(&[], |_, _| {}, |spec| spec.with("--svid-lifetime", "5s"))?;
    let _echo = serve(world.pod("httpbin-full"), "echo", PORT)?;
    let first = serial(world.b(), HTTPBIN)?;
    mtls_tests::eventually(Duration::from_secs(10), "an idle node to renew", || {
        serial(world.b(), HTTPBIN).is_ok_and(|now| now != first)
    })?;
    let mark = world.b().mark();
    let talk = world.pod("sleep-full").inside(|| converse(To::Full.v6(PORT), "after"))?;
    ensure!(talk.worked(), "{talk:?}");
    let line = world.b().logged(mark, "inbound", |line| line["direction"] == "inbound")?;
    ensure!(line["source"]["identity"] == SLEEP, "{line}");
    Ok(())
}
