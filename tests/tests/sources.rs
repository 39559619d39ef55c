//! Certificates that others make: files that an operator's tools put there, and an agent of the node.
#![forbid(unsafe_code)]

mod agent;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent::{Agent, Given};
use anyhow::{Context, Result, ensure};
use mtls_tests::client::{self, converse, ping};
use mtls_tests::daemon::Daemon;
use mtls_tests::svids::{Material, from_files, svid};
use mtls_tests::world::{To, serve};
use mtls_tests::{Capture, World, openssl, until};

const PORT: u16 = 9000;
const SLEEP: &str = "spiffe://cluster.local/ns/full/sa/sleep";
const HTTPBIN: &str = "spiffe://cluster.local/ns/full/sa/httpbin";

/// Waits until a daemon's status says something of `identity` that passes `is`.
fn status(
    daemon: &Daemon,
    identity: &str,
    what: &str,
    is: impl Fn(&serde_json::Value) -> bool,
) -> Result<Duration> {
    let began = std::time::Instant::now();
    until(Duration::from_secs(15), what, || match svid(daemon, identity) {
        Ok(svid) if is(&svid) => Ok(()),
        Ok(svid) => Err(svid.to_string()),
        Err(error) => Err(format!("{error:#}")),
    })?;
    Ok(began.elapsed())
}

fn another_serial(daemon: &Daemon, identity: &str, than: &str) -> Result<Duration> {
    let is = |svid: &serde_json::Value| svid["serial"].as_str().is_some_and(|it| it != than);
    status(daemon, identity, "another serial number", is)
}

#[test]
fn files_are_used_and_replaced_without_a_failed_request() -> Result<()> {
    let (mut world, material) = from_files()?;
    let server = world.pod("httpbin-full").clone();
    let _echo = serve(&server, "echo", PORT)?;
    world.change(|mesh| {
        mesh.mode("full", "httpbin", "STRICT");
    })?;
    let capture = Capture::start(world.node(0))?;
    let client = world.pod("sleep-full").clone();
    let mut old = client.inside(|| client::connect(To::Full.v4(PORT)))?;
    ping(&mut old, "canary of an open connection")?;
    let mark = world.b().mark();
    ensure!(client.inside(|| converse(To::Full.v4(PORT), "canary of the first"))?.worked());
    let line = world.b().logged(mark, "inbound", |line| line["direction"] == "inbound")?;
    ensure!(line["source"]["identity"] == SLEEP, "{line}");
    for (daemon, identity) in [(world.a(), SLEEP), (world.b(), HTTPBIN)] {
        ensure!(svid(daemon, identity)?["source"] == "files");
    }

    let over = AtomicBool::new(false);
    let world = &world;
    std::thread::scope(|scope| -> Result<()> {
        let talking = scope.spawn(|| {
            client.inside(|| {
                let mut requests = 0;
                while !over.load(Ordering::Relaxed) {
                    let talk = converse(To::Full.v4(PORT), "canary of many")?;
                    ensure!(talk.worked(), "request {requests}: {talk:?}");
                    requests += 1;
                }
                Ok(requests)
            })
        });
        let changes = (|| -> Result<()> {
            for round in 2..5 {
                let before = material.serial(world.a(), SLEEP)?;
                material.renew(Material::A, "sleep", "full/sleep")?;
                another_serial(world.a(), SLEEP, &before)?;
                let before = material.serial(world.b(), HTTPBIN)?;
                material.swap("full/httpbin", &round.to_string())?;
                another_serial(world.b(), HTTPBIN, &before)?;
            }
            // Half of a change, and rubbish: what is there stays in use.
            let before = material.serial(world.a(), SLEEP)?;
            let key = fs::read(material.key("sleep"))?;
            let stranger = material.issue("stranger", "full/sleep")?;
            for (text, why) in [(fs::read(&stranger.key)?, "key"), (key[..60].to_vec(), "PEM")] {
                fs::write(material.key("sleep"), text)?;
                status(world.a(), SLEEP, "an error", |svid| {
                    let error = svid["last_error"].as_str().unwrap_or_default();
                    error.contains("sleep.key") && error.contains(why)
                })?;
                ensure!(material.serial(world.a(), SLEEP)? == before);
            }
            material.renew(Material::A, "sleep", "full/sleep")?;
            another_serial(world.a(), SLEEP, &before)?;
            status(world.a(), SLEEP, "no error", |svid| svid["last_error"].is_null())?;
            Ok(())
        })();
        over.store(true, Ordering::Relaxed);
        let requests = talking.join().expect("no panic")?;
        changes?;
        ensure!(requests > 20, "only {requests} requests were made meanwhile");
        Ok(())
    })?;
    ping(&mut old, "canary of an open connection")?;
    ensure!(!capture.saw("canary of")?, "something left in the clear");
    Ok(())
}

