//! Workloads of one host that want the same port, or the same cgroup, and a port that a connection of the
//! daemon's had: nobody gets at an application around its policy.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mtls_tests::client::{self, connect_socket, listening_ports, read_to_end};
use mtls_tests::daemon::HTTP;
use mtls_tests::host::{self, Unit, stranger};
use mtls_tests::hosts::{Hosts, WEB, entry, get, open_silent};
use mtls_tests::servers::nginx_deferred;
use mtls_tests::wait::until;
use mtls_tests::{Daemon, Pod, cgroup, curl};
use serde_json::{Value, json};

/// An application at the node's own address alone: the daemon's listeners are on loopback.
fn listen(pod: &Pod, port: u16) -> Result<TcpListener> {
    pod.inside(|| {
        let listener = TcpListener::bind((host::v4(pod.node), port))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    })
}

fn nobody_came(listener: &TcpListener) -> Result<()> {
    match listener.accept() {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        other => anyhow::bail!("the application has a connection: {other:?}"),
    }
}

/// By chance one unit's port is the one that the daemon listens on for another.
#[test]
fn a_declared_port_is_never_lost_to_another_units_listener() -> Result<()> {
    let mut hosts = Hosts::prepare()?;
    hosts.world.mesh.namespace_mode("metal", "STRICT");
    hosts.world.start(|spec| spec)?;
    // One of these is where `web`'s own connections are led to.
    let inside = stranger(hosts.bed(), 1)?;
    let mut ports = inside.inside(listening_ports)?;
    ports.sort_unstable();
    ports.dedup();
    ports.retain(|port| !HTTP.ends_with(&format!(":{port}")));
    ensure!(ports.len() >= 4, "two units, two directions: {ports:?}");
    let late = Unit::new(hosts.bed(), 1, "late", &ports)?;
    let bed = &hosts.world.bed;
    late.enrol(&mut hosts.world.mesh, bed);
    hosts.world.change(|_| {})?;
    ensure!(entry(hosts.world.b(), "metal/late")?["state"] == "enrolled");
    let applications: Vec<TcpListener> =
        ports.iter().map(|port| listen(&late.pod, *port)).collect::<Result<_>>()?;
    let outside = stranger(hosts.bed(), 0)?;
    let shut = || -> Result<()> {
        for (port, application) in ports.iter().zip(&applications) {
            let place = late.v4(*port);
            let url = format!("http://{place}/");
            let answer = curl::run(&outside, &["--max-time", "2", &url])?;
            ensure!(answer.code == 0, "{place}: {answer:?}");
            nobody_came(application).with_context(|| place.to_string())?;
        }
        Ok(())
    };
    shut()?;
    // The other ones' rows are written again.
    hosts.world.change(|mesh| {
        for name in ["web", "other"] {
            let labels = json!({"app": name, "security.istio.io/tlsMode": "istio", "version": "2"});
            let spec = json!({"address": host::v4(1), "serviceAccount": name, "labels": labels});
            let name = format!("{name}-v4");
            mesh.put("networking.istio.io/v1", "WorkloadEntry", "metal", &name, spec);
        }
    })?;
    shut()?;
    // And a new daemon takes no port that is declared, though nobody listens there.
    drop(applications);
    hosts.world.daemons[1].kill9()?;
    hosts.world.daemons[1].restart()?;
    let taken = inside.inside(listening_ports)?;
    ensure!(taken.len() >= 6 && !ports.iter().any(|port| taken.contains(port)), "{taken:?}");
    Ok(())
}

/// A path and a unit's name can be one cgroup.
#[test]
fn a_cgroup_has_one_workload_by_whatever_name() -> Result<()> {
    let mut hosts = Hosts::prepare()?;
    let prefix = hosts.bed().prefix.clone();
    let name = format!("{prefix}-twin.service");
    let path = format!("{prefix}-tests.slice/{name}");
    let node = hosts.bed().nodes[0].name.clone();
    let mesh = &mut hosts.world.mesh;
    for (twin, key, value) in [("first", "cgroup", &path), ("second", "systemdUnit", &name)] {
        let spec = json!({"address": host::v4(0), "serviceAccount": twin});
        mesh.put("networking.istio.io/v1", "WorkloadEntry", "metal", twin, spec);
        let mut place = json!({"node": node, "ports": [], "workloadEntries": [twin]});
        place[key] = json!(value);
        mesh.put("mtls-ebpf.dev/v1alpha1", "NodeWorkload", "metal", twin, place);
    }
    hosts.world.start(|spec| spec)?;
    // It comes while both wait for it: one has it, the other says who.
    let directory = cgroup::make(&path)?.context("a cgroup")?;
    let said = one_is_known(hosts.world.a())?;
    ensure!(said.contains("already enrolled as metal/"), "{said}");
    // The same when it is there first.
    hosts.world.daemons[0].kill9()?;
    hosts.world.daemons[0].process = mtls_tests::process::Process::start(
        "the next daemon",
        hosts.world.daemons[0].spec.command()?,
    )?;
    let said = one_is_known(hosts.world.a())?;
    ensure!(said.contains("already enrolled as metal/first"), "{said}");
    cgroup::remove(&directory)
}

