//! What policy leaves in the clear is the application's own connection, from end to end.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use mtls_tests::client::{self, Conversation, End, converse, ping};
use mtls_tests::daemon::Daemon;
use mtls_tests::process::Process;
use mtls_tests::world::{To, event, serve};
use mtls_tests::{Pod, PodSpec, World, wait};

const PORT: u16 = 9000;

/// Decisions that would give a connection to the daemon.
const TAKEN: [&str; 2] = ["outbound_redirected", "inbound_taken"];

/// Talks to `to`, and checks that the server accepted the client's own socket: same address, same
/// port. A relayed connection has another port, and a line in an access log. The kernel programs
/// count it as `decision`, and as nothing that would give it to the daemon.
fn check_own(
    client: &Pod,
    echo: &Process,
    to: SocketAddr,
    daemon: &Daemon,
    decision: &str,
) -> Result<()> {
    let (mark, log) = (echo.stdout.len(), daemon.mark());
    let decided = daemon.decided(decision)?;
    let taken = TAKEN.map(|taken| daemon.decided(taken).map_err(|error| error.to_string()));
    let talk = client.inside(|| converse(to, "my own"))?;
    let Conversation::Echoed { local, peer } = talk else { anyhow::bail!("{to}: {talk:?}") };
    ensure!(peer == to, "getpeername: {peer}");
    ensure!(client.has(local.ip()), "getsockname: {local}");
    let accepted = event(echo, mark, "accepted")?;
    ensure!(accepted["peer"] == local.to_string(), "from {local}: {accepted}");
    let now = daemon.decided(decision)?;
    ensure!(now == decided + 1.0, "{to}: {decision} was {decided} and is {now}");
    let taken_now = TAKEN.map(|taken| daemon.decided(taken).map_err(|error| error.to_string()));
    ensure!(taken_now == taken, "{to}: {TAKEN:?} were {taken:?} and are {taken_now:?}");
    // Lines come in order: one about a later connection shows that none came about this one.
    let lines = daemon.process.stdout.json_after(log);
    ensure!(lines.is_empty(), "the daemon had a part in it: {lines:?}");
    Ok(())
}

#[test]
fn outbound_to_a_known_plaintext_server_and_to_outside_the_mesh() -> Result<()> {
    let outside = PodSpec::new(1, "outside", 1)
        .at(Some(Ipv4Addr::new(192, 0, 2, 10)), Some("2001:db8::10".parse()?));
    let world = World::with(&[outside], |_, _| {}, |spec| spec)?;
    let client = world.pod("sleep-full");
    for (name, decision) in
        [("httpbin-legacy", "outbound_untouched_policy"), ("outside", "outbound_untouched_outside")]
    {
        let server = world.pod(name);
        let echo = serve(server, "echo", PORT)?;
        check_own(client, &echo, server.v4(PORT), world.a(), decision)?;
        check_own(client, &echo, server.v6(PORT), world.a(), decision)?;
    }
    // After all that, a connection of the daemon's has the first line.
    let _echo = serve(world.pod("httpbin-full"), "echo", PORT)?;
    let redirected = world.a().decided("outbound_redirected")?;
    ensure!(client.inside(|| converse(To::Full.v4(PORT), "not mine"))?.worked());
    ensure!(world.a().decided("outbound_redirected")? == redirected + 1.0);
    let line = world.a().logged(0, "the first", |_| true)?;
    ensure!(line["destination"]["address"] == To::Full.v4(PORT).to_string(), "{line}");
    Ok(())
}

#[test]
fn an_unknown_destination_inside_the_meshs_ranges_is_the_daemons_to_resolve() -> Result<()> {
    let world = World::with(&[PodSpec::new(1, "stranger", 50)], |_, _| {}, |spec| spec)?;
    let server = world.pod("stranger");
    let _echo = serve(server, "echo", PORT)?;
    let talk = world.pod("sleep-full").inside(|| converse(server.v4(PORT), "who is it?"))?;
    ensure!(talk.worked(), "{talk:?}");
    let line = world.a().logged(0, "about it", |line| line["direction"] == "outbound")?;
    ensure!(line["destination"]["address"] == server.v4(PORT).to_string(), "{line}");
    ensure!(line["security"] == "plaintext", "{line}");
    Ok(())
}

