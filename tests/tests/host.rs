//! Workloads that share a host's network namespace with everything else that runs there.
//!
//! The host is a node of the testbed, with the daemon in it and no pods; a workload is a cgroup.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mtls_tests::client::{Conversation, End, converse};
use mtls_tests::curl::{self, Curl};
use mtls_tests::host::{self, Unit, stranger};
use mtls_tests::process::Process;
use mtls_tests::wait::{eventually, until};
use mtls_tests::world::{event, serve};
use mtls_tests::{Capture, Daemon, DaemonSpec, Mesh, Pod, Testbed, World, cgroup, leftovers};
use serde_json::{Value, json};

const WEB: u16 = 8080;
const OTHER: u16 = 9090;
/// What the units listen on beside what they declare.
const UNDECLARED: u16 = 7070;

/// `client` on host a; `web` and `other` on host b, at one address. Dropped in this order.
struct Hosts {
    servers: Vec<Process>,
    client: Unit,
    web: Unit,
    other: Unit,
    world: World,
}

fn prepare() -> Result<Hosts> {
    let world = World::of(&[], |bed| Mesh::new(bed.config_directory()))?;
    let bed = &world.bed;
    let client = Unit::new(bed, 0, "client", &[])?;
    let web = Unit::new(bed, 1, "web", &[WEB])?;
    let other = Unit::new(bed, 1, "other", &[OTHER])?;
    let mut hosts = Hosts { servers: Vec::new(), client, web, other, world };
    for unit in [&hosts.client, &hosts.web, &hosts.other] {
        unit.enrol(&mut hosts.world.mesh, &hosts.world.bed);
    }
    Ok(hosts)
}

fn stand_with(mode: &str, run: impl Fn(DaemonSpec) -> DaemonSpec) -> Result<Hosts> {
    let mut hosts = prepare()?;
    hosts.world.mesh.namespace_mode("metal", mode);
    hosts.world.start(run)?;
    hosts.serve()?;
    Ok(hosts)
}

fn stand(mode: &str) -> Result<Hosts> {
    stand_with(mode, |spec| spec)
}

impl Hosts {
    fn serve(&mut self) -> Result<()> {
        for (unit, kind, port) in [
            (&self.web, "http", WEB),
            (&self.web, "http", UNDECLARED),
            (&self.other, "http", OTHER),
        ] {
            self.servers.push(serve(&unit.pod, kind, port)?);
        }
        Ok(())
    }

    fn bed(&self) -> &Testbed {
        &self.world.bed
    }

    /// Waits for the two access log lines of a connection over mTLS, and checks whose it was.
    fn mutual(&self, marks: (usize, usize), from: &str, to: &str) -> Result<()> {
        let (out, into) = marks;
        let id = |name: &str| format!("spiffe://cluster.local/ns/metal/sa/{name}");
        for (daemon, mark, direction, workload) in
            [(self.world.a(), out, "outbound", from), (self.world.b(), into, "inbound", to)]
        {
            let line = daemon.logged(mark, direction, |line| {
                line["direction"] == direction && line["workload"] == format!("metal/{workload}")
            })?;
            ensure!(line["security"] == "mutual_tls", "{line}");
            let text = line.to_string();
            ensure!(text.contains(&id(from)) && text.contains(&id(to)), "{line}");
        }
        Ok(())
    }

    fn marks(&self) -> (usize, usize) {
        (self.world.a().mark(), self.world.b().mark())
    }
}

fn get(pod: &Pod, to: SocketAddr) -> Result<Curl> {
    curl::curl(pod, "web.example", to, "/", "canary-on-the-host")
}

/// A process there that has a connection, until it ends.
fn open(pod: &Pod, to: SocketAddr) -> Result<Process> {
    let process = pod.helper(&["talk", &to.to_string()])?;
    event(&process, 0, "open").with_context(|| format!("{to}: {:?}", process.stderr.all()))?;
    Ok(process)
}

