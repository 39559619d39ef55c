//! Pods of one node are as far apart as pods of two, and a pod cannot talk its way out.
#![forbid(unsafe_code)]

use std::process::Command;

use anyhow::{Context, Result, ensure};
use mtls_tests::client::{self, Conversation, connect_socket, converse, ping, socket};
use mtls_tests::world::{To, event, serve};
use mtls_tests::{Capture, PodSpec, World, process};

const PORT: u16 = 9000;

/// The shared topology with one more enrolled client, beside the servers.
fn with_neighbour() -> Result<World> {
    World::with(
        &[PodSpec::new(1, "neighbour", 60)],
        |mesh, bed| {
            mesh.enrol(&bed.nodes[1], bed.pod("neighbour"), "next", "neighbour", "door");
        },
        |spec| spec,
    )
}

#[test]
fn pods_of_one_node_meet_with_identities() -> Result<()> {
    let mut world = with_neighbour()?;
    world.serve("httpbin-full", "echo", PORT)?;
    world.change(|mesh| {
        mesh.mode("full", "httpbin", "STRICT");
    })?;
    let server = world.pod("httpbin-full");
    for to in [To::Full.v4(PORT), To::Full.v6(PORT), server.v4(PORT), server.v6(PORT)] {
        let mark = world.b().mark();
        let talk = world.pod("neighbour").inside(|| converse(to, "hello"))?;
        ensure!(talk.worked(), "{to}: {talk:?}");
        let line = world.b().logged(mark, "inbound", |line| line["direction"] == "inbound")?;
        ensure!(line["source"]["identity"] == "spiffe://cluster.local/ns/next/sa/door", "{line}");
        ensure!(line["security"] == "mutual_tls", "{line}");
    }
    // A neighbour that is not enrolled is refused, however near.
    let talk = world.pod("httpbin-legacy").inside(|| converse(server.v4(PORT), "hello"))?;
    ensure!(!talk.worked(), "{talk:?}");
    Ok(())
}

#[test]
fn a_pod_may_reach_itself_by_its_services_address() -> Result<()> {
    let mut world = World::new()?;
    world.serve("httpbin-full", "echo", PORT)?;
    let server = world.pod("httpbin-full");
    for to in [To::Full.v4(PORT), To::Full.v6(PORT)] {
        let talk = server.inside(|| converse(to, "hairpin"))?;
        ensure!(talk.worked(), "{to}: {talk:?}");
    }
    Ok(())
}

#[test]
fn a_pod_calling_its_own_address_is_untouched() -> Result<()> {
    let mut world = World::new()?;
    world.change(|mesh| {
        mesh.mode("full", "httpbin", "STRICT");
    })?;
    let server = world.pod("httpbin-full");
    let echo = serve(server, "echo", PORT)?;
    let (log, loopback) = (world.b().mark(), "127.0.0.1:9000".parse()?);
    for to in [loopback, server.v4(PORT), server.v6(PORT)] {
        let mark = echo.stdout.len();
        let talk = server.inside(|| converse(to, "me"))?;
        let Conversation::Echoed { local, peer } = talk else { anyhow::bail!("{to}: {talk:?}") };
        ensure!(peer == to, "{peer}");
        let accepted = event(&echo, mark, "accepted")?;
        ensure!(accepted["peer"] == local.to_string(), "{to}: {accepted}");
    }
    let lines = world.b().process.stdout.json_after(log);
    ensure!(lines.is_empty(), "{lines:?}");
    Ok(())
}

#[test]
fn a_mark_that_a_pod_sets_exempts_it_from_nothing() -> Result<()> {
    let mut world = World::new()?;
    world.serve("httpbin-full", "echo", PORT)?;
    let capture = Capture::start(world.node(0))?;
    let client = world.pod("sleep-full");
    let mut marks = marks_in(&world.pod("httpbin-full").netns)?;
    let needed = !world.b().does_without("ingress_ifindex")?;
    ensure!(
        marks.is_empty() != needed,
        "the daemon's mark in the rules of an enrolled pod: {marks:?}"
    );
    marks.push(u32::from_be_bytes(*b"mtls"));
    for mark in marks {
        for to in [world.pod("httpbin-full").v4(PORT), To::Full.v4(PORT)] {
            client.inside(|| {
                let socket = socket(to, None)?;
                socket.set_mark(mark)?;
                ensure!(socket.mark()? == mark, "it is not marked");
                // It may fail; it must not pass in the clear.
                let _ = connect_socket(socket, to)
                    .and_then(|mut stream| ping(&mut stream, "canary-marked"));
                Ok(())
            })?;
        }
    }
    // Something must have crossed for an absence to say anything.
    client.inside(|| ping(&mut client::connect(To::Full.v4(PORT))?, "unmarked"))?;
    ensure!(!capture.saw("canary-marked")?, "a forged mark let plaintext out");
    Ok(())
}

/// The marks that routing rules of a namespace look at.
fn marks_in(netns: &str) -> Result<Vec<u32>> {
    let mut command = Command::new("ip");
    command.args(["-n", netns, "rule", "list"]);
    let output = process::output(command)?;
    let text = String::from_utf8(output.stdout).context("ip rule in UTF-8")?;
    let mut words = text.split_whitespace();
    let mut marks = Vec::new();
    while let Some(word) = words.next() {
        if word == "fwmark" {
            let mark = words.next().context("a mark")?.split('/').next().context("a mark")?;
            marks.push(u32::from_str_radix(mark.trim_start_matches("0x"), 16)?);
        }
    }
    Ok(marks)
}
