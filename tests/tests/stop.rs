//! The daemon ends when it is told to, whatever it waits for.
#![forbid(unsafe_code)]

use std::fs;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mtls_tests::wait::patience;
use mtls_tests::{DaemonSpec, World, netns};
use serde_json::json;

/// Less than a name is waited for.
const SOON: Duration = Duration::from_secs(4);

#[test]
fn a_resolver_that_never_answers_keeps_no_daemon_from_its_end() -> Result<()> {
    let mut world = World::without_daemons(&[])?;
    // It hears every question, and says nothing.
    let resolver = netns::inside(&world.node(0).place.netns, || {
        UdpSocket::bind("127.0.0.1:53").context("the DNS port of the node")
    })?;
    let settings = world.bed.directory.join("resolv.conf");
    fs::write(&settings, "nameserver 127.0.0.1\noptions timeout:30 attempts:1\n")?;
    let ports = json!([{"number": 80, "name": "http", "protocol": "HTTP"}]);
    let spec = json!({"hosts": ["silent.test"], "resolution": "DNS", "ports": ports});
    world.mesh.put("networking.istio.io/v1", "ServiceEntry", "full", "silent", spec);
    world.mesh.write()?;
    let bind = format!("mount --bind {} /etc/resolv.conf && exec \"$@\"", settings.display());
    let mut daemon = DaemonSpec::new(&world.bed, 0)
        .with("--drain", "0s")
        .under(&["unshare", "--mount", "sh", "-c", &bind, "sh"])
        .start()?;

    // What was asked at the start was given up; the next question is one that is waited for.
    resolver.set_nonblocking(true)?;
    let mut question = [0; 512];
    while resolver.recv(&mut question).is_ok() {}
    resolver.set_nonblocking(false)?;
    resolver.set_read_timeout(Some(patience(Duration::from_secs(30))))?;
    resolver.recv(&mut question).context("the name is asked for again")?;
    let told = Instant::now();
    let status = daemon.term()?;
    ensure!(status.success(), "{status}");
    ensure!(told.elapsed() < patience(SOON), "it ended after {:?}", told.elapsed());
    Ok(())
}