fn entry(daemon: &Daemon, workload: &str) -> Result<Value> {
    let status = daemon.status()?;
    let workloads = status["workloads"].as_array().context("workloads")?;
    let found = workloads.iter().find(|entry| entry["workload"] == workload);
    Ok(found.with_context(|| format!("{workload} in {status}"))?.clone())
}

/// STRICT on both sides, over both families: the wire has TLS only, and each daemon knows who talks.
#[test]
fn units_of_two_hosts_talk_mtls() -> Result<()> {
    let hosts = stand("STRICT")?;
    let capture = Capture::start(hosts.world.node(0))?;
    for to in [hosts.web.v4(WEB), hosts.web.v6(WEB)] {
        let marks = hosts.marks();
        let answer = get(&hosts.client.pod, to)?;
        ensure!(answer.code == 200, "{to}: {answer:?}");
        // The application sees the client, not the daemon.
        let origin = answer.echo()?["origin"].clone();
        let own = if to.is_ipv4() { host::v4(0) } else { host::v6(0) };
        ensure!(origin == own.to_string(), "{to}: {answer:?}");
        hosts.mutual(marks, "client", "web")?;
        ensure!(!capture.flows_to(to)?.is_empty(), "nothing crossed to {to}");
    }
    ensure!(!capture.saw("canary-on-the-host")?, "plaintext crossed");
    // Two units at one address: the port says which.
    let marks = hosts.marks();
    let answer = get(&hosts.client.pod, hosts.other.v4(OTHER))?;
    ensure!(answer.code == 200, "{answer:?}");
    hosts.mutual(marks, "client", "other")
}

#[test]
fn policy_knows_a_unit_by_its_principal() -> Result<()> {
    let mut hosts = stand("STRICT")?;
    let to = hosts.web.v4(WEB);
    for (principal, expected) in [("client", 200), ("somebody", 403)] {
        hosts.world.change(|mesh| {
            let principals = [format!("cluster.local/ns/metal/sa/{principal}")];
            let spec = json!({
                "selector": {"matchLabels": {"app": "web"}},
                "rules": [{"from": [{"source": {"principals": principals}}]}],
            });
            mesh.put("security.istio.io/v1", "AuthorizationPolicy", "metal", "web", spec);
            // Without it the port is bytes, and a denied connection is reset.
            let ports = vec![(80, "http", "HTTP", WEB)];
            mesh.service(&mtls_tests::mesh::Service {
                namespace: "metal",
                name: "web",
                addresses: vec!["10.96.0.9".parse().expect("an address")],
                ports,
                selector: json!({"app": "web"}),
            });
        })?;
        let answer = get(&hosts.client.pod, to)?;
        ensure!(answer.code == expected, "{principal}: {answer:?}");
        // By the service's virtual address as well.
        let answer = get(&hosts.client.pod, "10.96.0.9:80".parse()?)?;
        ensure!(answer.code == expected, "{principal}: {answer:?}");
    }
    Ok(())
}