#[test]
fn inbound_when_the_port_is_disabled() -> Result<()> {
    let mut world = World::new()?;
    let server = world.pod("httpbin-full").clone();
    let echo = serve(&server, "echo", PORT)?;
    world.change(|mesh| {
        mesh.mode_by_port("full", "httpbin", "STRICT", &[(PORT, "DISABLE")]);
    })?;
    let client = world.pod("sleep-legacy");
    check_own(client, &echo, server.v4(PORT), world.b(), "inbound_untouched")?;
    check_own(client, &echo, server.v6(PORT), world.b(), "inbound_untouched")?;
    // Another port of the same workload is the daemon's.
    let (taken, untouched) =
        (world.b().decided("inbound_taken")?, world.b().decided("inbound_untouched")?);
    ensure!(!client.inside(|| converse(server.v4(80), "GET"))?.worked(), "it is STRICT");
    ensure!(world.b().decided("inbound_taken")? > taken);
    ensure!(world.b().decided("inbound_untouched")? == untouched);
    Ok(())
}

#[test]
fn the_end_of_an_inbound_bypass_ends_its_connections() -> Result<()> {
    let mut world = World::new()?;
    let server = world.pod("httpbin-full").clone();
    let _echo = serve(&server, "echo", PORT)?;
    world.change(|mesh| {
        mesh.mode("full", "httpbin", "DISABLE");
    })?;
    let mut stream = world.pod("sleep-legacy").inside(|| client::connect(server.v4(PORT)))?;
    ping(&mut stream, "open")?;
    world.change(|mesh| {
        mesh.mode("full", "httpbin", "STRICT");
    })?;
    check_ended(stream)
}

#[test]
fn the_end_of_an_outbound_bypass_ends_its_connections() -> Result<()> {
    let mut world = World::new()?;
    let server = world.pod("httpbin-legacy").clone();
    let _echo = serve(&server, "echo", PORT)?;
    let mut stream = world.pod("sleep-full").inside(|| client::connect(server.v4(PORT)))?;
    ping(&mut stream, "open")?;
    // From now on the server is said to speak mTLS: plaintext to it is no longer right.
    world.change(|mesh| {
        mesh.workload(&server, "legacy", "httpbin", "default", true);
    })?;
    check_ended(stream)
}

fn check_ended(mut stream: std::net::TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (bytes, end) = client::read_to_end(&mut stream)?;
    assert_eq!((bytes.as_slice(), end), (&b""[..], End::Broken));
    Ok(())
}

#[test]
fn a_change_that_concerns_others_leaves_connections_alone() -> Result<()> {
    let mut world = World::new()?;
    let server = world.pod("httpbin-full").clone();
    let plain = world.pod("httpbin-legacy").clone();
    let _echoes = (serve(&server, "echo", PORT)?, serve(&plain, "echo", PORT)?);
    let client = world.pod("sleep-full").clone();
    let mut mutual = client.inside(|| client::connect(To::Full.v4(PORT)))?;
    let mut own = client.inside(|| client::connect(plain.v4(PORT)))?;
    ping(&mut mutual, "open")?;
    ping(&mut own, "open")?;
    world.change(|mesh| {
        mesh.mode("full", "httpbin", "STRICT");
        mesh.mode("partial", "httpbin", "STRICT");
    })?;
    ping(&mut mutual, "mTLS conforms to STRICT")?;
    ping(&mut own, "and this is another server")
}

/// As many as the kernel's table of the mesh's addresses has rows for.
const ROWS: u32 = 1 << 18;

/// Files of one tenant's services, whose addresses alone fill the table.
fn too_many_addresses() -> Vec<String> {
    const SERVICES: u32 = 45;
    const ADDRESSES: u32 = 1000;
    let file = |file: u32| {
        let service = |number: u32| {
            let first = (file * SERVICES + number) * ADDRESSES;
            let address = |n: u32| Ipv4Addr::from(0x2c00_0000 + n).to_string();
            let addresses: Vec<String> = (first..first + ADDRESSES).map(address).collect();
            format!(
                "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
                 metadata: {{name: s{first}, namespace: tenant}}\n\
                 spec: {{hosts: [s{first}.tenant.test], location: MESH_INTERNAL, \
                 resolution: STATIC, endpoints: [], ports: [{{number: 443, name: tcp}}], \
                 addresses: [{}]}}\n",
                addresses.join(", ")
            )
        };
        (0..SERVICES).map(service).collect::<Vec<_>>().join("---\n")
    };
    (0..=ROWS / (SERVICES * ADDRESSES)).map(file).collect()
}

