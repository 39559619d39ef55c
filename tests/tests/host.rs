//! Workloads that share a host's network namespace with everything else that runs there: their traffic.
//!
//! The host is a node of the testbed, with the daemon in it and no pods; a workload is a cgroup.
#![forbid(unsafe_code)]

use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use mtls_tests::daemon::LOG;
use mtls_tests::host::{self, Unit, stranger};
use mtls_tests::hosts::{CANARY, Hosts, OTHER, UNDECLARED, WEB, get, open};
use mtls_tests::world::{event, serve};
use mtls_tests::{Capture, World, client, curl, wait};
use serde_json::json;

/// STRICT on both sides, over both families: the wire has TLS only, and each daemon knows who talks.
#[test]
fn units_of_two_hosts_talk_mtls() -> Result<()> {
    let hosts = Hosts::stand("STRICT")?;
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
    ensure!(!capture.saw(CANARY)?, "plaintext crossed");
    // Two units at one address: the port says which.
    let marks = hosts.marks();
    let answer = get(&hosts.client.pod, hosts.other.v4(OTHER))?;
    ensure!(answer.code == 200, "{answer:?}");
    hosts.mutual(marks, "client", "other")
}

#[test]
fn policy_knows_a_unit_by_its_principal() -> Result<()> {
    let mut hosts = Hosts::stand("STRICT")?;
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
    let mut hosts = Hosts::stand("PERMISSIVE")?;
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
    ensure!(capture.saw(CANARY)?, "this was in the clear, and on the wire");
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
    // The lines of one that is through both come after any of those, and alone.
    let last = hosts.marks();
    ensure!(get(&hosts.client.pod, hosts.web.v4(WEB))?.code == 200);
    hosts.mutual(last, "client", "web")?;
    for (daemon, mark) in [(hosts.world.a(), marks.0), (hosts.world.b(), marks.1)] {
        let lines = daemon.process.stdout.json_after(mark);
        ensure!(lines.len() == 1, "through the daemon: {lines:?}");
    }
    let marks = hosts.marks();
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
    let last = hosts.marks();
    ensure!(get(&hosts.client.pod, hosts.web.v4(WEB))?.code == 200);
    hosts.mutual(last, "client", "web")?;
    let lines = hosts.world.a().process.stdout.json_after(marks.0);
    ensure!(lines.len() == 1, "through the daemon: {lines:?}");
    let declared = format!(":{WEB}");
    for line in hosts.world.b().process.stdout.json_after(marks.1) {
        let to = line["destination"]["address"].as_str().context("an address")?;
        ensure!(to.ends_with(&declared), "through the daemon: {line}");
    }
    Ok(())
}

/// At the host's own address, which both units have.
#[test]
fn units_of_one_host_talk_mtls_to_each_other_and_to_themselves() -> Result<()> {
    let hosts = Hosts::stand("STRICT")?;
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
    let mut hosts = Hosts::stand("STRICT")?;
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

/// Connections from before enrolment: a unit's own and those to its declared ports end, others do not.
#[test]
fn what_was_open_before_ends_where_policy_wants_mtls_and_nowhere_else() -> Result<()> {
    let mut hosts = Hosts::prepare()?;
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

/// On a kernel that does not know the interface pods are reached as units are.
#[test]
fn hosts_are_the_same_on_a_kernel_before_5_17() -> Result<()> {
    let hosts = Hosts::stand_with("STRICT", |spec| {
        spec.with("--without-kernel-feature", "ingress_ifindex")
    })?;
    let marks = hosts.marks();
    let answer = get(&hosts.client.pod, hosts.web.v4(WEB))?;
    ensure!(answer.code == 200, "{answer:?}");
    ensure!(answer.echo()?["origin"] == host::v4(0).to_string(), "{answer:?}");
    hosts.mutual(marks, "client", "web")
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
        // (the line of the connection before may come late)
        let line = world.b().logged(mark, who, |line| {
            line["direction"] == "inbound"
                && line["destination"]["address"] == to.to_string()
                && line.to_string().contains(who)
        })?;
        ensure!(line["security"] == "mutual_tls", "{line}");
    }
    // Neither is a pod in the mesh because its node has units, nor the other way round.
    let legacy = world.pod("sleep-legacy");
    ensure!(get(legacy, web.v4(WEB))?.code == 0, "plaintext to a STRICT unit");
    ensure!(get(legacy, web.v4(UNDECLARED))?.exit == 7, "nobody listens there");
    Ok(())
}

/// Who is not redirected gets nothing, and fills no log however often they try.
#[test]
fn a_stranger_at_the_daemons_listener_is_counted_and_not_logged_each_time() -> Result<()> {
    const TRIES: u32 = 1000;
    let hosts = Hosts::stand("STRICT")?;
    let daemon = hosts.world.a();
    let status = daemon.status()?;
    let workloads = status["workloads"].as_array().context("workloads")?;
    let port = workloads[0]["ports"]["outbound"].as_u64().context("an outbound port")?;
    let listener = SocketAddr::from(([127, 0, 0, 1], u16::try_from(port)?));
    let mark = daemon.process.stderr.len();
    stranger(hosts.bed(), 0)?.inside(|| {
        for _ in 0..TRIES {
            // The reset may be here before connect is done.
            let (said, end) = match TcpStream::connect(listener) {
                Ok(mut stream) => client::read_to_end(&mut stream)?,
                Err(error) => (Vec::new(), client::End::of(error)?),
            };
            ensure!(said.is_empty() && end == client::End::Broken, "{end:?}: {said:?}");
        }
        Ok(())
    })?;
    let counted = || {
        let reason = "reason=\"no_original_destination\"";
        daemon.metric("mtls_connections_failed_total", &[reason]).unwrap_or_default()
    };
    wait::eventually(LOG, "each to be counted", || counted() == f64::from(TRIES))?;
    let is = |line: &str| line.contains("connection refused");
    daemon.said(mark, "that they are refused", is)?;
    // One a worker, of which there are at most 16, in a while.
    let lines = daemon.process.stderr.all();
    let lines = lines.iter().skip(mark).filter(|line| is(line)).count();
    ensure!(lines <= 64, "{lines} lines");
    Ok(())
}
