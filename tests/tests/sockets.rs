//! Sockets that are not plain TCP sockets.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mtls_tests::client::{self, connect_socket, ping, socket};
use mtls_tests::wait::patience;
use mtls_tests::world::{To, serve};
use mtls_tests::{Capture, Pod, World};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Protocol, SockAddr, Socket};

const PORT: u16 = 9000;

/// A world with an echo server in `full`, and a capture.
fn stand() -> Result<(World, Capture)> {
    let mut world = World::new()?;
    world.serve("httpbin-full", "echo", PORT)?;
    let capture = Capture::start(world.node(0))?;
    Ok((world, capture))
}

/// Talks through sockets that `bend` has bent, in both families, and checks that it was mTLS.
fn check(
    bend: impl Fn(&Socket, SocketAddr, &Pod) -> Result<()> + Sync,
    protocol: Option<Protocol>,
) -> Result<()> {
    let (world, capture) = stand()?;
    let client = world.pod("sleep-full");
    for to in [To::Full.v4(PORT), To::Full.v6(PORT), world.pod("httpbin-full").v4(PORT)] {
        let (mark, canary) = (world.b().mark(), format!("canary-{to}"));
        client
            .inside(|| {
                let socket = socket(to, protocol)?;
                bend(&socket, to, client)?;
                ping(&mut connect_socket(socket, to)?, &canary)
            })
            .with_context(|| format!("to {to}"))?;
        let line = world.b().logged(mark, "inbound", |line| line["direction"] == "inbound")?;
        ensure!(line["security"] == "mutual_tls", "{line}");
        ensure!(!capture.saw(&canary)?, "{to}: readable on the wire");
    }
    Ok(())
}

#[test]
fn bound_to_an_address() -> Result<()> {
    check(
        |socket, to, pod| {
            let own = if to.is_ipv4() { pod.v4(0) } else { pod.v6(0) };
            Ok(socket.bind(&own.into())?)
        },
        None,
    )
}

#[test]
fn bound_to_a_device() -> Result<()> {
    check(|socket, _, _| Ok(socket.bind_device(Some(b"eth0"))?), None)
}

#[test]
fn multipath_tcp() -> Result<()> {
    check(|_, _, _| Ok(()), Some(Protocol::MPTCP))
}

#[test]
fn tcp_fast_open_on_connect() -> Result<()> {
    check(|socket, _, _| Ok(setsockopt(socket, sockopt::TcpFastOpenConnect, &true)?), None)
}

#[test]
fn tcp_fast_open_by_sendto() -> Result<()> {
    let (world, capture) = stand()?;
    for to in [To::Full.v4(PORT), To::Full.v6(PORT)] {
        world.pod("sleep-full").inside(|| {
            let socket = socket(to, None)?;
            socket.set_read_timeout(Some(patience(client::LIMIT)))?;
            let text = b"canary-fast-open";
            // connect() is never called: the first sendto is it.
            let sent = socket.send_to_with_flags(text, &SockAddr::from(to), libc::MSG_FASTOPEN)?;
            ensure!(sent == text.len(), "{sent}");
            let mut back = [0; 16];
            TcpStream::from(socket).read_exact(&mut back)?;
            ensure!(&back == text);
            Ok(())
        })?;
    }
    ensure!(!capture.saw("canary-fast-open")?);
    Ok(())
}

#[test]
fn a_nonblocking_connect_and_close_at_once() -> Result<()> {
    let (world, capture) = stand()?;
    let mark = world.b().mark();
    world.pod("sleep-full").inside(|| {
        // Sent and closed before anybody could have accepted.
        let mut stream = client::connect(To::Full.v4(PORT))?;
        stream.write_all(b"canary-quick")?;
        stream.shutdown(std::net::Shutdown::Write)?;
        Ok(())
    })?;
    let line = world.b().logged(mark, "inbound", |line| line["direction"] == "inbound")?;
    ensure!(line["bytes_sent"].as_u64() == Some(12), "{line}");
    ensure!(!capture.saw("canary-quick")?);
    Ok(())
}

#[test]
fn udp_is_untouched() -> Result<()> {
    let (world, _) = stand()?;
    // The DNS port among them: its destinations are services to TCP and nothing to UDP.
    for (server, port) in [("httpbin-full", 53), ("httpbin-legacy", 5353)] {
        let server = world.pod(server);
        let _udp = serve(server, "udp", port)?;
        let client = world.pod("sleep-full");
        for (to, own) in [(server.v4(port), client.v4(0)), (server.v6(port), client.v6(0))] {
            let answer: serde_json::Value = client.inside(|| {
                let socket = UdpSocket::bind(own)?;
                socket.set_read_timeout(Some(Duration::from_secs(5)))?;
                socket.connect(to)?;
                ensure!(socket.peer_addr()? == to);
                socket.send(b"question")?;
                let mut bytes = [0; 1500];
                let length = socket.recv(&mut bytes).context("no answer")?;
                Ok(serde_json::from_slice(&bytes[..length])?)
            })?;
            let peer: SocketAddr = answer["peer"].as_str().context("a peer")?.parse()?;
            ensure!(peer.ip() == own.ip() && answer["text"] == "question", "{answer}");
        }
    }
    Ok(())
}

#[test]
fn the_daemons_own_listeners_serve_nobody_who_asks_for_them() -> Result<()> {
    let (world, _) = stand()?;
    let pod = world.pod("sleep-full");
    let ports = pod.inside(client::listening_ports)?;
    ensure!(!ports.is_empty(), "nothing listens in a pod that has only the daemon's listeners");
    for port in ports {
        let loopback: SocketAddr = (std::net::Ipv4Addr::LOCALHOST, port).into();
        for (from, to) in [
            (pod, loopback),
            (pod, (std::net::Ipv6Addr::LOCALHOST, port).into()),
            (pod, pod.v4(port)),
            (world.pod("sleep-legacy"), pod.v4(port)),
            (world.pod("httpbin-legacy"), pod.v6(port)),
        ] {
            let talk = from.inside(|| client::converse(to, "GET / HTTP/1.1\r\n\r\n"))?;
            ensure!(!talk.worked(), "{} to {to}: {talk:?}", from.name);
        }
    }
    // And it did not fall over.
    let talk = pod.inside(|| client::converse(To::Full.v4(PORT), "still there"))?;
    ensure!(talk.worked(), "{talk:?}");
    Ok(())
}
