//! Connections become as old as `--max-connection-age` allows: HTTP ends between two requests, without a
//! failed one; whatever else is open is ended.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mtls_tests::World;
use mtls_tests::client::{self, End, ping, read_to_end};
use mtls_tests::talker::Talker;
use mtls_tests::wait::patience;
use mtls_tests::web;
use mtls_tests::world::To;

const AGE: Duration = Duration::from_secs(3);

#[test]
fn http_clients_are_sent_away_between_requests_and_none_fails() -> Result<()> {
    let town = web::start(|spec| spec.with("--max-connection-age", "3s").with("--drain", "10s"))?;
    let to = town.server(web::PORT);
    let begun = Instant::now();
    let (mut talker, mut opened) = (town.talker("client", to)?, Instant::now());
    let (mut connections, mut requests) = (1, 0);
    while connections < 4 {
        ensure!(begun.elapsed() < patience(Duration::from_secs(40)), "{connections} connections");
        let answer = talker.get("/").with_context(|| format!("request {requests}"))?;
        ensure!(answer.code == 200, "{answer:?}");
        requests += 1;
        if answer.head.to_lowercase().contains("connection: close") {
            let age = opened.elapsed();
            ensure!(age >= AGE.mul_f64(0.85) && age < patience(AGE * 2), "sent away after {age:?}");
            (talker, opened) = (town.talker("client", to)?, Instant::now());
            connections += 1;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    ensure!(requests > 20, "{requests} requests are not many");
    for daemon in [town.world.a(), town.world.b()] {
        let lines = daemon.process.stdout.json_after(0);
        let failed: Vec<_> = lines.iter().filter(|line| line["outcome"] != "ok").collect();
        ensure!(failed.is_empty(), "{failed:?}");
    }
    Ok(())
}

#[test]
fn what_is_no_http_is_ended_and_the_log_says_why() -> Result<()> {
    let limits = |spec: mtls_tests::DaemonSpec| {
        spec.with("--max-connection-age", "3s").with("--drain", "1s")
    };
    let mut world = World::with(&[], |_, _| {}, limits)?;
    world.serve("httpbin-full", "echo", 9000)?;
    let client = world.pod("sleep-full");
    let begun = Instant::now();
    let mut stream = client.inside(|| client::connect(To::Full.v4(9000)))?;
    ping(&mut stream, "while it is young")?;
    stream.set_read_timeout(Some(patience(Duration::from_secs(20))))?;
    let (_, end) = read_to_end(&mut stream)?;
    let age = begun.elapsed();
    ensure!(end == End::Broken, "it ended {end:?}");
    ensure!(age >= AGE.mul_f64(0.85) + Duration::from_secs(1), "after {age:?}");
    let old = |line: &serde_json::Value| line["outcome"] == "max_connection_age";
    let line = world.b().logged(0, "the end of an old connection", old)?;
    ensure!(line["direction"] == "inbound" && line["fault"] == "us", "{line}");
    // And the next one is as good as any.
    let mut stream = client.inside(|| client::connect(To::Full.v4(9000)))?;
    ping(&mut stream, "young again")
}

#[test]
fn without_the_flag_a_connection_gets_as_old_as_it_likes() -> Result<()> {
    let town = web::start(|spec| spec)?;
    let mut talker: Talker = town.talker("client", town.server(web::PORT))?;
    for _ in 0..2 {
        let answer = talker.get("/")?;
        ensure!(answer.code == 200 && !answer.head.to_lowercase().contains("connection:"));
        std::thread::sleep(AGE + Duration::from_secs(2));
    }
    ensure!(talker.get("/")?.code == 200);
    Ok(())
}