/// Neither side's daemon does anything for, or to, what is not declared.
#[test]
fn the_rest_of_a_host_is_untouched() -> Result<()> {
    let mut hosts = stand("PERMISSIVE")?;
    let (a, b) = (stranger(hosts.bed(), 0)?, stranger(hosts.bed(), 1)?);
    let plain = serve(&b, "http", 6060)?;
    hosts.servers.push(plain);
    let capture = Capture::start(hosts.world.node(0))?;
    // From a stranger to a unit, in the clear: to a declared port through the daemon.
    for to in [hosts.web.v4(WEB), hosts.web.v6(WEB)] {
        for from in [&a, &b] {
            let mark = hosts.world.b().mark();
            let answer = get(from, to)?;
            ensure!(answer.code == 200, "{} to {to}: {answer:?}", from.name);
            let own = if to.is_ipv4() { host::v4(from.node) } else { host::v6(from.node) };
            ensure!(answer.echo()?["origin"] == own.to_string(), "{answer:?}");
            let line = hosts.world.b().logged(mark, "inbound", |_| true)?;
            ensure!(line["direction"] == "inbound" && line["security"] == "plaintext", "{line}");
        }
    }
    ensure!(capture.saw("canary-on-the-host")?, "this was in the clear, and on the wire");
    let marks = hosts.marks();
    // To a port that a unit has not declared, to a stranger, and over loopback: not through the daemon.
    let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
    for (from, to) in [
        (&a, hosts.web.v4(UNDECLARED)),
        (&b, hosts.web.v4(UNDECLARED)),
        (&b, hosts.web.v6(UNDECLARED)),
        (&hosts.client.pod, hosts.web.v4(UNDECLARED)),
        (&hosts.client.pod, hosts.web.v6(UNDECLARED)),
        (&hosts.client.pod, hosts.web.v4(6060)),
        (&hosts.other.pod, hosts.web.v4(6060)),
        (&b, loopback(WEB)),
        (&hosts.other.pod, loopback(WEB)),
        (&hosts.other.pod, loopback(6060)),
    ] {
        let answer = get(from, to)?;
        ensure!(answer.code == 200, "{} to {to}: {answer:?}", from.name);
    }
    // STRICT is for who is declared.
    hosts.world.change(|mesh| {
        mesh.namespace_mode("metal", "STRICT");
    })?;
    for to in [hosts.web.v4(WEB), hosts.web.v6(WEB)] {
        for from in [&a, &b] {
            let answer = get(from, to)?;
            ensure!(answer.exit == 56, "{} to {to}: {answer:?}", from.name);
            // Also when it says that it is loopback.
            let loopback = if to.is_ipv4() { "127.0.0.1" } else { "::1" };
            let url = format!("http://{to}/");
            let answer = curl::run(from, &["--interface", loopback, &url])?;
            ensure!(answer.code == 0, "{} to {to} from loopback: {answer:?}", from.name);
        }
    }
    for (from, to) in [(&a, hosts.web.v4(UNDECLARED)), (&b, hosts.web.v6(UNDECLARED))] {
        ensure!(get(from, to)?.code == 200, "{} to {to}", from.name);
    }
    let lines = hosts.world.a().process.stdout.json_after(marks.0);
    ensure!(lines.is_empty(), "through the daemon: {lines:?}");
    Ok(())
}

/// At the host's own address, which both units have.
#[test]
fn units_of_one_host_talk_mtls_to_each_other_and_to_themselves() -> Result<()> {
    let hosts = stand("STRICT")?;
    for (from, to, port) in [
        (&hosts.other, &hosts.web, WEB),
        (&hosts.web, &hosts.other, OTHER),
        (&hosts.web, &hosts.web, WEB),
    ] {
        for address in [to.v4(port), to.v6(port)] {
            let mark = hosts.world.b().mark();
            let answer = get(&from.pod, address)?;
            ensure!(answer.code == 200, "{} to {address}: {answer:?}", from.name);
            ensure!(answer.echo()?["origin"] == address.ip().to_string(), "{answer:?}");
            let line = hosts.world.b().logged(mark, "inbound", |line| {
                line["direction"] == "inbound" && line["workload"] == format!("metal/{}", to.name)
            })?;
            ensure!(line["security"] == "mutual_tls", "{line}");
            ensure!(line.to_string().contains(&format!("metal/sa/{}", from.name)), "{line}");
        }
    }
    Ok(())
}

/// What an application asks its sockets: the addresses that it would have without the daemon.
#[test]
fn a_unit_sees_the_addresses_that_it_asked_for() -> Result<()> {
    let mut hosts = stand("STRICT")?;
    hosts.servers.clear();
    let echo = serve(&hosts.web.pod, "echo", WEB)?;
    for to in [hosts.web.v4(WEB), hosts.web.v6(WEB)] {
        let mark = echo.stdout.len();
        let own = if to.is_ipv4() { host::v4(0) } else { host::v6(0) };
        let talk = open(&hosts.client.pod, to)?;
        let sees = event(&talk, 0, "open")?;
        let local: SocketAddr = sees["local"].as_str().context("an address")?.parse()?;
        ensure!(local.ip() == own && sees["peer"] == to.to_string(), "{sees}");
        let accepted = event(&echo, mark, "accepted")?;
        let peer: SocketAddr = accepted["peer"].as_str().context("a peer")?.parse()?;
        ensure!(peer.ip() == own, "{accepted}");
        ensure!(accepted["local"] == to.to_string(), "{accepted}");
    }
    Ok(())
}

