//! What is claimed to be mTLS is not readable on the wire; what is plaintext by policy is.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use mtls_tests::client::{Conversation, converse};
use mtls_tests::daemon::LOG;
use mtls_tests::demo::report::is_client_hello;
use mtls_tests::world::{TARGET_PORT, To, serve};
use mtls_tests::{Capture, World};

const PORT: u16 = 9000;

#[test]
fn tcp_between_enrolled_workloads_is_tls_from_the_first_byte() -> Result<()> {
    let mut world = World::new()?;
    world.serve("httpbin-full", "echo", PORT)?;
    let capture = Capture::start(world.node(0))?;
    let (client, server) = (world.pod("sleep-full"), world.pod("httpbin-full"));
    // By the service's address and by the pod's own, in both families.
    for (number, to) in
        [To::Full.v4(PORT), To::Full.v6(PORT), server.v4(PORT), server.v6(PORT)].iter().enumerate()
    {
        let canary = format!("canary-tcp-{number}");
        let mark = world.b().mark();
        assert!(client.inside(|| converse(*to, &canary))?.worked(), "{to}");
        let line = world.b().logged(mark, "inbound", |line| line["direction"] == "inbound")?;
        assert_eq!(line["security"], "mutual_tls", "{to}: {line}");
        assert!(!capture.saw(&canary)?, "{to}: readable on the wire");
    }
    for to in [server.v4(PORT), server.v6(PORT)] {
        let flows = capture.flows_to(to)?;
        assert_eq!(flows.len(), 2, "{to}");
        for flow in flows {
            assert!(is_client_hello(&flow.to_server.bytes()?), "{flow:?}");
        }
    }
    Ok(())
}

#[test]
fn what_goes_to_a_server_outside_the_mesh_is_the_applications_own_bytes() -> Result<()> {
    let mut world = World::new()?;
    world.serve("httpbin-legacy", "echo", PORT)?;
    let capture = Capture::start(world.node(0))?;
    let (client, server) = (world.pod("sleep-full"), world.pod("httpbin-legacy"));
    for to in [To::Legacy.v4(PORT), server.v4(PORT)] {
        let canary = format!("canary-to-{to}");
        assert!(client.inside(|| converse(to, &canary))?.worked(), "{to}");
        assert!(capture.saw(&canary)?, "{to}");
    }
    let flows = capture.flows_to(server.v4(PORT))?;
    let first = flows.first().context("a captured flow")?.to_server.bytes()?;
    assert!(first.starts_with(b"canary-to-"), "{:?}", String::from_utf8_lossy(&first));
    Ok(())
}

#[test]
fn no_byte_of_a_plaintext_client_reaches_a_strict_application() -> Result<()> {
    let mut world = World::new()?;
    let echo = serve(world.pod("httpbin-full"), "echo", PORT)?;
    world.change(|mesh| {
        mesh.namespace_mode("istio-system", "STRICT");
    })?;
    let server = world.pod("httpbin-full");
    for from in ["sleep-legacy", "httpbin-legacy", "plain-partial"] {
        let mark = world.b().mark();
        let talk = world.pod(from).inside(|| converse(server.v4(PORT), "plaintext"))?;
        assert!(!talk.worked(), "{from}: {talk:?}");
        assert_ne!(talk, Conversation::NoConnection, "{from}: the reset comes after the bytes");
        let line = world.b().logged(mark, "refused", |line| line["direction"] == "inbound")?;
        assert_eq!(line["outcome"], "plaintext_refused", "{line}");
        assert_eq!(line["fault"], "policy", "{line}");
        assert_eq!(line["security"], "none", "{line}");
    }
    // An application that knows the client by one connection has seen no other.
    let talk = world.pod("sleep-full").inside(|| converse(To::Full.v4(PORT), "mtls"))?;
    assert!(talk.worked(), "{talk:?}");
    let known = world.pod("sleep-full").v4(0).ip().to_string();
    echo.stdout.find_json(0, LOG, "the connection with mTLS", |event| {
        event["event"] == "accepted"
            && event["peer"].as_str().is_some_and(|peer| peer.starts_with(&known))
    })?;
    let accepted: Vec<_> = echo
        .stdout
        .json_after(0)
        .into_iter()
        .filter(|event| event["event"] == "accepted")
        .collect();
    assert_eq!(accepted.len(), 1, "{accepted:?}");
    // And the HTTP port beside it answers no plaintext client either.
    let answer = mtls_tests::curl::curl(
        world.pod("sleep-legacy"),
        "httpbin",
        server.v6(TARGET_PORT),
        "/headers",
        "canary",
    )?;
    assert_eq!((answer.code, answer.exit), (0, 56), "{answer:?}");
    Ok(())
}
