//! An end is an end, a reset is a reset, in both directions and whoever is the cause.
#![forbid(unsafe_code)]

use std::io::Write;
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use mtls_tests::World;
use mtls_tests::apps::GREETING;
use mtls_tests::client::{self, End};
use mtls_tests::world::{To, event, serve};
use serde_json::json;
use socket2::SockRef;

/// An mTLS client by the service's address, and a plaintext one by the pod's.
fn both_kinds(world: &World, port: u16) -> [(&'static str, SocketAddr); 2] {
    [("sleep-full", To::Full.v4(port)), ("sleep-legacy", world.pod("httpbin-full").v4(port))]
}

#[test]
fn a_client_may_end_its_side_first() -> Result<()> {
    let world = World::new()?;
    let _sink = serve(world.pod("httpbin-full"), "sink", 9000)?;
    for (from, to) in both_kinds(&world, 9000) {
        let (sent, received) = world.pod(from).inside(|| client::upload(to, 100_000))?;
        assert_eq!(sent, received, "{from}");
    }
    Ok(())
}

#[test]
fn a_server_may_end_its_side_first() -> Result<()> {
    let world = World::new()?;
    let server = serve(world.pod("httpbin-full"), "half-close", 9000)?;
    for (from, to) in both_kinds(&world, 9000) {
        let mark = server.stdout.len();
        world.pod(from).inside(|| {
            let mut stream = client::connect(to)?;
            let (greeting, end) = client::read_to_end(&mut stream)?;
            ensure!(greeting == GREETING.as_bytes() && end == End::Clean, "{end:?}");
            stream.write_all(b"still here")?;
            stream.shutdown(Shutdown::Write)?;
            Ok(())
        })?;
        let closed = event(&server, mark, "closed")?;
        assert_eq!((&closed["bytes"], &closed["end"]), (&json!(10), &json!("eof")), "{from}");
    }
    Ok(())
}

#[test]
fn a_servers_reset_reaches_the_client() -> Result<()> {
    let world = World::new()?;
    let _server = serve(world.pod("httpbin-full"), "reset", 9000)?;
    for (from, to) in both_kinds(&world, 9000) {
        let end = world.pod(from).inside(|| {
            let mut stream = client::connect(to)?;
            stream.write_all(b"something")?;
            Ok(client::read_to_end(&mut stream)?.1)
        })?;
        assert_eq!(end, End::Broken, "{from}");
    }
    Ok(())
}

#[test]
fn a_clients_reset_reaches_the_server() -> Result<()> {
    let world = World::new()?;
    let server = serve(world.pod("httpbin-full"), "sink", 9000)?;
    for (from, to) in both_kinds(&world, 9000) {
        let mark = server.stdout.len();
        world.pod(from).inside(|| {
            let mut stream = client::connect(to)?;
            stream.write_all(b"something")?;
            event(&server, mark, "accepted")?;
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            Ok(())
        })?;
        let closed = event(&server, mark, "closed")?;
        assert_eq!(closed["end"], "reset", "{from}: {closed}");
    }
    Ok(())
}

#[test]
fn a_port_where_nobody_listens_is_a_refusal_or_a_reset_and_not_an_end() -> Result<()> {
    let world = World::new()?;
    for (from, to) in both_kinds(&world, 9003) {
        let talk = world.pod(from).inside(|| client::converse(to, "anybody?"))?;
        let failed = [client::Conversation::NoConnection, client::Conversation::Ended(End::Broken)];
        assert!(failed.contains(&talk), "{from}: {talk:?}");
    }
    let line =
        world.b().logged(0, "a failure", |line| line["outcome"] == "upstream_connect_failed")?;
    assert_eq!(line["fault"], "server", "{line}");
    Ok(())
}