#[test]
fn a_killed_daemon_shuts_its_units_and_nothing_else() -> Result<()> {
    let mut hosts = stand("STRICT")?;
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
    let mut hosts = stand("STRICT")?;
    let settings = |node: usize| -> Result<String> {
        let place = hosts.bed().nodes[node].place.clone();
        let mut command = place.command("sh")?;
        command.args([
            "-c",
            "ip rule; ip -6 rule; ip route show table all; sysctl -a 2>/dev/null | grep fwmark",
        ]);
        Ok(String::from_utf8(mtls_tests::process::output(command)?.stdout)?)
    };
    let with = [settings(0)?, settings(1)?];
    for text in &with {
        ensure!(!text.contains("28020") && !text.contains("0x6d746c73"), "{text}");
        ensure!(
            text.lines().filter(|line| line.contains("fwmark")).all(|l| l.ends_with("= 0")),
            "{text}"
        );
    }
    for daemon in &mut hosts.world.daemons {
        daemon.kill9()?;
        daemon.cleanup()?;
    }
    let pins: Vec<String> = leftovers::remains(&hosts.bed().prefix)
        .into_iter()
        .filter(|what| what.starts_with("pins"))
        .collect();
    assert_eq!(pins, Vec::<String>::new());
    let capture = Capture::start(hosts.world.node(0))?;
    for to in [hosts.web.v4(WEB), hosts.web.v6(WEB)] {
        ensure!(get(&hosts.client.pod, to)?.code == 200, "{to}");
    }
    ensure!(capture.saw("canary-on-the-host")?, "no daemon, no mTLS");
    Ok(())
}

/// A unit that is started again has another cgroup, of the same path.
#[test]
fn a_unit_that_is_started_again_is_known_again() -> Result<()> {
    let mut hosts = stand("STRICT")?;
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
    let hosts = stand("STRICT")?;
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
    ensure!(!capture.saw("canary-on-the-host")?, "it was not waited for long enough");
    let waited = wait(&stranger(hosts.bed(), 0)?, "300ms")?;
    let said = String::from_utf8_lossy(&waited.stderr);
    ensure!(waited.status.code() == Some(1) && said.contains("cgroup"), "{waited:?}");
    Ok(())
}

