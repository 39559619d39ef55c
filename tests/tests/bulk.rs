//! A gibibyte each way (less under emulation) arrives as it was sent.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use mtls_tests::World;
use mtls_tests::client::{download, summary_of_noise, upload};
use mtls_tests::world::{To, serve};

/// A gibibyte, or 64 MiB on an emulated machine, unless `MTLS_TEST_BULK_BYTES` says otherwise.
fn length() -> Result<u64> {
    match std::env::var("MTLS_TEST_BULK_BYTES") {
        Ok(bytes) => bytes.parse().context("MTLS_TEST_BULK_BYTES"),
        Err(_) if std::env::var_os("MTLS_VM_KERNEL").is_some() => Ok(64 << 20),
        Err(_) => Ok(1 << 30),
    }
}

#[test]
fn up_and_down_at_once_with_a_digest() -> Result<()> {
    let length = length()?;
    let world = World::new()?;
    let server = world.pod("httpbin-full");
    let _sink = serve(server, "sink", 9000)?;
    let _source = serve(server, "source", 9001)?;
    let client = world.pod("sleep-full");
    std::thread::scope(|scope| {
        let up = scope.spawn(|| client.inside(|| upload(To::Full.v4(9000), length)));
        let down = client.inside(|| download(To::Full.v6(9001), length))?;
        let (sent, received) = up.join().expect("no panic")?;
        assert_eq!(sent, received);
        assert_eq!(down, summary_of_noise(length));
        assert_eq!(down, sent);
        Ok::<_, anyhow::Error>(())
    })?;
    let line = world.b().logged(0, "of the upload", |line| {
        line["direction"] == "inbound"
            && line["destination"]["address"] == server.v4(9000).to_string()
    })?;
    assert_eq!(line["security"], "mutual_tls", "{line}");
    assert_eq!(line["bytes_sent"].as_u64(), Some(length), "{line}");
    Ok(())
}