/// One of the twins has the cgroup; what the other says.
fn one_is_known(daemon: &Daemon) -> Result<String> {
    let look = || -> Result<String> {
        let [first, second] = [entry(daemon, "metal/first")?, entry(daemon, "metal/second")?];
        let known = |entry: &Value| entry["cgroup_id"].is_u64();
        ensure!(known(&first) != known(&second), "{first}\n{second}");
        let said = [&first, &second].into_iter().find_map(|entry| entry["reason"].as_str());
        Ok(said.context("no reason")?.to_owned())
    };
    until(Duration::from_secs(10), "one of them", || look().map_err(|error| format!("{error:#}")))
}

/// The daemon reaches applications of the host from loopback, and knows its own connections by their
/// addresses and ports. One that the application never accepted must not be known after its end.
#[test]
fn a_port_that_the_daemon_had_lets_nobody_in() -> Result<()> {
    let mut hosts = Hosts::prepare()?;
    hosts.world.mesh.namespace_mode("metal", "STRICT");
    hosts.world.start(|spec| spec)?;
    let _server = nginx_deferred(&hosts.web.pod, &hosts.bed().directory, hosts.web.v4(WEB))?;
    ensure!(get(&hosts.client.pod, hosts.web.v4(WEB))?.code == 200);
    // From here on the daemon waits for an accept that waits for bytes.
    let silent = open_silent(&hosts.client.pod, hosts.web.v4(WEB))?;
    let inside = stranger(hosts.bed(), 1)?;
    let leg = until(Duration::from_secs(10), "the daemon to connect", || {
        leg(&inside, WEB).map_err(|error| format!("{error:#}"))?.ok_or_else(|| "none".to_owned())
    })?;
    drop(silent);
    until(Duration::from_secs(10), "the daemon to hang up", || match leg_is_open(&inside, leg) {
        Ok(false) => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let to = hosts.web.v4(WEB);
    let knock = || -> Result<Vec<u8>> {
        let socket = client::socket(to, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, leg)).into())?;
        let mut stream = connect_socket(socket, to)?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").ok();
        Ok(read_to_end(&mut stream)?.0)
    };
    // The kernel may keep the port for a second after the daemon's connection: that refuses nobody. And to be
    // refused is an answer.
    let answer = until(Duration::from_secs(10), "the port", || match inside.inside(knock) {
        Ok(answer) => Ok(answer),
        Err(error) => match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
            Some(ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset) => Ok(Vec::new()),
            _ => Err(format!("{error:#}")),
        },
    })?;
    let answer = String::from_utf8_lossy(&answer);
    ensure!(!answer.contains("deferred"), "plaintext from port {leg}, under STRICT: {answer}");
    Ok(())
}

/// The port of a connection from loopback to `port` of the node's own address, as the kernel lists it.
fn leg(inside: &Pod, port: u16) -> Result<Option<u16>> {
    inside.inside(|| Ok(legs(port)?.first().copied()))
}

fn leg_is_open(inside: &Pod, leg: u16) -> Result<bool> {
    inside.inside(|| Ok(legs(WEB)?.contains(&leg)))
}

fn legs(port: u16) -> Result<Vec<u16>> {
    const ESTABLISHED: &str = "01";
    let text = std::fs::read_to_string("/proc/thread-self/net/tcp")?;
    let legs = text.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
        let from = local.strip_prefix("0100007F:")?;
        let to = u16::from_str_radix(remote.rsplit_once(':')?.1, 16).ok()?;
        (to == port && state == ESTABLISHED).then(|| u16::from_str_radix(from, 16).ok())?
    });
    Ok(legs.collect())
}
