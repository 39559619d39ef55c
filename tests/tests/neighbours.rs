//! Others on the same host: other daemons' programs, and processes after the listeners' ports.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mtls_tests::client::{Conversation, End, converse};
use mtls_tests::daemon::Daemon;
use mtls_tests::wait::eventually;
use mtls_tests::world::{To, serve};
use mtls_tests::{Capture, DaemonSpec, World};

const PORT: u16 = 9000;

/// The daemon's listener for `direction` in a workload's namespace, by its own word.
fn listener(daemon: &Daemon, workload: &str, direction: &str) -> Result<u16> {
    let status = daemon.status()?;
    let workloads = status["workloads"].as_array().context("workloads")?;
    let found = workloads.iter().find(|entry| entry["workload"] == workload);
    let port = found.and_then(|entry| entry["ports"][direction].as_u64());
    let port = port.with_context(|| format!("no {direction} port of {workload}: {status}"))?;
    u16::try_from(port).context("a port")
}

fn refused(talk: Conversation) -> bool {
    [Conversation::NoConnection, Conversation::Ended(End::Broken)].contains(&talk)
}

#[test]
fn another_nodes_programs_on_the_same_cgroups_disturb_nobody() -> Result<()> {
    let mut world = World::new()?;
    world.serve("httpbin-full", "echo", PORT)?;
    world.change(|mesh| {
        mesh.mode("full", "httpbin", "STRICT");
    })?;
    let capture = Capture::start(world.node(0))?;
    let works = |world: &World, when: &str| -> Result<()> {
        let mark = world.b().mark();
        let talk = world.pod("sleep-full").inside(|| converse(To::Full.v4(PORT), "canary"))?;
        ensure!(talk.worked(), "{when}: {talk:?}");
        // (lines of what was refused before may come late)
        world
            .b()
            .logged(mark, "mTLS", |line| {
                line["direction"] == "inbound" && line["security"] == "mutual_tls"
            })
            .with_context(|| when.to_owned())?;
        let legacy = world.pod("sleep-legacy");
        let talk = legacy.inside(|| converse(world.pod("httpbin-full").v4(PORT), "plain"))?;
        ensure!(talk == Conversation::Ended(End::Broken), "{when}, not enrolled: {talk:?}");
        let talk = legacy.inside(|| converse(world.pod("sleep-full").v4(1), "plain"))?;
        ensure!(refused(talk), "{when}: {talk:?}");
        Ok(())
    };
    let mut third = DaemonSpec::new(&world.bed, 0).with("--http-address", "off");
    third.name = format!("{}-third", world.bed.prefix);
    third.state = world.bed.directory.join("state-third");
    third.config = world.bed.directory.join("config-third");
    std::fs::create_dir_all(&third.config)?;
    let mut third = third.start()?;
    let status = third.status()?;
    ensure!(status["workloads"].as_array().is_some_and(Vec::is_empty), "{status}");
    works(&world, "beside it")?;
    third.kill9()?;
    works(&world, "beside what a dead one left")?;
    third.restart()?;
    works(&world, "beside one that came back")?;
    third.term()?;
    third.cleanup()?;
    works(&world, "after it")?;
    ensure!(!capture.saw("canary")?, "plaintext crossed");
    Ok(())
}

#[test]
fn a_process_on_a_dead_daemons_outbound_port_gets_no_connection() -> Result<()> {
    let mut world = World::new()?;
    let _echo = serve(world.pod("httpbin-full"), "echo", PORT)?;
    let client = world.pod("sleep-full").clone();
    let port = listener(world.a(), "full/sleep-full", "outbound")?;
    world.daemons[0].kill9()?;
    let thief = serve(&client, "echo", port)?;
    let heard = thief.stdout.len();
    for to in [To::Full.v4(PORT), To::Full.v6(PORT), world.pod("httpbin-full").v4(PORT)] {
        let talk = client.inside(|| converse(to, "for another"))?;
        ensure!(refused(talk), "{to}: {talk:?}");
    }
    let events = thief.stdout.json_after(heard);
    ensure!(events.is_empty(), "the process got a connection: {events:?}");
    // It still sits there.
    world.daemons[0].restart()?;
    for to in [To::Full.v4(PORT), To::Full.v6(PORT)] {
        eventually(Duration::from_secs(5), "traffic to flow again", || {
            client.inside(|| converse(to, "hello again")).is_ok_and(Conversation::worked)
        })?;
    }
    let events = thief.stdout.json_after(heard);
    ensure!(events.is_empty(), "the process got a connection: {events:?}");
    Ok(())
}

#[test]
fn a_process_on_a_dead_daemons_inbound_port_gets_no_connection() -> Result<()> {
    let mut world = World::new()?;
    let _echo = serve(world.pod("httpbin-full"), "echo", PORT)?;
    let server = world.pod("httpbin-full").clone();
    let port = listener(world.b(), "full/httpbin-full", "inbound")?;
    world.daemons[1].kill9()?;
    let thief = serve(&server, "echo", port)?;
    let heard = thief.stdout.len();
    for from in ["sleep-full", "sleep-legacy"] {
        for to in [server.v4(PORT), server.v6(PORT), server.v4(port)] {
            let talk = world.pod(from).inside(|| converse(to, "for another"))?;
            ensure!(refused(talk), "{from} to {to}: {talk:?}");
        }
    }
    let events = thief.stdout.json_after(heard);
    ensure!(events.is_empty(), "the process got a connection: {events:?}");
    world.daemons[1].restart()?;
    let client = world.pod("sleep-full");
    eventually(Duration::from_secs(5), "traffic to flow again", || {
        client.inside(|| converse(To::Full.v4(PORT), "hello again")).is_ok_and(Conversation::worked)
    })?;
    let events = thief.stdout.json_after(heard);
    ensure!(events.is_empty(), "the process got a connection: {events:?}");
    Ok(())
}

#[test]
fn nobody_speaks_to_the_listeners_themselves() -> Result<()> {
    let world = World::new()?;
    let (pod, legacy) = (world.pod("sleep-full"), world.pod("sleep-legacy"));
    for direction in ["outbound", "inbound"] {
        let port = listener(world.a(), "full/sleep-full", direction)?;
        let mark = world.a().mark();
        // From outside.
        let before = world.a().decided("inbound_refused")?;
        for to in [pod.v4(port), pod.v6(port)] {
            let talk = legacy.inside(|| converse(to, "let me in"))?;
            ensure!(refused(talk), "{direction}, {to}: {talk:?}");
        }
        ensure!(world.a().decided("inbound_refused")? > before, "{direction} was not counted");
        // From the pod itself.
        let before = world.a().decided("outbound_refused")?;
        let loopback: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
        for to in [loopback, pod.v4(port), pod.v6(port)] {
            let talk = pod.inside(|| converse(to, "let me in"))?;
            ensure!(refused(talk), "{direction}, the pod to {to}: {talk:?}");
        }
        let now = world.a().decided("outbound_refused")?;
        ensure!(now == before + 3.0, "{direction}: {before}, then {now}");
        let lines = world.a().process.stdout.json_after(mark);
        ensure!(lines.iter().all(|line| line["outcome"] != "ok"), "{lines:?}");
    }
    Ok(())
}
