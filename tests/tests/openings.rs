//! What policy leaves in the clear in a namespace: only while policy reaches it, and as it is from the first
//! moment.
#![forbid(unsafe_code)]

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use mtls_tests::client::{self, End, converse, ping, read_to_end};
use mtls_tests::hosts::entry;
use mtls_tests::process::{self, Process};
use mtls_tests::wait::until;
use mtls_tests::world::serve;
use mtls_tests::{Daemon, World, netns};
use serde_json::json;

const ECHO: u16 = 9000;

fn comes_to(daemon: &Daemon, workload: &str, state: &str) -> Result<()> {
    until(Duration::from_secs(10), &format!("{workload} to be {state}"), || {
        let entry = entry(daemon, workload).map_err(|error| format!("{error:#}"))?;
        if entry["state"] == state { Ok(()) } else { Err(entry.to_string()) }
    })
}

/// DISABLE: both ends talk to each other directly.
fn in_the_clear() -> Result<World> {
    let disable = |mesh: &mut mtls_tests::Mesh, _: &_| {
        mesh.namespace_mode("full", "DISABLE");
    };
    World::with(&[], disable, |spec| spec)
}

/// No later policy would reach it, so the one that was there last does not go on.
#[test]
fn a_namespace_that_lost_its_name_is_shut_also_where_policy_left_it_open() -> Result<()> {
    let world = in_the_clear()?;
    let server = world.pod("httpbin-full").clone();
    let legacy = world.pod("sleep-legacy").clone();
    let _echo = serve(&server, "echo", ECHO)?;
    let mut before = legacy.inside(|| {
        let mut stream = client::connect(server.v4(ECHO))?;
        ping(&mut stream, "in the clear by policy")?;
        Ok(stream)
    })?;
    ensure!(world.b().decided("inbound_untouched")? > 0.0, "it went through the daemon");
    process::ip(None, &format!("netns delete {}", server.netns))?;
    comes_to(world.b(), "full/httpbin-full", "pending")?;
    let talk = legacy.inside(|| converse(server.v4(ECHO), "and now?"))?;
    ensure!(!talk.worked(), "{talk:?}");
    let (_, end) = read_to_end(&mut before)?;
    ensure!(end == End::Broken, "what was open goes on: {end:?}");
    Ok(())
}

/// The new policy is for a workload that cannot be enrolled, so the old one must not go on for what could be
/// that workload.
#[test]
fn what_an_earlier_daemon_left_is_shut_also_where_policy_left_it_open() -> Result<()> {
    let mut world = in_the_clear()?;
    let server = world.pod("httpbin-full").clone();
    let legacy = world.pod("sleep-legacy").clone();
    let _echo = serve(&server, "echo", ECHO)?;
    ensure!(legacy.inside(|| converse(server.v4(ECHO), "by policy"))?.worked());
    world.daemons[1].kill9()?;
    let node = world.b().spec.name.clone();
    let elsewhere = json!({
        "node": node,
        "networkNamespace": netns::path(&format!("{}-never", world.bed.prefix)),
        "workloadEntries": ["httpbin-full-v4", "httpbin-full-v6"],
    });
    world.mesh.namespace_mode("full", "STRICT");
    world.mesh.put("mtls-ebpf.dev/v1alpha1", "NodeWorkload", "full", "httpbin-full", elsewhere);
    world.mesh.write()?;
    world.daemons[1].process = Process::start("the next daemon", world.daemons[1].spec.command()?)?;
    world.daemons[1].ready()?;
    comes_to(world.b(), "full/httpbin-full", "pending")?;
    let talk = legacy.inside(|| converse(server.v4(ECHO), "under STRICT"))?;
    ensure!(!talk.worked(), "{talk:?}");
    Ok(())
}

/// Also when its namespace comes after the configuration.
#[test]
fn exceptions_hold_from_the_first_moment() -> Result<()> {
    let mut world = World::new()?;
    let name = format!("{}-late", world.bed.prefix);
    let node = world.a().spec.name.clone();
    world.change(|mesh| {
        let labels = json!({"app": "late", "security.istio.io/tlsMode": "istio"});
        let address = json!({"address": "10.244.1.77", "serviceAccount": "late", "labels": labels});
        mesh.put("networking.istio.io/v1", "WorkloadEntry", "full", "late", address);
        let place = json!({
            "node": node, "networkNamespace": netns::path(&name), "workloadEntries": ["late"],
        });
        mesh.put("mtls-ebpf.dev/v1alpha1", "NodeWorkload", "full", "late", place);
        mesh.mode_by_port("full", "late", "DISABLE", &[(80, "STRICT")]);
    })?;
    comes_to(world.a(), "full/late", "pending")?;
    process::ip(None, &format!("netns add {name}"))?;
    comes_to(world.a(), "full/late", "enrolled")?;
    // Rows that were never written look like rows without room: then nothing is left in the clear.
    let full = world.a().status()?["kernel"]["full"].clone();
    ensure!(full.is_null(), "{full}");
    Ok(())
}

/// `ip netns add` makes a plain file, and then mounts the namespace on it.
#[test]
fn a_file_that_is_no_namespace_yet_is_waited_for() -> Result<()> {
    let mut world = World::new()?;
    let name = format!("{}-half", world.bed.prefix);
    let path = netns::path(&name);
    fs::write(&path, "")?;
    let node = world.a().spec.name.clone();
    world.change(|mesh| {
        let address = json!({"address": "10.244.1.78", "serviceAccount": "half"});
        mesh.put("networking.istio.io/v1", "WorkloadEntry", "full", "half", address);
        let place = json!({"node": node, "networkNamespace": path, "workloadEntries": ["half"]});
        mesh.put("mtls-ebpf.dev/v1alpha1", "NodeWorkload", "full", "half", place);
    })?;
    comes_to(world.a(), "full/half", "pending")?;
    let ready = world.a().status()?["ready"].clone();
    ensure!(ready == true, "one that is still to come keeps nobody waiting: {ready}");
    let mut unshare = std::process::Command::new("unshare");
    unshare.arg(format!("--net={}", path.display())).arg("true");
    let made = process::output(unshare)?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // Within a look or two: what was refused is looked at every ten seconds only.
    until(Duration::from_secs(4), "it to be enrolled", || {
        let entry = entry(world.a(), "full/half").map_err(|error| format!("{error:#}"))?;
        if entry["state"] == "enrolled" { Ok(()) } else { Err(entry.to_string()) }
    })
}
