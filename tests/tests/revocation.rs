//! What the CA revokes is refused by every node, within the stated bound.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use mtls_tests::client::converse;
use mtls_tests::world::To;
use mtls_tests::{Ca, World};

const PORT: u16 = 9000;
const SLEEP: &str = "full/sleep";
const HTTPBIN: &str = "full/httpbin";
const PARTIAL: &str = "partial/httpbin";

/// Two nodes that joined one CA, and an echo server on the second.
fn world() -> Result<(World, Ca)> {
    let mut world = World::without_daemons(&[Ca::pod(0)])?;
    let ca = Ca::start(&world.bed, &[])?;
    world.start(|spec| ca.joined(spec, &[SLEEP, HTTPBIN, PARTIAL]))?;
    world.serve("httpbin-full", "echo", PORT)?;
    Ok((world, ca))
}

#[test]
fn two_nodes_that_joined_one_ca_talk() -> Result<()> {
    let (world, ca) = world()?;
    let mark = world.b().mark();
    let talk = world.pod("sleep-full").inside(|| converse(To::Full.v4(PORT), "hello"))?;
    ensure!(talk.worked(), "{talk:?}");
    let line = world.b().logged(mark, "it", |line| line["direction"] == "inbound")?;
    ensure!(line["security"] == "mutual_tls", "{line}");
    ca.audited(0, "the server's certificate", |line| {
        line["verdict"] == "issued"
            && line["identity"] == "spiffe://cluster.local/ns/full/sa/httpbin"
    })?;
    Ok(())
}
