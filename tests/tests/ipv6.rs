//! IPv6, and IPv4 through IPv6 sockets.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};
use mtls_tests::client::{self, ping};
use mtls_tests::world::{To, event, serve};
use mtls_tests::{Capture, World};

fn mapped(address: SocketAddr) -> SocketAddr {
    let IpAddr::V4(v4) = address.ip() else { panic!("{address} is not IPv4") };
    (v4.to_ipv6_mapped(), address.port()).into()
}

#[test]
fn a_v4_mapped_destination_is_the_ipv4_destination() -> Result<()> {
    let world = World::new()?;
    let server = world.pod("httpbin-full");
    let client = world.pod("sleep-full");
    let echo = serve(server, "echo", 9000)?;
    let capture = Capture::start(world.node(0))?;
    for to in [mapped(To::Full.v4(9000)), mapped(server.v4(9000))] {
        let (mark, canary) = (world.b().mark(), format!("canary-mapped-{to}"));
        let events = echo.stdout.len();
        let peer = client.inside(|| {
            let mut stream = client::connect(to)?;
            ping(&mut stream, &canary)?;
            Ok(stream.peer_addr()?)
        })?;
        assert_eq!(peer, to, "getpeername shows what the application connected to");
        let line = world.b().logged(mark, "inbound", |line| line["direction"] == "inbound")?;
        assert_eq!(line["security"], "mutual_tls", "{line}");
        assert!(!capture.saw(&canary)?);
        let accepted = event(&echo, events, "accepted")?;
        let seen: SocketAddr = accepted["peer"].as_str().context("a peer")?.parse()?;
        assert_eq!(seen.ip(), client.v4(0).ip());
    }
    Ok(())
}

#[test]
fn getpeername_and_getsockname_show_what_the_application_expects() -> Result<()> {
    let world = World::new()?;
    let client = world.pod("sleep-full");
    let _echo = serve(world.pod("httpbin-full"), "echo", 9000)?;
    for to in [To::Full.v4(9000), To::Full.v6(9000)] {
        let (local, peer) = client.inside(|| {
            let mut stream = client::connect(to)?;
            ping(&mut stream, "hello")?;
            Ok((stream.local_addr()?, stream.peer_addr()?))
        })?;
        assert_eq!(peer, to);
        let expected = if to.is_ipv4() { client.v4(0).ip() } else { client.v6(0).ip() };
        let loopback =
            if to.is_ipv4() { "127.0.0.1".parse()? } else { IpAddr::from(Ipv6Addr::LOCALHOST) };
        // Its own address, or loopback's where the kernel has no hook for it: never the peer's.
        assert!([expected, loopback].contains(&local.ip()), "{local}");
    }
    Ok(())
}
