//! The testbed itself, without a daemon: what the other tests stand on.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mtls_tests::client::{self, End};
use mtls_tests::curl::curl;
use mtls_tests::wait::patience;
use mtls_tests::world::{TARGET_PORT, event, serve};
use mtls_tests::{Capture, PodSpec, Testbed, leftovers};
use serde_json::json;

fn two_pods() -> Result<Testbed> {
    Testbed::new(&[PodSpec::new(0, "client", 10), PodSpec::new(1, "server", 20)])
}

#[test]
fn plaintext_crosses_the_wire_in_both_families_and_the_capture_sees_it() -> Result<()> {
    let bed = two_pods()?;
    let (client, server) = (bed.pod("client"), bed.pod("server"));
    let _http = serve(server, "http", TARGET_PORT)?;
    for (to, from) in
        [(server.v4(TARGET_PORT), client.v4(0)), (server.v6(TARGET_PORT), client.v6(0))]
    {
        let capture = Capture::start(&bed.nodes[0])?;
        let canary = format!("canary-{}", from.ip());
        let answer = curl(client, "server", to, "/headers", &canary)?;
        assert_eq!((answer.exit, answer.code), (0, 200), "{answer:?}");
        let echo = answer.echo()?;
        assert_eq!(echo["headers"]["X-Canary"], json!(canary));
        let peer: std::net::SocketAddr = echo["peer"].as_str().context("a peer")?.parse()?;
        assert_eq!(peer.ip(), from.ip());
        assert!(capture.saw(&canary)?);
        assert!(!capture.saw("another canary")?);
        let flows = capture.flows_to(to)?;
        assert_eq!(flows.len(), 1);
        assert_eq!(flows[0].client, peer);
        assert!(flows[0].to_server.bytes()?.starts_with(b"GET /headers HTTP/1.1\r\n"));
    }
    Ok(())
}

#[test]
fn a_large_transfer_is_captured_without_a_gap_and_digests_agree() -> Result<()> {
    let bed = two_pods()?;
    let (client, server) = (bed.pod("client"), bed.pod("server"));
    let _sink = serve(server, "sink", 9000)?;
    let _source = serve(server, "source", 9001)?;
    let capture = Capture::start(&bed.nodes[0])?;
    let length = (16 << 20) + 17;
    let (sent, received) = client.inside(|| client::upload(server.v4(9000), length))?;
    assert_eq!(sent, received);
    let got = client.inside(|| client::download(server.v6(9001), length))?;
    assert_eq!(got, sent);
    assert_eq!(got, client::summary_of_noise(length));
    let flows = capture.flows_to(server.v4(9000))?;
    assert_eq!(flows[0].to_server.bytes()?.len() as u64, length);
    Ok(())
}

#[test]
fn servers_end_connections_as_they_say() -> Result<()> {
    let bed = two_pods()?;
    let (client, server) = (bed.pod("client"), bed.pod("server"));
    let reset = serve(server, "reset", 9000)?;
    let half = serve(server, "half-close", 9001)?;
    let end = client.inside(|| {
        let mut stream = client::connect(server.v4(9000))?;
        std::io::Write::write_all(&mut stream, b"something")?;
        Ok(client::read_to_end(&mut stream)?.1)
    })?;
    assert_eq!(end, End::Broken);
    event(&reset, 0, "closed")?;
    client.inside(|| {
        let mut stream = client::connect(server.v6(9001))?;
        let (greeting, end) = client::read_to_end(&mut stream)?;
        ensure!(greeting == mtls_tests::apps::GREETING.as_bytes() && end == End::Clean);
        std::io::Write::write_all(&mut stream, b"still here")?;
        stream.shutdown(std::net::Shutdown::Write)?;
        Ok(())
    })?;
    let closed = event(&half, 0, "closed")?;
    assert_eq!((&closed["bytes"], &closed["end"]), (&json!(10), &json!("eof")));
    Ok(())
}

#[test]
fn one_thread_echoes_for_many() -> Result<()> {
    let bed = two_pods()?;
    let (client, server) = (bed.pod("client"), bed.pod("server"));
    let _echo = serve(server, "echo", 9000)?;
    client.inside(|| {
        let mut all =
            (0..200).map(|_| client::connect(server.v4(9000))).collect::<Result<Vec<_>>>()?;
        for (number, stream) in all.iter_mut().enumerate() {
            client::ping(stream, &format!("number {number}"))?;
        }
        Ok(())
    })
}

#[test]
fn a_testbed_stands_quickly_and_leaves_nothing() -> Result<()> {
    // The quickest of a few: to make namespaces one waits for all who do so on this machine, and the first
    // sweeps.
    let made = || {
        let started = Instant::now();
        Ok((two_pods()?, started.elapsed()))
    };
    let beds = [(); 4].map(|()| made()).into_iter().collect::<Result<Vec<_>>>()?;
    let took = beds.iter().map(|(_, took)| *took).min().context("a testbed")?;
    let (bed, _) = beds.into_iter().next().context("a testbed")?;
    let prefix = bed.prefix.clone();
    let _echo = serve(bed.pod("server"), "echo", 9000)?;
    assert!(!leftovers::remains(&prefix).is_empty(), "a standing testbed is seen");
    drop(bed);
    assert_eq!(leftovers::remains(&prefix), Vec::<String>::new());
    // Generous for a busy machine; alone it takes a tenth of this.
    assert!(took < patience(Duration::from_secs(3)), "{took:?}");
    Ok(())
}

#[test]
fn a_panic_leaves_nothing_either() -> Result<()> {
    let (sender, prefixes) = std::sync::mpsc::channel();
    let panicked = std::thread::spawn(move || {
        let bed = two_pods().expect("a testbed");
        let _echo = serve(bed.pod("server"), "echo", 9000).expect("a server");
        sender.send(bed.prefix.clone()).expect("the test listens");
        panic!("on purpose: the testbed must go all the same");
    })
    .join();
    assert!(panicked.is_err());
    assert_eq!(leftovers::remains(&prefixes.recv()?), Vec::<String>::new());
    Ok(())
}