/// By its name, in whatever slice; processes below the unit's cgroup are its own.
#[test]
fn a_unit_is_found_by_its_name() -> Result<()> {
    let mut hosts = prepare()?;
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

/// Connections from before enrolment: a unit's own and those to its declared ports end, others do not.
#[test]
fn what_was_open_before_ends_where_policy_wants_mtls_and_nowhere_else() -> Result<()> {
    let mut hosts = prepare()?;
    hosts.world.mesh.namespace_mode("metal", "STRICT");
    let (a, b) = (stranger(hosts.bed(), 0)?, stranger(hosts.bed(), 1)?);
    for (pod, port) in [(&hosts.web.pod, WEB), (&hosts.web.pod, UNDECLARED), (&b, 6060)] {
        hosts.servers.push(serve(pod, "echo", port)?);
    }
    let ends = [
        open(&hosts.client.pod, hosts.web.v4(WEB))?,
        open(&a, hosts.web.v4(WEB))?,
        open(&b, hosts.web.v4(WEB))?,
        open(&hosts.other.pod, hosts.web.v6(WEB))?,
    ];
    let stays = [
        open(&hosts.client.pod, hosts.web.v4(UNDECLARED))?,
        open(&a, hosts.web.v4(UNDECLARED))?,
        open(&a, (host::v4(1), 6060).into())?,
        open(&hosts.other.pod, (host::v6(1), 6060).into())?,
        open(&b, ([127, 0, 0, 1], WEB).into())?,
    ];
    hosts.world.start(|spec| spec)?;
    for process in &ends {
        event(process, 0, "ended")?;
    }
    for process in &stays {
        let said = process.stdout.all();
        ensure!(said.len() == 1, "{said:?}");
    }
    Ok(())
}

#[test]
fn what_cannot_be_a_workload_is_refused_with_the_reason() -> Result<()> {
    let mut hosts = stand("STRICT")?;
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
    let mut hosts = prepare()?;
    hosts.world.mesh.write()?;
    let spec = DaemonSpec::new(hosts.bed(), 0).with("--without-kernel-feature", "cgroup_id");
    let daemon = spec.spawn()?;
    let entry = until(Duration::from_secs(30), "an answer", || {
        entry(&daemon, "metal/client").map_err(|error| format!("{error:#}"))
    })?;
    ensure!(entry["state"] == "refused" && entry["reason"].to_string().contains("5.7"), "{entry}");
    ensure!(daemon.status()?["kernel"]["without"] == json!(["cgroup_id"]));
    hosts.world.daemons.push(daemon);
    Ok(())
}

/// On a kernel that does not know the interface pods are reached as units are.
#[test]
fn hosts_are_the_same_on_a_kernel_before_5_17() -> Result<()> {
    let hosts =
        stand_with("STRICT", |spec| spec.with("--without-kernel-feature", "ingress_ifindex"))?;
    let marks = hosts.marks();
    let answer = get(&hosts.client.pod, hosts.web.v4(WEB))?;
    ensure!(answer.code == 200, "{answer:?}");
    ensure!(answer.echo()?["origin"] == host::v4(0).to_string(), "{answer:?}");
    hosts.mutual(marks, "client", "web")
}

/// Nobody is taken out of the mesh by somebody else's refusal, and a workload that is taken out leaves
/// the other's ports alone.
#[test]
fn one_of_two_units_is_taken_away() -> Result<()> {
    let mut hosts = stand("STRICT")?;
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
    let programs = hosts.world.b().status()?["kernel"]["programs"].clone();
    ensure!(programs.get("mtls_host").is_none(), "{programs}");
    Ok(())
}

/// Pods and units of the same node and of another: each is known by what it is.
#[test]
fn pods_and_units_talk_to_each_other() -> Result<()> {
    let mut world = World::without_daemons(&[])?;
    let (client, web) = {
        let bed = &world.bed;
        (Unit::new(bed, 0, "client", &[])?, Unit::new(bed, 1, "web", &[WEB])?)
    };
    client.enrol(&mut world.mesh, &world.bed);
    web.enrol(&mut world.mesh, &world.bed);
    world.mesh.namespace_mode("istio-system", "STRICT");
    world.start(|spec| spec)?;
    let _server = serve(&web.pod, "http", WEB)?;
    let pod = world.pod("httpbin-full").v4(80);
    for (from, to, who) in [
        (&client.pod, web.v4(WEB), "metal/sa/client"),
        (&client.pod, pod, "metal/sa/client"),
        (&web.pod, pod, "metal/sa/web"),
        (world.pod("sleep-full"), web.v4(WEB), "full/sa/sleep"),
        (world.pod("httpbin-full"), web.v4(WEB), "full/sa/httpbin"),
    ] {
        let mark = world.b().mark();
        let answer = get(from, to)?;
        ensure!(answer.code == 200, "{} to {to}: {answer:?}", from.name);
        let line = world.b().logged(mark, "inbound", |line| line["direction"] == "inbound")?;
        ensure!(line["security"] == "mutual_tls" && line.to_string().contains(who), "{line}");
    }
    // Neither is a pod in the mesh because its node has units, nor the other way round.
    let legacy = world.pod("sleep-legacy");
    ensure!(get(legacy, web.v4(WEB))?.code == 0, "plaintext to a STRICT unit");
    ensure!(get(legacy, web.v4(UNDECLARED))?.exit == 7, "nobody listens there");
    Ok(())
}

/// What an earlier daemon left shut stays shut while the workload that it could be cannot be enrolled, and
/// is put back once nobody could be meant.
#[test]
fn what_a_dead_daemon_left_is_adopted_kept_shut_or_put_back() -> Result<()> {
    let mut hosts = stand("STRICT")?;
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