#[test]
fn without_a_certificate_a_workload_does_not_talk_and_status_names_the_file() -> Result<()> {
    const OTHER: &str = "spiffe://cluster.local/ns/partial/sa/other";
    let (mut world, material) = from_files()?;
    let _echo = serve(world.pod("httpbin-full"), "echo", PORT)?;
    let (pod, node) = (world.pod("plain-partial").clone(), world.node(1).clone());
    world.change(|mesh| {
        mesh.enrol(&node, &pod, "partial", "other", "other");
    })?;
    let talk = || pod.inside(|| converse(To::Full.v4(PORT), "canary"));
    let mark = world.b().mark();
    ensure!(!talk()?.worked());
    world.b().logged(mark, "no identity", |line| line["outcome"] == "no_identity")?;
    let error = |text: &'static str| {
        move |svid: &serde_json::Value| {
            svid["last_error"].as_str().is_some_and(|error| error.contains(text))
        }
    };
    status(world.b(), OTHER, "no file", error("no certificate in"))?;
    // A certificate alone is not enough.
    let mount = material.node(Material::B).join("partial/other");
    fs::create_dir_all(&mount)?;
    let pair = material.issue("other", "partial/other")?;
    fs::copy(&pair.certificate, mount.join("tls.crt"))?;
    fs::copy(&material.root().certificate, mount.join("ca.crt"))?;
    status(world.b(), OTHER, "no key", error("partial/other/tls.key"))?;
    ensure!(svid(world.b(), OTHER)?["serial"].is_null());
    fs::copy(&pair.key, mount.join("tls.key"))?;
    status(world.b(), OTHER, "a certificate", |svid| svid["serial"].is_string())?;
    ensure!(talk()?.worked());
    Ok(())
}

/// What an agent gives for `account`, new.
fn given(material: &Material, account: &str) -> Result<Given> {
    let pair = material.issue(&account.replace('/', "-"), account)?;
    let (namespace, name) = account.split_once('/').context("namespace/account")?;
    Ok(Given {
        id: format!("spiffe://cluster.local/ns/{namespace}/sa/{name}"),
        chain: openssl::certificate_der(&pair.certificate)?,
        key: openssl::pkcs8_der(&pair.key)?,
        bundle: openssl::certificate_der(&material.root().certificate)?,
    })
}

/// The shared topology with one agent for both nodes, which gives `accounts`.
fn with_agent(flag: &str, accounts: &[&str]) -> Result<(World, Material, Agent)> {
    let mut world = World::without_daemons(&[])?;
    let material = Material::new(&world.bed.directory)?;
    let gives = accounts.iter().map(|it| given(&material, it)).collect::<Result<_>>()?;
    let socket = world.bed.directory.join("agent.sock");
    let agent = Agent::start(&socket, gives)?;
    let socket = format!("unix://{}", socket.display());
    world.start(|spec| spec.with("--identity-source", "spiffe").with(flag, &socket))?;
    Ok((world, material, agent))
}

const ALL: [&str; 3] = ["full/sleep", "full/httpbin", "partial/httpbin"];

fn an_agent_rotates_restarts_and_withdraws(flag: &str, source: &str) -> Result<()> {
    let (world, material, mut agent) = with_agent(flag, &ALL)?;
    let server = world.pod("httpbin-full").clone();
    let _echo = serve(&server, "echo", PORT)?;
    let client = world.pod("sleep-full").clone();
    let talk = || client.inside(|| converse(To::Full.v4(PORT), "canary"));
    ensure!(talk()?.worked());
    ensure!(svid(world.a(), SLEEP)?["source"] == source);
    let mark = world.b().mark();
    ensure!(talk()?.worked());
    let line = world.b().logged(mark, "inbound", |line| line["direction"] == "inbound")?;
    ensure!(line["source"]["identity"] == SLEEP, "{line}");

    // New ones come by themselves.
    let before = material.serial(world.a(), SLEEP)?;
    agent.give(ALL.iter().map(|it| given(&material, it)).collect::<Result<_>>()?);
    another_serial(world.a(), SLEEP, &before)?;
    ensure!(talk()?.worked());

    // An agent that is away, or takes back, breaks nothing that is there.
    agent.stop();
    ensure!(talk()?.worked());
    let before = material.serial(world.a(), SLEEP)?;
    let rest = ["full/httpbin", "partial/httpbin"];
    agent.give(rest.iter().map(|it| given(&material, it)).collect::<Result<_>>()?);
    agent.resume()?;
    status(world.a(), SLEEP, "what is missing", |svid| {
        let error = svid["last_error"].as_str().unwrap_or_default();
        error.contains("no SVID for") && error.contains(SLEEP)
    })?;
    ensure!(material.serial(world.a(), SLEEP)? == before && talk()?.worked());
    agent.give(ALL.iter().map(|it| given(&material, it)).collect::<Result<_>>()?);
    another_serial(world.a(), SLEEP, &before)?;
    ensure!(talk()?.worked());
    Ok(())
}

#[test]
fn the_workload_api_gives_what_the_daemon_is_registered_for() -> Result<()> {
    an_agent_rotates_restarts_and_withdraws("--spiffe-endpoint-socket", "spiffe")
}

#[test]
fn the_delegated_identity_api_gives_what_workloads_are_registered_for() -> Result<()> {
    an_agent_rotates_restarts_and_withdraws("--delegated-identity-socket", "spiffe (delegated)")
}
