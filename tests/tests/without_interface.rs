//! Kernels before 5.17 do not tell `sk_lookup` programs the interface. The daemon then reaches
//! applications from loopback addresses; here it is told to do so on any kernel.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mtls_tests::client::{self, Conversation, End, connect_socket, converse, ping, socket};
use mtls_tests::wait::eventually;
use mtls_tests::world::{To, event, serve};
use mtls_tests::{Capture, DaemonSpec, Pod, World, apps, process};

const PORT: u16 = 9000;

fn without(spec: DaemonSpec) -> DaemonSpec {
    spec.with("--without-kernel-feature", "ingress_ifindex")
}

fn stand() -> Result<World> {
    World::with(&[], |_, _| {}, without)
}

fn strict(world: &mut World) -> Result<()> {
    world.change(|mesh| {
        mesh.mode("full", "httpbin", "STRICT");
    })
}

/// Ports on loopback from which the daemon reaches the application of `pod` now.
fn legs(pod: &Pod) -> Result<Vec<SocketAddr>> {
    let mut command = Command::new("ss");
    command.args(["-N", &pod.netns, "-Htn", "state", "established"]);
    command.arg(format!("sport = :{PORT}"));
    let output = process::output(command)?;
    ensure!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout)?;
    let peers = text.lines().filter_map(|line| line.split_whitespace().nth(3));
    let addresses = peers.filter_map(|peer| Some(apps::plain(peer.parse().ok()?)));
    Ok(addresses.filter(|address| address.ip().is_loopback()).collect())
}

#[test]
fn status_says_what_is_done_without() -> Result<()> {
    let world = stand()?;
    let status = world.b().status()?;
    ensure!(status["kernel"]["without"] == serde_json::json!(["ingress_ifindex"]), "{status}");
    Ok(())
}

#[test]
fn an_unknown_feature_is_a_usage_error() -> Result<()> {
    let world = World::without_daemons(&[])?;
    world.mesh.write()?;
    let spec = DaemonSpec::new(&world.bed, 0).with("--without-kernel-feature", "wheels");
    let (status, words) = spec.refused()?;
    ensure!(status.code() == Some(2) && words.contains("ingress_ifindex"), "{status}: {words}");
    Ok(())
}

/// A socket for both families shows IPv4 clients as v4-mapped, one for IPv4 as they are.
#[test]
fn the_application_sees_its_clients() -> Result<()> {
    let world = stand()?;
    let server = world.pod("httpbin-full");
    let both = serve(server, "echo", PORT)?;
    for (from, to) in [
        ("sleep-full", To::Full.v4(PORT)),
        ("sleep-full", To::Full.v6(PORT)),
        ("sleep-full", server.v6(PORT)),
        ("sleep-legacy", server.v4(PORT)),
        ("sleep-legacy", server.v6(PORT)),
    ] {
        let client = world.pod(from);
        let mark = both.stdout.len();
        let talk = client.inside(|| converse(to, "whoami"))?;
        let Conversation::Echoed { local, .. } = talk else { anyhow::bail!("{to}: {talk:?}") };
        let accepted = event(&both, mark, "accepted")?;
        let peer: SocketAddr = accepted["peer"].as_str().context("a peer")?.parse()?;
        ensure!(client.has(peer.ip()), "{from} to {to}: {accepted}");
        // In the clear even the port is the client's own.
        ensure!(from == "sleep-full" || peer == local, "{from} at {local} to {to}: {accepted}");
        let own: SocketAddr = accepted["local"].as_str().context("an address")?.parse()?;
        ensure!(server.has(own.ip()) && own.port() == PORT, "{from} to {to}: {accepted}");
    }
    Ok(())
}

