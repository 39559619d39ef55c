//! Workloads of a host come and go, as do their daemons: what is shut meanwhile, and what is not.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mtls_tests::client::{Conversation, End, converse};
use mtls_tests::host::{self, stranger};
use mtls_tests::hosts::{CANARY, Hosts, OTHER, UNDECLARED, WEB, entry, get};
use mtls_tests::process::{Place, Process, sibling};
use mtls_tests::svids::Material;
use mtls_tests::wait::{eventually, until};
use mtls_tests::world::serve;
use mtls_tests::{Capture, DaemonSpec, Pod, cgroup, curl, leftovers, settings};
use serde_json::json;

#[test]
fn a_killed_daemon_shuts_its_units_and_nothing_else() -> Result<()> {
    let mut hosts = Hosts::stand("STRICT")?;
    let (a, b) = (stranger(hosts.bed(), 0)?, stranger(hosts.bed(), 1)?);
    let rest = |hosts: &Hosts| -> Result<()> {
        for from in [&a, &b] {
            let to = hosts.web.v4(UNDECLARED);
            ensure!(get(from, to)?.code == 200, "{} to {to}", from.name);
        }
        Ok(())
    };
    // The server's: nobody comes in, not even from the host itself.
    hosts.world.daemons[1].kill9()?;
    for from in [&hosts.client.pod, &a, &b] {
        let answer =
            curl::run(from, &["--max-time", "2", &format!("http://{}/", hosts.web.v4(WEB))])?;
        ensure!(answer.code != 200, "{}: {answer:?}", from.name);
    }
    rest(&hosts)?;
    hosts.world.daemons[1].restart()?;
    eventually(Duration::from_secs(10), "traffic to flow again", || {
        get(&hosts.client.pod, hosts.web.v4(WEB)).is_ok_and(|answer| answer.code == 200)
    })?;
    // The client's: nothing goes out, although a process takes the port that its connections go to.
    let port = entry(hosts.world.a(), "metal/client")?["ports"]["outbound"]
        .as_u64()
        .context("the outbound port")? as u16;
    let capture = Capture::start(hosts.world.node(0))?;
    hosts.world.daemons[0].kill9()?;
    let thief = serve(&a, "http", port)?;
    for to in [hosts.web.v4(WEB), hosts.web.v6(WEB)] {
        let answer = curl::run(&hosts.client.pod, &["--max-time", "2", &format!("http://{to}/")])?;
        ensure!(answer.code != 200, "{answer:?}");
    }
    rest(&hosts)?;
    ensure!(get(&hosts.client.pod, hosts.web.v4(UNDECLARED))?.code == 200);
    ensure!(capture.flows_to(hosts.web.v4(WEB))?.is_empty(), "something went out");
    drop(thief);
    hosts.world.daemons[0].restart()?;
    let marks = hosts.marks();
    ensure!(get(&hosts.client.pod, hosts.web.v4(WEB))?.code == 200);
    hosts.mutual(marks, "client", "web")
}

#[test]
fn cleanup_leaves_the_host_as_it_was() -> Result<()> {
    let mut hosts = Hosts::prepare()?;
    let look = |hosts: &Hosts| -> Result<Vec<BTreeSet<String>>> {
        hosts.bed().nodes.iter().map(|node| settings::of(&node.place.netns)).collect()
    };
    let same = |hosts: &Hosts, before: &[BTreeSet<String>]| -> Result<()> {
        before.iter().zip(look(hosts)?).try_for_each(|(before, now)| settings::same(before, &now))
    };
    let before = look(&hosts)?;
    hosts.world.mesh.namespace_mode("metal", "STRICT");
    hosts.world.start(|spec| spec)?;
    hosts.serve()?;
    let marks = hosts.marks();
    ensure!(get(&hosts.client.pod, hosts.web.v4(WEB))?.code == 200);
    hosts.mutual(marks, "client", "web")?;
    same(&hosts, &before).context("with the daemons")?;
    for daemon in &mut hosts.world.daemons {
        daemon.kill9()?;
        daemon.cleanup()?;
    }
    same(&hosts, &before).context("after the cleanup")?;
    let pins: Vec<String> = leftovers::remains(&hosts.bed().prefix)
        .into_iter()
        .filter(|what| what.starts_with("pins"))
        .collect();
    assert_eq!(pins, Vec::<String>::new());
    let capture = Capture::start(hosts.world.node(0))?;
    for to in [hosts.web.v4(WEB), hosts.web.v6(WEB)] {
        ensure!(get(&hosts.client.pod, to)?.code == 200, "{to}");
    }
    ensure!(capture.saw(CANARY)?, "no daemon, no mTLS");
    Ok(())
}

