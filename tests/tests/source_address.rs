//! The application sees the client's real address, whatever lies between.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use anyhow::{Context, Result};
use mtls_tests::World;
use mtls_tests::client::converse;
use mtls_tests::curl::curl;
use mtls_tests::world::{TARGET_PORT, To, event, serve};

#[test]
fn over_mtls_and_in_the_clear_in_both_families() -> Result<()> {
    let world = World::new()?;
    let server = world.pod("httpbin-full");
    let echo = serve(server, "echo", 9000)?;
    for (from, to) in [
        ("sleep-full", To::Full.v4(9000)),
        ("sleep-full", To::Full.v6(9000)),
        ("sleep-full", server.v4(9000)),
        ("sleep-legacy", server.v4(9000)),
        ("sleep-legacy", server.v6(9000)),
    ] {
        let client = world.pod(from);
        let expected = if to.is_ipv4() { client.v4(0).ip() } else { client.v6(0).ip() };
        let mark = echo.stdout.len();
        assert!(client.inside(|| converse(to, "whoami"))?.worked(), "{from} to {to}");
        let accepted = event(&echo, mark, "accepted")?;
        let peer: SocketAddr = accepted["peer"].as_str().context("a peer")?.parse()?;
        assert_eq!(peer.ip(), expected, "{from} to {to}: {accepted}");
        let local: SocketAddr = accepted["local"].as_str().context("an address")?.parse()?;
        assert!(server.has(local.ip()) && local.port() == 9000, "{from} to {to}: {accepted}");
    }
    Ok(())
}

#[test]
fn an_http_server_sees_it_too() -> Result<()> {
    let world = World::new()?;
    let answer =
        curl(world.pod("sleep-full"), &To::Full.host(), To::Full.v6(8000), "/headers", "x")?;
    let peer: SocketAddr = answer.echo()?["peer"].as_str().context("a peer")?.parse()?;
    assert_eq!(peer.ip(), world.pod("sleep-full").v6(0).ip());
    let answer = curl(
        world.pod("sleep-legacy"),
        "httpbin",
        world.pod("httpbin-partial").v4(TARGET_PORT),
        "/headers",
        "x",
    )?;
    let peer: SocketAddr = answer.echo()?["peer"].as_str().context("a peer")?.parse()?;
    assert_eq!(peer.ip(), world.pod("sleep-legacy").v4(0).ip());
    Ok(())
}
