//! Reason codes that no other test meets: what has to happen for each, and what the operator is told.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::Stdio;
use std::thread;

use anyhow::{Context, Result, ensure};
use mtls_tests::client::{self, End, ping, read_some, read_to_end};
use mtls_tests::curl::{self, curl};
use mtls_tests::demo::SLEEP;
use mtls_tests::openssl;
use mtls_tests::world::{TARGET_PORT, To, event, serve};
use mtls_tests::{PodSpec, World};

const PORT: u16 = 9000;

#[test]
fn foreign_tls_to_a_port_declared_http_is_refused() -> Result<()> {
    let world = World::new()?;
    let (client, server) = (world.pod("sleep-legacy"), world.pod("httpbin-full"));
    for to in [server.v4(TARGET_PORT), server.v6(TARGET_PORT)] {
        let mark = world.b().mark();
        let answer = curl::run(client, &["--insecure", &format!("https://{to}/")])?;
        ensure!(answer.code == 0, "{answer:?}");
        let line = world.b().logged(mark, "the refusal", |line| line["direction"] == "inbound")?;
        ensure!(line["outcome"] == "tls_on_http_port" && line["security"] == "none", "{line}");
        let detail = line["detail"].as_str().unwrap_or_default();
        ensure!(detail.contains("declare the port TCP"), "what to do: {line}");
    }
    Ok(())
}

#[test]
fn a_server_that_ends_before_it_answers_is_named() -> Result<()> {
    let world = World::new()?;
    let server = world.pod("httpbin-full");
    let listener = server.inside(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?))?;
    // It hears the whole request, and goes away in order.
    let mute = thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        read_some(&mut stream, 4096).map(drop)
    });
    let mark = world.a().mark();
    let answer = curl(world.pod("sleep-full"), "httpbin", To::Full.v4(PORT), "/", "canary")?;
    mute.join().expect("no panic")?;
    ensure!(answer.code == 503 && answer.body.contains("no_answer"), "{answer:?}");
    let line = world.a().logged(mark, "its end", |line| line["direction"] == "outbound")?;
    ensure!(line["outcome"] == "no_answer" && line["fault"] == "server", "{line}");
    Ok(())
}

#[test]
fn a_client_that_ends_without_close_notify_may_be_truncated() -> Result<()> {
    let world = World::with(
        &[PodSpec::new(0, "torn", 60)],
        |mesh, bed| drop(mesh.workload(bed.pod("torn"), "full", "sleep", "sleep", true)),
        |spec| spec,
    )?;
    let directory = &world.bed.directory;
    let ca = openssl::mesh_ca(directory);
    let svid = openssl::svid(directory, "torn", &ca, SLEEP)?;
    let server = world.pod("httpbin-full");
    let echo = serve(server, "echo", PORT)?;
    let mark = world.b().mark();
    let mut command = world.pod("torn").place.command("openssl")?;
    command.args(["s_client", "-quiet", "-ign_eof", "-alpn", "istio", "-connect"]);
    command.arg(server.v4(PORT).to_string());
    command.arg("-cert").arg(&svid.certificate).arg("-key").arg(&svid.key);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut client = command.spawn()?;
    let word = b"hello\n";
    client.stdin.as_mut().context("stdin")?.write_all(word)?;
    let mut back = [0; 6];
    client.stdout.as_mut().context("stdout")?.read_exact(&mut back)?;
    ensure!(&back == word);
    // It has read all that came, so that its kernel ends the connection in order; and nobody the TLS stream.
    client.kill()?;
    client.wait()?;
    let line = world.b().logged(mark, "its end", |line| line["direction"] == "inbound")?;
    ensure!(line["outcome"] == "truncated" && line["fault"] == "client", "{line}");
    ensure!(line["security"] == "mutual_tls" && line["source"]["identity"] == SLEEP, "{line}");
    // The application is not told that this was all.
    let closed = event(&echo, 0, "closed")?;
    ensure!(closed["end"] == "reset", "{closed}");
    Ok(())
}

#[test]
fn what_outlives_the_drain_time_is_ended_and_logged() -> Result<()> {
    let mut world = World::with(&[], |_, _| {}, |spec| spec.with("--drain", "1s"))?;
    world.serve("httpbin-full", "echo", PORT)?;
    let client = world.pod("sleep-full").clone();
    let mut stream = client.inside(|| client::connect(To::Full.v4(PORT)))?;
    ping(&mut stream, "it stays open")?;
    let mark = world.a().mark();
    ensure!(world.daemons[0].term()?.success());
    let line = world.a().logged(mark, "its end", |line| line["direction"] == "outbound")?;
    ensure!(line["outcome"] == "drained", "{line}");
    ensure!(read_to_end(&mut stream)?.1 == End::Broken);
    Ok(())
}
