//! Enrolment: what was there before, and namespaces that come and go.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mtls_tests::client::{self, End, converse, ping, read_to_end};
use mtls_tests::leftovers::bpf_mounts;
use mtls_tests::process::output;
use mtls_tests::wait::{eventually, until};
use mtls_tests::world::{To, serve};
use mtls_tests::{Capture, Daemon, DaemonSpec, Mesh, World};
use serde_json::{Value, json};

const ECHO: u16 = 9000;

#[test]
fn connections_from_before_that_policy_does_not_leave_in_the_clear_end() -> Result<()> {
    let mut world = World::without_daemons(&[])?;
    world.mesh.namespace_mode("istio-system", "STRICT");
    let server = world.pod("httpbin-full").clone();
    let legacy_server = world.pod("httpbin-legacy").clone();
    let client = world.pod("sleep-full").clone();
    let legacy = world.pod("sleep-legacy").clone();
    let _servers = (serve(&server, "echo", ECHO)?, serve(&legacy_server, "echo", ECHO)?);
    let open = |from: &mtls_tests::Pod, to| {
        from.inside(|| {
            let mut stream = client::connect(to)?;
            ping(&mut stream, "before the daemons")?;
            Ok(stream)
        })
    };
    let mut outbound = open(&client, server.v4(ECHO))?;
    let mut inbound = open(&legacy, server.v6(ECHO))?;
    let mut allowed = open(&client, legacy_server.v4(ECHO))?;

    world.mesh.write()?;
    for index in 0..2 {
        world.daemons.push(DaemonSpec::new(&world.bed, index).start()?);
    }
    for (what, stream) in [("outbound", &mut outbound), ("inbound", &mut inbound)] {
        let (_, end) = read_to_end(stream)?;
        assert_eq!(end, End::Broken, "{what}: a connection in the clear outlived enrolment");
    }
    ping(&mut allowed, "in the clear by policy, so left alone")?;
    assert!(client.inside(|| converse(server.v4(ECHO), "and now with mTLS"))?.worked());
    Ok(())
}

/// The state of `workload` in `status`, and the reason.
fn state(daemon: &Daemon, workload: &str) -> Result<(String, String)> {
    let status = daemon.status()?;
    let entry = status["workloads"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|entry| entry["workload"] == workload)
        .with_context(|| format!("{workload} in {status}"))?
        .clone();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok((text(&entry["state"]), text(&entry["reason"])))
}

/// A workload in a namespace that is not one of the testbed's pods.
fn enrol(mesh: &mut Mesh, node: &str, name: &str, address: &str, netns: &Path) {
    let labels = json!({"app": name, "security.istio.io/tlsMode": "istio"});
    let entry = json!({"address": address, "serviceAccount": name, "labels": labels});
    mesh.put("networking.istio.io/v1", "WorkloadEntry", "full", name, entry);
    let place = json!({"node": node, "networkNamespace": netns, "workloadEntries": [name]});
    mesh.put("mtls-ebpf.dev/v1alpha1", "NodeWorkload", "full", name, place);
}

fn ip(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(arguments);
    let output = output(command)?;
    ensure!(
        output.status.success(),
        "ip {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn a_namespace_is_enrolled_when_it_comes_and_again_when_it_is_made_anew() -> Result<()> {
    let mut world = World::new()?;
    let name = format!("{}-late", world.bed.prefix);
    let node = world.a().spec.name.clone();
    world.change(|mesh| {
        enrol(mesh, &node, "late", "10.244.1.77", &mtls_tests::netns::path(&name))
    })?;
    let (pending, reason) = state(world.a(), "full/late")?;
    assert_eq!(pending, "pending");
    assert!(reason.contains(&name), "the reason names the namespace: {reason}");
    for round in ["first", "second"] {
        ip(&["netns", "add", &name])?;
        until(Duration::from_secs(5), &format!("the {round} to be enrolled"), || {
            match state(world.a(), "full/late") {
                Ok((state, _)) if state == "enrolled" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })?;
        ip(&["netns", "delete", &name])?;
        until(Duration::from_secs(5), &format!("the {round} to be gone"), || {
            match state(world.a(), "full/late") {
                Ok((state, _)) if state == "pending" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })?;
    }
    // Nothing keeps the namespaces alive: the kernel has detached their programs by itself.
    let pinned = || -> usize {
        bpf_mounts()
            .iter()
            .filter_map(|mount| {
                std::fs::read_dir(mount.join("mtls").join(&node).join("links")).ok()
            })
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("namespace-"))
            .count()
    };
    eventually(Duration::from_secs(5), "the links of both namespaces to go", || pinned() == 1)
}

/// Whoever starts a program in a new namespace has a moment after which nothing it sends is missed.
#[test]
fn a_program_in_a_new_namespace_can_wait_until_it_is_known() -> Result<()> {
    let mut world = World::new()?;
    let name = format!("{}-waits", world.bed.prefix);
    let spec = world.a().spec.clone();
    let wait = |namespace: &str, timeout: &str| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]);
        command.arg(mtls_tests::process::sibling("mtls-daemon", "MTLS_DAEMON_BIN")?);
        command.args(["wait", "--node", &spec.name, "--timeout", timeout, "--run-dir"]);
        command.arg(&spec.run);
        output(command)
    };
    world.change(|mesh| {
        enrol(mesh, &spec.name, "waits", "10.244.1.78", &mtls_tests::netns::path(&name))
    })?;
    for _ in 0..3 {
        ip(&["netns", "add", &name])?;
        let waited = wait(&name, "30s");
        let found = state(world.a(), "full/waits");
        ip(&["netns", "delete", &name])?;
        let waited = waited?;
        ensure!(waited.status.success(), "{waited:?}");
        ensure!(found?.0 == "enrolled", "it did not wait");
        until(Duration::from_secs(5), "the namespace to be gone", || {
            match state(world.a(), "full/waits") {
                Ok((state, _)) if state == "pending" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })?;
    }
    let waited = wait(&world.pod("sleep-legacy").netns, "300ms")?;
    let said = String::from_utf8_lossy(&waited.stderr);
    ensure!(waited.status.code() == Some(1) && said.contains("network namespace"), "{waited:?}");
    Ok(())
}