#[test]
fn accept_and_getpeername_agree_for_each_family() -> Result<()> {
    let world = stand()?;
    let (server, client) = (world.pod("httpbin-full"), world.pod("sleep-legacy"));
    let v4 = server.inside(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?))?;
    let v6 = server.inside(|| Ok(TcpListener::bind((server.v6(0).ip(), PORT))?))?;
    for (listener, to) in [(v4, server.v4(PORT)), (v6, server.v6(PORT))] {
        std::thread::scope(|scope| -> Result<()> {
            let accepted = scope.spawn(|| listener.accept());
            let mut stream = client.inside(|| client::connect(to))?;
            // The server's end is there once something was said.
            std::io::Write::write_all(&mut stream, b"!")?;
            let (server, peer) = accepted.join().expect("no panic")?;
            ensure!(peer == stream.local_addr()?, "{to}: {peer} for {stream:?}");
            ensure!(server.peer_addr()? == peer, "{server:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn modes_hold_in_both_families() -> Result<()> {
    let mut world = stand()?;
    world.serve("httpbin-full", "echo", PORT)?;
    let server = world.pod("httpbin-full").clone();
    let capture = Capture::start(world.node(0))?;
    for to in [server.v4(PORT), server.v6(PORT)] {
        let talk = world.pod("sleep-legacy").inside(|| converse(to, "plain"))?;
        ensure!(talk.worked(), "PERMISSIVE, {to}: {talk:?}");
    }
    strict(&mut world)?;
    for to in [server.v4(PORT), server.v6(PORT)] {
        let talk = world.pod("sleep-legacy").inside(|| converse(to, "plain"))?;
        ensure!(talk == Conversation::Ended(End::Broken), "STRICT, {to}: {talk:?}");
        let mark = world.b().mark();
        let talk = world.pod("sleep-full").inside(|| converse(to, "canary"))?;
        ensure!(talk.worked(), "STRICT, {to}: {talk:?}");
        // (the line of the refusal may come late)
        world.b().logged(mark, "mTLS", |line| {
            line["direction"] == "inbound" && line["security"] == "mutual_tls"
        })?;
    }
    ensure!(!capture.saw("canary")?, "plaintext crossed");
    Ok(())
}

/// The way to itself through a service also comes from loopback, and is the daemon's to take.
#[test]
fn a_pods_call_of_its_own_service_is_mtls_and_of_its_own_address_untouched() -> Result<()> {
    let mut world = stand()?;
    strict(&mut world)?;
    let server = world.pod("httpbin-full");
    let echo = serve(server, "echo", PORT)?;
    for to in [To::Full.v4(PORT), To::Full.v6(PORT)] {
        let mark = world.b().mark();
        let talk = server.inside(|| converse(to, "hairpin"))?;
        ensure!(talk.worked(), "{to}: {talk:?}");
        let line = world.b().logged(mark, "inbound", |line| line["direction"] == "inbound")?;
        ensure!(line["security"] == "mutual_tls", "{line}");
        world.b().logged(mark, "outbound", |line| line["direction"] == "outbound")?;
    }
    let log = world.b().mark();
    let loopbacks: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let loopbacks = loopbacks.map(|address| SocketAddr::new(address, PORT));
    for to in [server.v4(PORT), server.v6(PORT)].into_iter().chain(loopbacks) {
        let mark = echo.stdout.len();
        let talk = server.inside(|| converse(to, "me"))?;
        let Conversation::Echoed { local, .. } = talk else { anyhow::bail!("{to}: {talk:?}") };
        let accepted = event(&echo, mark, "accepted")?;
        ensure!(accepted["peer"] == local.to_string(), "{to}: {accepted}");
    }
    let lines = world.b().process.stdout.json_after(log);
    ensure!(lines.is_empty(), "{lines:?}");
    Ok(())
}

/// Whether plaintext is answered on a connection from `own`. That it connects is the daemon's doing: bytes
/// that never left would not have been refused.
fn plain(pod: &Pod, own: SocketAddr, to: SocketAddr) -> Result<bool> {
    pod.inside(|| {
        let from = socket(to, None)?;
        from.bind(&own.into())?;
        let mut stream = connect_socket(from, to)?;
        Ok(ping(&mut stream, "plain").is_ok())
    })
}

/// An open connection's port lets nobody else in: neither a client outside that has it, nor the pod's
/// own process that comes from loopback.
#[test]
fn a_port_that_the_daemon_uses_opens_nothing() -> Result<()> {
    let mut world = stand()?;
    world.serve("httpbin-full", "echo", PORT)?;
    strict(&mut world)?;
    let server = world.pod("httpbin-full");
    let mut open = world.pod("sleep-full").inside(|| client::connect(To::Full.v4(PORT)))?;
    ping(&mut open, "hello")?;
    let legs = legs(server)?;
    let [leg] = legs.as_slice() else { anyhow::bail!("connections from loopback: {legs:?}") };
    ensure!(leg.ip() == Ipv4Addr::LOCALHOST, "{leg}");
    for to in [server.v4(PORT), server.v6(PORT)] {
        let own: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let passed = plain(world.pod("sleep-legacy"), SocketAddr::new(own, leg.port()), to)?;
        ensure!(!passed, "from port {} to {to}", leg.port());
    }
    // From loopback within, at another port: the daemon's to judge, like a call of the pod's own service.
    let passed = plain(server, (Ipv4Addr::LOCALHOST, 0).into(), server.v4(PORT))?;
    ensure!(!passed, "plaintext passed a STRICT port from loopback");
    ping(&mut open, "still there")
}

/// A neighbour on the same bridge claims to be loopback. Its packets do arrive (shown by switching the
/// kernel's own check off), and the kernel drops them before any lookup.
#[test]
fn packets_from_outside_that_claim_to_be_loopback_do_not_come_in() -> Result<()> {
    let mut world = stand()?;
    world.serve("httpbin-full", "echo", PORT)?;
    let (server, neighbour) = (world.pod("httpbin-full"), world.pod("httpbin-legacy"));
    setting(neighbour, "route_localnet", "1")?;
    let knock = || {
        neighbour.inside(|| {
            let from = socket(server.v4(PORT), None)?;
            from.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
            from.bind_device(Some(b"eth0"))?;
            let result = from.connect_timeout(&server.v4(PORT).into(), Duration::from_millis(300));
            ensure!(result.is_err(), "nobody can answer");
            Ok(())
        })
    };
    let decided = || -> Result<f64> {
        let decisions = ["inbound_taken", "inbound_local", "inbound_untouched"];
        decisions.iter().map(|name| world.b().decided(name)).sum()
    };
    let before = decided()?;
    knock()?;
    ensure!(decided()? == before, "it was looked up");
    for name in ["route_localnet", "accept_local"] {
        setting(server, name, "1")?;
    }
    setting(server, "rp_filter", "0")?;
    eventually(Duration::from_secs(10), "it to be looked up without the kernel's check", || {
        knock().is_ok() && decided().is_ok_and(|now| now > before)
    })
}

fn setting(pod: &Pod, name: &str, value: &str) -> Result<()> {
    pod.inside(|| {
        for interface in ["all", "eth0"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/{name}"), value)?;
        }
        Ok(())
    })
}

#[test]
fn a_namespace_that_lets_loopback_in_from_outside_is_refused() -> Result<()> {
    let world = World::without_daemons(&[])?;
    world.mesh.write()?;
    setting(world.pod("httpbin-full"), "route_localnet", "1")?;
    let daemon = without(DaemonSpec::new(&world.bed, 1)).spawn()?;
    let reason = mtls_tests::until(Duration::from_secs(10), "a refusal", || {
        let status = daemon.status().map_err(|error| error.to_string())?;
        let workloads = status["workloads"].as_array().ok_or("no workloads")?;
        let entry = workloads.iter().find(|entry| entry["workload"] == "full/httpbin-full");
        let entry = entry.ok_or("it is not there")?;
        match entry["state"].as_str() {
            Some("refused") => Ok(entry["reason"].to_string()),
            _ => Err(entry.to_string()),
        }
    })?;
    ensure!(reason.contains("route_localnet"), "{reason}");
    let status = daemon.status()?;
    ensure!(status["ready"] == false, "{status}");
    // The others are served.
    ensure!(status.to_string().contains("\"state\":\"enrolled\""), "{status}");
    Ok(())
}
