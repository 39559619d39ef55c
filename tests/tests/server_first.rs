//! Protocols where the server speaks first: what is known of a client sets how long its first
//! bytes are awaited, and never the verdict.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mtls_tests::apps::BANNER;
use mtls_tests::client::End;
use mtls_tests::wait::patience;
use mtls_tests::world::{To, serve};
use mtls_tests::{Pod, PodSpec, World, client};

const PORT: u16 = 9001;
/// Of no service.
const UNDECLARED: u16 = 9101;

/// How long the banner takes to come, for a client that sends nothing.
fn banner(client: &Pod, to: SocketAddr) -> Result<Duration> {
    client.inside(|| {
        let started = Instant::now();
        let mut stream = client::connect(to)?;
        let mut line = vec![0; BANNER.len()];
        stream.read_exact(&mut line)?;
        ensure!(line == BANNER.as_bytes(), "{:?}", String::from_utf8_lossy(&line));
        Ok(started.elapsed())
    })
}

#[test]
fn each_kind_of_client_waits_as_long_as_its_kind_should() -> Result<()> {
    // Far apart, so that a busy machine cannot blur them.
    let (unknown_wait, mtls_wait) =
        (patience(Duration::from_secs(3)), patience(Duration::from_secs(6)));
    let seconds = |wait: Duration| format!("{}s", wait.as_secs());
    let more = [PodSpec::new(0, "unknown", 30), PodSpec::new(0, "claimed", 31)];
    let world = World::with(
        &more,
        // Said to speak mTLS, and does not: it is awaited in vain, and then served.
        |mesh, bed| drop(mesh.workload(bed.pod("claimed"), "full", "claimed", "claimed", true)),
        |spec| {
            spec.with("--detect-timeout", &seconds(unknown_wait))
                .with("--mtls-wait", &seconds(mtls_wait))
        },
    )?;
    let server = world.pod("httpbin-full");
    let _banner = serve(server, "banner", PORT)?;
    std::thread::scope(|scope| {
        let unknown = scope.spawn(|| banner(world.pod("unknown"), server.v4(PORT)));
        let claimed = scope.spawn(|| banner(world.pod("claimed"), server.v4(PORT)));
        let known = banner(world.pod("sleep-legacy"), server.v4(PORT))?;
        ensure!(known < unknown_wait / 2, "a known plaintext client waited {known:?}");
        let mtls = banner(world.pod("sleep-full"), To::Full.v4(PORT))?;
        ensure!(mtls < unknown_wait / 2, "an mTLS client waited {mtls:?}");
        let unknown = unknown.join().expect("no panic")?;
        ensure!(unknown >= unknown_wait && unknown < mtls_wait, "unknown: {unknown:?}");
        let claimed = claimed.join().expect("no panic")?;
        ensure!(claimed >= mtls_wait, "known to speak mTLS: {claimed:?}");
        Ok(())
    })
}

#[test]
fn an_unknown_client_waits_a_tenth_of_a_second_by_default() -> Result<()> {
    let world = World::with(&[PodSpec::new(0, "unknown", 30)], |_, _| {}, |spec| spec)?;
    let server = world.pod("httpbin-full");
    let _banner = serve(server, "banner", PORT)?;
    let took = banner(world.pod("unknown"), server.v6(PORT))?;
    let least = Duration::from_millis(100);
    ensure!(took >= least && took < patience(Duration::from_secs(3)), "{took:?}");
    Ok(())
}

#[test]
fn strict_never_lets_a_silent_client_hear_the_server() -> Result<()> {
    let world = World::with(
        &[],
        |mesh, _| {
            mesh.mode("full", "httpbin", "STRICT");
        },
        |spec| spec.with("--mtls-wait", "1s"),
    )?;
    let server = world.pod("httpbin-full");
    let _banner = serve(server, "banner", PORT)?;
    let mark = world.b().mark();
    let (bytes, end) = world
        .pod("sleep-legacy")
        .inside(|| client::read_to_end(&mut client::connect(server.v4(PORT))?))?;
    assert_eq!(bytes, b"", "the server's first words reached a client without identity");
    // The daemon has decided: it was not the test's patience that ended.
    assert_eq!(end, End::Broken);
    let line = world.b().logged(mark, "the connection", |line| line["direction"] == "inbound")?;
    ensure!(line["outcome"] == "detect_timeout" && line["bytes_sent"] == 0, "{line}");
    Ok(())
}

/// Nothing has judged such a request or taken forged headers out of it.
#[test]
fn a_request_behind_a_greeting_is_refused_and_the_log_says_why() -> Result<()> {
    let world = World::new()?;
    let server = world.pod("httpbin-full");
    let _banner = serve(server, "banner", UNDECLARED)?;
    let mark = world.b().mark();
    let mut stream = world.pod("sleep-legacy").inside(|| client::connect(server.v4(UNDECLARED)))?;
    let mut greeting = vec![0; BANNER.len()];
    stream.read_exact(&mut greeting)?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: app\r\n\r\n")?;
    let (bytes, _) = client::read_to_end(&mut stream)?;
    ensure!(bytes.is_empty(), "it was answered: {:?}", String::from_utf8_lossy(&bytes));
    let line = world.b().logged(mark, "the connection", |line| line["direction"] == "inbound")?;
    ensure!(line["outcome"] == "http_refused", "{line}");
    let says =
        line["detail"].as_str().is_some_and(|detail| detail.contains("declare the port HTTP"));
    ensure!(says, "{line}");
    Ok(())
}