#[test]
fn the_daemons_own_namespace_is_refused_and_the_others_are_served() -> Result<()> {
    let mut world = World::new()?;
    let node = world.a().spec.name.clone();
    let own = world.node(0).place.netns.clone();
    world.change(|mesh| enrol(mesh, &node, "host", "10.244.1.1", &own))?;
    let (refused, reason) = state(world.a(), "full/host")?;
    assert_eq!(refused, "refused");
    assert!(reason.contains("own network namespace"), "{reason}");
    // The others are served as before.
    let _echo = serve(world.pod("httpbin-full"), "echo", ECHO)?;
    assert!(world.pod("sleep-full").inside(|| converse(To::Full.v4(ECHO), "hello"))?.worked());
    Ok(())
}

#[test]
fn a_workload_that_gets_another_name_stays_enrolled_all_the_while() -> Result<()> {
    let mut world = World::new()?;
    let _echo = serve(world.pod("httpbin-full"), "echo", ECHO)?;
    let client = world.pod("sleep-full").clone();
    let mut stream = client.inside(|| client::connect(To::Full.v4(ECHO)))?;
    ping(&mut stream, "under the old name")?;
    let node = world.a().spec.name.clone();
    let place = json!({
        "node": node,
        "networkNamespace": client.netns,
        "workloadEntries": ["sleep-full-v4", "sleep-full-v6"],
    });
    world.change(|mesh| {
        mesh.remove("NodeWorkload", "full", "sleep-full");
        mesh.put("mtls-ebpf.dev/v1alpha1", "NodeWorkload", "full", "renamed", place);
    })?;
    assert_eq!(state(world.a(), "full/renamed")?.0, "enrolled");
    ping(&mut stream, "leaving and coming back would have ended this")?;
    let mark = world.a().mark();
    assert!(client.inside(|| converse(To::Full.v4(ECHO), "under the new name"))?.worked());
    let line = world.a().logged(mark, "it", |line| line["direction"] == "outbound")?;
    assert_eq!(
        (&line["workload"], &line["security"]),
        (&"full/renamed".into(), &"mutual_tls".into())
    );
    Ok(())
}

#[test]
fn maps_of_another_abi_are_replaced_by_a_set_of_its_own() -> Result<()> {
    let mut world = World::new()?;
    let server = world.pod("httpbin-full").clone();
    let client = world.pod("sleep-full").clone();
    let _echo = serve(&server, "echo", ECHO)?;
    assert!(client.inside(|| converse(To::Full.v4(ECHO), "with the first"))?.worked());
    world.daemons[0].kill9()?;
    // To the next daemon these are the maps of a version that it does not know.
    let name = world.a().spec.name.clone();
    let pins = bpf_mounts()
        .into_iter()
        .map(|mount| mount.join("mtls").join(&name))
        .find(|pins| pins.is_dir())
        .context("the daemon's pins")?;
    let current = std::fs::read_dir(&pins)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| name.starts_with("abi-"))
        .context("the maps")?;
    std::fs::rename(pins.join(&current), pins.join("abi-0"))?;

    let capture = Capture::start(world.node(0))?;
    let talk = client.inside(|| converse(To::Full.v4(ECHO), "canary-between-versions"))?;
    assert!(!talk.worked(), "{talk:?}");
    world.daemons[0].restart()?;
    assert!(client.inside(|| converse(To::Full.v4(ECHO), "canary-after"))?.worked());
    ensure!(!capture.saw("canary-")?, "plaintext on the wire during the switch");
    assert!(!pins.join("abi-0").exists(), "the old maps are gone");
    assert!(pins.join(&current).join("WORKLOADS").exists());
    Ok(())
}
