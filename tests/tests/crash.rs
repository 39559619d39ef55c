//! SIGKILL of a daemon never lets anything out in the clear, and a new daemon takes over.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mtls_tests::client::{self, Conversation, End, converse, read_some, read_to_end};
use mtls_tests::wait::eventually;
use mtls_tests::world::{To, serve};
use mtls_tests::{Capture, World, leftovers};

const ECHO: u16 = 9000;
const DRIP: u16 = 9001;

/// Kills the daemon of node `index` in the middle of a transfer over mTLS, and watches.
fn kill_in_mid_transfer(index: usize) -> Result<()> {
    let mut world = World::new()?;
    let server = world.pod("httpbin-full").clone();
    let client = world.pod("sleep-full").clone();
    let legacy = world.pod("sleep-legacy").clone();
    let _drip = serve(&server, "drip", DRIP)?;
    let _echo = serve(&server, "echo", ECHO)?;
    let capture = Capture::start(world.node(0))?;

    let mut stream = client.inside(|| client::connect(To::Full.v4(DRIP)))?;
    ensure!(read_some(&mut stream, 4096)?.starts_with(b"drip"));
    world.daemons[index].kill9()?;
    let (_, end) = read_to_end(&mut stream)?;
    assert_eq!(end, End::Broken, "a cut transfer must not look complete");

    // While it is dead, the enrolled workload's connections fail: out of it, and into it.
    let dead: Vec<(&mtls_tests::Pod, SocketAddr)> = if index == 0 {
        vec![(&client, To::Full.v4(ECHO)), (&client, server.v4(ECHO)), (&client, server.v6(ECHO))]
    } else {
        vec![(&client, To::Full.v4(ECHO)), (&legacy, server.v4(ECHO)), (&legacy, server.v6(ECHO))]
    };
    for (from, to) in &dead {
        let talk = from.inside(|| converse(*to, "canary-while-dead"))?;
        let failed = [Conversation::NoConnection, Conversation::Ended(End::Broken)];
        assert!(failed.contains(&talk), "{} to {to} with a dead daemon: {talk:?}", from.name);
        if talk == Conversation::NoConnection {
            // Refused, not dropped: nobody has to wait for a timeout to try again.
            let error = from.inside(|| Ok(client::connect(*to).err()))?.context("it connected")?;
            let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            assert_eq!(kind, Some(std::io::ErrorKind::ConnectionRefused), "{error:#}");
        }
    }
    if index == 0 {
        ensure!(!capture.saw("canary-while-dead")?, "plaintext left the node of a dead daemon");
    }
    ensure!(!capture.saw("drip drip drip")?, "the transfer was readable on the wire");

    world.daemons[index].restart()?;
    for (from, to) in &dead {
        eventually(Duration::from_secs(5), "traffic to flow again", || {
            from.inside(|| converse(*to, "hello again")).is_ok_and(Conversation::worked)
        })?;
    }
    ensure!(!capture.saw("drip drip drip")?);
    Ok(())
}

#[test]
fn the_clients_daemon() -> Result<()> {
    kill_in_mid_transfer(0)
}

#[test]
fn the_servers_daemon() -> Result<()> {
    kill_in_mid_transfer(1)
}

#[test]
fn an_orderly_stop_fails_closed_too_and_a_new_daemon_takes_over() -> Result<()> {
    let mut world = World::new()?;
    let _echo = serve(world.pod("httpbin-full"), "echo", ECHO)?;
    let client = world.pod("sleep-full").clone();
    ensure!(world.daemons[0].term()?.success(), "SIGTERM ends it with 0");
    let talk = client.inside(|| converse(To::Full.v4(ECHO), "nobody is there"))?;
    ensure!(!talk.worked(), "{talk:?}");
    world.daemons[0].restart()?;
    ensure!(client.inside(|| converse(To::Full.v4(ECHO), "back"))?.worked());
    Ok(())
}

#[test]
fn cleanup_after_a_crash_gives_the_pods_their_own_network_back() -> Result<()> {
    let mut world = World::new()?;
    let server = world.pod("httpbin-full").clone();
    let _echo = serve(&server, "echo", ECHO)?;
    for daemon in &mut world.daemons {
        daemon.kill9()?;
        daemon.cleanup()?;
    }
    let pins: Vec<String> = leftovers::remains(&world.bed.prefix)
        .into_iter()
        .filter(|what| what.starts_with("pins"))
        .collect();
    assert_eq!(pins, Vec::<String>::new());
    for from in ["sleep-full", "sleep-legacy"] {
        let talk = world.pod(from).inside(|| converse(server.v4(ECHO), "as before"))?;
        assert!(talk.worked(), "{from}: {talk:?}");
    }
    Ok(())
}