#[test]
fn a_full_table_of_addresses_slows_everybody_down_and_opens_nothing() -> Result<()> {
    /// The configuration is large, and the daemon's build not optimised.
    const LOAD: Duration = Duration::from_secs(180);
    let outside = PodSpec::new(1, "outside", 1).at(Some(Ipv4Addr::new(192, 0, 2, 10)), None);
    let world = World::without_daemons(&[outside])?;
    // One daemon with a directory of its own: the other has no part in this.
    let own = world.bed.directory.join("own");
    let mesh = world.mesh.copy_for(&own)?;
    mesh.write()?;
    world.mesh.write()?;
    let mut spec = mtls_tests::DaemonSpec::new(&world.bed, 0);
    spec.config = own;
    let mut daemon = spec.start()?;
    let client = world.pod("sleep-full");
    let to = world.pod("outside").v4(PORT);
    let _echo = serve(world.pod("outside"), "echo", PORT)?;
    check_own_of(client, to, &daemon)?;

    let generation = daemon.generation()?;
    let mark = daemon.process.stderr.len();
    let files = too_many_addresses();
    for (number, text) in files.iter().enumerate() {
        mesh.write_file(&format!("many-{number}.yaml"), text)?;
    }
    // It is published all the same, and said.
    let full = || -> Result<Vec<String>> {
        let status = daemon.status()?;
        let list = status["kernel"]["full"].as_array().cloned().unwrap_or_default();
        Ok(list.iter().filter_map(|text| text.as_str().map(str::to_owned)).collect())
    };
    wait::eventually(LOAD, "that the table is full", || full().is_ok_and(|full| !full.is_empty()))?;
    ensure!(daemon.generation()? > generation, "it is in force");
    let [said] = &full()?[..] else { anyhow::bail!("one table: {:?}", full()) };
    ensure!(said.contains("MESH_ADDRESSES is full"), "{said}");
    daemon.said(mark, "a warning", |line| line.contains("MESH_ADDRESSES is full"))?;

    // An address that has no row is the daemon's none the less: not sent past it in the clear.
    let named = said.split_once('(').and_then(|(_, rest)| rest.split([',', ')']).next());
    let named: std::net::IpAddr = named.unwrap_or_default().parse()?;
    let lost = daemon.decided("outbound_untouched_outside")?;
    let mark = daemon.mark();
    let talk = client.inside(|| converse((named, 443).into(), "\u{1}anybody?"));
    ensure!(!talk.is_ok_and(|talk| talk.worked()), "nobody is there");
    let line = daemon.logged(mark, "the connection", |line| line["direction"] == "outbound")?;
    ensure!(line["outcome"] == "no_endpoint", "{line}");
    // And so is everything else, which works as it did.
    let mark = daemon.mark();
    ensure!(client.inside(|| converse(to, "outside"))?.worked());
    let line = daemon.logged(mark, "outside", |line| line["direction"] == "outbound")?;
    ensure!(line["security"] == "plaintext" && line["outcome"] == "ok", "{line}");
    ensure!(daemon.decided("outbound_untouched_outside")? == lost, "it went past the daemon");

    // With room again all of it is as before.
    for number in 0..files.len() {
        mesh.remove_file(&format!("many-{number}.yaml"))?;
    }
    wait::eventually(LOAD, "that there is room", || full().is_ok_and(|full| full.is_empty()))?;
    check_own_of(client, to, &daemon)?;
    daemon.term()?;
    Ok(())
}

/// A connection that the daemon has no part in.
fn check_own_of(client: &Pod, to: SocketAddr, daemon: &Daemon) -> Result<()> {
    let outside = daemon.decided("outbound_untouched_outside")?;
    ensure!(client.inside(|| converse(to, "my own"))?.worked());
    let now = daemon.decided("outbound_untouched_outside")?;
    ensure!(now == outside + 1.0, "it was {outside} and is {now}");
    Ok(())
}