/// A unit that is started again has another cgroup, of the same path.
#[test]
fn a_unit_that_is_started_again_is_known_again() -> Result<()> {
    let mut hosts = Hosts::stand("STRICT")?;
    let id = |hosts: &Hosts| -> Result<Option<u64>> {
        Ok(entry(hosts.world.a(), "metal/client")?["cgroup_id"].as_u64())
    };
    let first = id(&hosts)?;
    ensure!(first.is_some(), "it is there");
    hosts.client.stop()?;
    let limit = Duration::from_secs(5);
    until(limit, "the cgroup to be gone", || match id(&hosts) {
        Ok(None) => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    ensure!(hosts.world.a().status()?["ready"] == true, "a unit may be stopped");
    hosts.client.start()?;
    until(limit, "the new cgroup", || match id(&hosts) {
        Ok(Some(now)) if Some(now) != first => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let marks = hosts.marks();
    ensure!(get(&hosts.client.pod, hosts.web.v4(WEB))?.code == 200);
    hosts.mutual(marks, "client", "web")?;
    // A server whose unit is down: its port is shut all the same, for plaintext of anybody.
    hosts.servers.clear();
    hosts.web.stop()?;
    let b = stranger(hosts.bed(), 1)?;
    let squatter = serve(&b, "echo", WEB)?;
    let talk = b.inside(|| converse(hosts.web.v4(WEB), "plain"))?;
    ensure!(talk == Conversation::Ended(End::Broken), "{talk:?}");
    drop(squatter);
    hosts.web.start()?;
    hosts.serve()?;
    ensure!(get(&hosts.client.pod, hosts.web.v4(WEB))?.code == 200);
    Ok(())
}

/// As `ExecStartPre` of a unit: in its new cgroup, before anything of it connects.
#[test]
fn a_unit_can_wait_until_it_is_known() -> Result<()> {
    let hosts = Hosts::stand("STRICT")?;
    let spec = &hosts.world.a().spec;
    let wait = |pod: &Pod, timeout: &str| -> Result<std::process::Output> {
        let daemon = mtls_tests::process::sibling("mtls-daemon", "MTLS_DAEMON_BIN")?;
        let mut command = pod.place.command(daemon)?;
        command.args(["wait", "--node", &spec.name, "--timeout", timeout, "--run-dir"]);
        command.arg(&spec.run);
        mtls_tests::process::output(command)
    };
    let capture = Capture::start(hosts.world.node(0))?;
    for _ in 0..5 {
        hosts.client.stop()?;
        hosts.client.start()?;
        let waited = wait(&hosts.client.pod, "30s")?;
        ensure!(waited.status.success(), "{waited:?}");
        ensure!(get(&hosts.client.pod, hosts.web.v4(WEB))?.code == 200);
    }
    ensure!(!capture.saw(CANARY)?, "it was not waited for long enough");
    // A unit need not know the node's name: here, two daemons are asked.
    let daemon = mtls_tests::process::sibling("mtls-daemon", "MTLS_DAEMON_BIN")?;
    let mut command = hosts.web.pod.place.command(daemon)?;
    command.args(["wait", "--timeout", "30s", "--run-dir"]).arg(&spec.run);
    let waited = mtls_tests::process::output(command)?;
    ensure!(waited.status.success(), "{waited:?}");
    let waited = wait(&stranger(hosts.bed(), 0)?, "300ms")?;
    let said = String::from_utf8_lossy(&waited.stderr);
    ensure!(waited.status.code() == Some(1) && said.contains("cgroup"), "{waited:?}");
    Ok(())
}

/// A line of a unit that is shipped, with this build's program in the place of the installed one.
fn shipped(unit: &str, key: &str, place: &Place, environment: &[(&str, &Path)]) -> Result<Process> {
    let line = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let line = line.with_context(|| format!("no {key} in {unit}"))?;
    let mut words = line.trim_start_matches(['+', '-']).split(' ');
    ensure!(words.next() == Some("/usr/local/bin/mtls-daemon"), "{line}");
    let mut command = place.command(sibling("mtls-daemon", "MTLS_DAEMON_BIN")?)?;
    command.args(words).envs(environment.iter().copied());
    Process::start(line, command)
}

/// What the shipped units run, with what they know.
#[test]
fn a_unit_starts_when_the_daemon_is_ready_and_has_its_certificate() -> Result<()> {
    let hosts = Hosts::prepare()?;
    hosts.world.mesh.write()?;
    let material = Material::new(&hosts.bed().directory)?;
    let directory = material.node(Material::A);
    fs::copy(&material.root().certificate, directory.join("ca.crt"))?;
    let spec = DaemonSpec::new(hosts.bed(), 0)
        .with("--identity-source", "files")
        .with("--svid-dir", directory.to_str().context("UTF-8")?);
    let daemon = spec.spawn()?;
    until(Duration::from_secs(30), "the unit to be enrolled", || {
        let entry = entry(&daemon, "metal/client").map_err(|error| format!("{error:#}"))?;
        let there = entry["state"] == "enrolled" && entry["cgroup_id"].is_u64();
        if there { Ok(()) } else { Err(entry.to_string()) }
    })?;
    let ask = |place: &Place, words: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = place.command(sibling("mtls-daemon", "MTLS_DAEMON_BIN")?)?;
        command.args(words).arg("--run-dir").arg(&daemon.spec.run);
        let output = mtls_tests::process::output(command)?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8(said)?))
    };
    let (host, unit) = (&daemon.spec.node.place, &hosts.client.pod.place);
    let name = daemon.spec.name.as_str();
    // It answers long before: that says nothing.
    let (code, said) = ask(host, &["status", "--node", name])?;
    ensure!(code == Some(0) && said.contains("NOT READY"), "{said}");
    let (code, said) = ask(host, &["wait", "--ready", "--node", name, "--timeout", "300ms"])?;
    ensure!(code == Some(1) && said.contains("is not ready: awaited: "), "{said}");
    let (code, said) = ask(unit, &["wait", "--timeout", "300ms"])?;
    let awaited = "metal/client is enrolled and waits for the certificate of spiffe://cluster.local/ns/metal/\
                   sa/client: ";
    ensure!(code == Some(1) && said.contains(awaited), "{said}");

    // In daemon.env, and in what the drop-in knows: the test's directory, as there is only one in truth.
    let own = [("MTLS_RUN_DIR", daemon.spec.run.as_path())];
    let of_daemon = [own[0], ("MTLS_NODE", Path::new(name))];
    let files = [
        include_str!("../../deploy/systemd/mtls-daemon.service"),
        include_str!("../../deploy/systemd/mtls-workload.conf"),
    ];
    let mut waiting = [
        shipped(files[0], "ExecStartPost", host, &of_daemon)?,
        shipped(files[1], "ExecStartPre", unit, &own)?,
    ];
    std::thread::sleep(Duration::from_secs(1));
    for process in &mut waiting {
        ensure!(process.exited()?.is_none(), "too early: {:?}", process.stderr.all());
    }
    material.renew(Material::A, "client", "metal/client")?;
    for process in &mut waiting {
        let status = process.wait(Duration::from_secs(20))?;
        ensure!(status.success(), "{status}: {:?}", process.stderr.all());
    }
    ensure!(daemon.status()?["ready"] == true);
    Ok(())
}

/// It is looked for ten times a second, and said when there is something new.
#[test]
fn a_cgroup_that_cannot_be_taken_is_reported_once() -> Result<()> {
    let mut hosts = Hosts::prepare()?;
    let prefix = hosts.bed().prefix.clone();
    let name = format!("{prefix}-sleep.service");
    let slice = format!("{prefix}-tests.slice");
    let (good, deep) =
        (format!("{slice}/{name}"), format!("{slice}{}/{name}", "/a.slice".repeat(20)));
    let first = cgroup::make(&good)?.context("a cgroup")?;
    let mut place = hosts.client.place(&mut hosts.world.mesh);
    place["node"] = json!(hosts.bed().nodes[0].name);
    place["systemdUnit"] = json!(name);
    hosts.world.mesh.put("mtls-ebpf.dev/v1alpha1", "NodeWorkload", "metal", "client", place);
    hosts.world.mesh.write()?;
    let daemon = DaemonSpec::new(hosts.bed(), 0).start()?;
    let known = |wanted: bool| {
        until(Duration::from_secs(10), &format!("known: {wanted}"), || {
            let entry = entry(&daemon, "metal/client").map_err(|error| format!("{error:#}"))?;
            if entry["cgroup_id"].is_u64() == wanted { Ok(()) } else { Err(entry.to_string()) }
        })
    };
    let said = || {
        let lines = daemon.process.stderr.all();
        lines.iter().filter(|line| line.contains("nobody connects as this workload")).count()
    };
    known(true)?;
    let mut at = first;
    for times in 1..=2 {
        cgroup::remove(&at)?;
        known(false)?;
        ensure!(said() == times - 1, "a unit may be stopped");
        let refused = cgroup::make(&deep)?.context("a cgroup")?;
        until(Duration::from_secs(10), "the refusal", || {
            if said() == times { Ok(()) } else { Err(format!("{} times", said())) }
        })?;
        std::thread::sleep(Duration::from_secs(1));
        ensure!(said() == times, "{} times", said());
        known(false)?;
        let reason =
            || Ok::<_, anyhow::Error>(entry(&daemon, "metal/client")?["reason"].to_string());
        ensure!(reason()?.contains("levels below the cgroup root"), "{}", reason()?);
        // Where it can be found again it is.
        cgroup::remove(&refused)?;
        at = cgroup::make(&good)?.context("a cgroup")?;
        known(true)?;
        ensure!(reason()? == "null", "{}", reason()?);
    }
    Ok(())
}

/// By its name, in whatever slice; processes below the unit's cgroup are its own.
#[test]
fn a_unit_is_found_by_its_name() -> Result<()> {
    let mut hosts = Hosts::prepare()?;
    hosts.world.mesh.namespace_mode("metal", "STRICT");
    let name = format!("{}-sleep.service", hosts.bed().prefix);
    let slice = format!("{}-tests.slice/inner.slice", hosts.bed().prefix);
    let inner = cgroup::make(&format!("{slice}/{name}/worker"))?;
    let mut place = hosts.client.place(&mut hosts.world.mesh);
    place["node"] = json!(hosts.bed().nodes[0].name);
    place["systemdUnit"] = json!(name);
    hosts.world.mesh.put("mtls-ebpf.dev/v1alpha1", "NodeWorkload", "metal", "client", place);
    hosts.world.start(|spec| spec)?;
    hosts.serve()?;
    let mut worker = hosts.client.pod.clone();
    worker.place.cgroup = inner;
    let marks = hosts.marks();
    let answer = get(&worker, hosts.web.v4(WEB))?;
    ensure!(answer.code == 200, "{answer:?}");
    hosts.mutual(marks, "client", "web")
}

#[test]
fn what_cannot_be_a_workload_is_refused_with_the_reason() -> Result<()> {
    let mut hosts = Hosts::stand("STRICT")?;
    let bed = &hosts.world.bed;
    let node = bed.nodes[0].name.clone();
    let own = format!("{}/node-a", bed.prefix);
    hosts.world.change(|mesh| {
        for (name, address, cgroup) in [
            ("daemon", host::v4(0), own.as_str()),
            ("elsewhere", "10.200.0.77".parse().expect("an address"), "elsewhere.slice"),
        ] {
            let entry = json!({"address": address, "serviceAccount": name});
            mesh.put("networking.istio.io/v1", "WorkloadEntry", "metal", name, entry);
            let place = json!({
                "node": node, "cgroup": cgroup, "ports": [5000], "workloadEntries": [name],
            });
            mesh.put("mtls-ebpf.dev/v1alpha1", "NodeWorkload", "metal", name, place);
        }
    })?;
    for (name, expected) in
        [("daemon", "the daemon itself"), ("elsewhere", "no address of this host")]
    {
        let entry = entry(hosts.world.a(), &format!("metal/{name}"))?;
        ensure!(entry["state"] == "refused", "{entry}");
        ensure!(entry["reason"].to_string().contains(expected), "{entry}");
    }
    // The others are served.
    ensure!(get(&hosts.client.pod, hosts.web.v4(WEB))?.code == 200);
    Ok(())
}

#[test]
fn a_kernel_that_does_not_tell_the_cgroup_refuses_host_workloads_alone() -> Result<()> {
    let mut hosts = Hosts::prepare()?;
    hosts.world.mesh.write()?;
    let spec = DaemonSpec::new(hosts.bed(), 0).with("--without-kernel-feature", "cgroup_id");
    let daemon = spec.spawn()?;
    let entry = until(Duration::from_secs(30), "an answer", || {
        entry(&daemon, "metal/client").map_err(|error| format!("{error:#}"))
    })?;
    ensure!(entry["state"] == "refused" && entry["reason"].to_string().contains("5.7"), "{entry}");
    // Nothing else, but what the kernel itself lacks.
    let without = daemon.status()?["kernel"]["without"].clone();
    let expected = [json!(["cgroup_id"]), json!(["ingress_ifindex", "cgroup_id"])];
    ensure!(expected.contains(&without), "{without}");
    hosts.world.daemons.push(daemon);
    Ok(())
}

/// Nobody is taken out of the mesh by somebody else's refusal, and a workload that is taken out leaves
/// the other's ports alone.
#[test]
fn one_of_two_units_is_taken_away() -> Result<()> {
    let mut hosts = Hosts::stand("STRICT")?;
    let taken = |hosts: &Hosts| -> Result<bool> {
        let programs = hosts.world.b().status()?["kernel"]["programs"].clone();
        Ok(programs.as_object().context("programs")?.contains_key("mtls_host"))
    };
    ensure!(taken(&hosts)?, "two units are");
    hosts.world.change(|mesh| {
        mesh.remove("NodeWorkload", "metal", "other");
        mesh.remove("WorkloadEntry", "metal", "other-v4");
        mesh.remove("WorkloadEntry", "metal", "other-v6");
    })?;
    let a = stranger(hosts.bed(), 0)?;
    ensure!(get(&a, hosts.other.v4(OTHER))?.code == 200, "in the clear again");
    ensure!(get(&a, hosts.web.v4(WEB))?.code != 200, "STRICT as before");
    ensure!(get(&hosts.client.pod, hosts.web.v4(WEB))?.code == 200);
    // The last one.
    hosts.world.change(|mesh| {
        for family in ["v4", "v6"] {
            mesh.remove("WorkloadEntry", "metal", &format!("web-{family}"));
        }
        mesh.remove("NodeWorkload", "metal", "web");
    })?;
    ensure!(get(&a, hosts.web.v4(WEB))?.code == 200, "in the clear again");
    ensure!(!taken(&hosts)?, "nobody's ports are left");
    Ok(())
}

/// What an earlier daemon left shut stays shut while the workload that it could be cannot be enrolled, and
/// is put back once nobody could be meant.
#[test]
fn what_a_dead_daemon_left_is_adopted_kept_shut_or_put_back() -> Result<()> {
    let mut hosts = Hosts::stand("STRICT")?;
    let a = stranger(hosts.bed(), 0)?;
    let url = format!("http://{}/", hosts.web.v4(WEB));
    let shut = || -> Result<bool> { Ok(curl::run(&a, &["--max-time", "2", &url])?.code == 0) };
    hosts.world.daemons[1].kill9()?;
    // The same unit with an address that the host does not have.
    let elsewhere = json!({
        "address": "10.200.0.77", "serviceAccount": "web",
        "labels": {"app": "web", "security.istio.io/tlsMode": "istio"},
    });
    let entry_of = ("networking.istio.io/v1", "WorkloadEntry", "metal", "web-v4");
    let before = hosts.world.mesh.clone();
    hosts.world.mesh.put(entry_of.0, entry_of.1, entry_of.2, entry_of.3, elsewhere);
    hosts.world.mesh.write()?;
    let process = Process::start("the next daemon", hosts.world.b().spec.command()?)?;
    hosts.world.daemons[1].process = process;
    until(Duration::from_secs(30), "web to be refused", || {
        let entry = entry(hosts.world.b(), "metal/web").map_err(|error| format!("{error:#}"))?;
        if entry["state"] == "refused" { Ok(()) } else { Err(entry.to_string()) }
    })?;
    ensure!(shut()?, "it was opened");
    ensure!(get(&a, hosts.web.v4(UNDECLARED))?.code == 200, "the rest is not shut");
    ensure!(get(&hosts.client.pod, hosts.other.v4(OTHER))?.code == 200, "the other unit is served");
    // Right again: it is tried again without anybody's help.
    hosts.world.mesh = before.clone();
    hosts.world.mesh.write()?;
    until(Duration::from_secs(30), "web to be enrolled", || {
        let entry = entry(hosts.world.b(), "metal/web").map_err(|error| format!("{error:#}"))?;
        if entry["state"] == "enrolled" { Ok(()) } else { Err(entry.to_string()) }
    })?;
    ensure!(shut()? && get(&hosts.client.pod, hosts.web.v4(WEB))?.code == 200);
    // Gone from the configuration while no daemon runs.
    hosts.world.daemons[1].kill9()?;
    hosts.world.mesh.remove("NodeWorkload", "metal", "web");
    for family in ["v4", "v6"] {
        hosts.world.mesh.remove("WorkloadEntry", "metal", &format!("web-{family}"));
    }
    hosts.world.mesh.write()?;
    ensure!(shut()?, "while no daemon runs");
    hosts.world.daemons[1].restart()?;
    ensure!(!shut()?, "it is no workload any more");
    ensure!(get(&a, hosts.other.v4(OTHER))?.code == 0, "the other one is");
    Ok(())
}
