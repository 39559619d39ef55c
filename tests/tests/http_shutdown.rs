//! A daemon that is told to stop: HTTP clients finish what they have begun, and are sent away with
//! their next answer, not cut off.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Result, ensure};
use mtls_tests::client::End;
use mtls_tests::wait::{eventually, patience};
use mtls_tests::web::{self, AUTO, PORT};
use nix::sys::signal::Signal;

#[test]
fn http1_clients_finish_and_are_sent_away() -> Result<()> {
    let mut town = web::start(|spec| spec.with("--drain", "30s"))?;
    let file = town.world.bed.directory.join("upload");
    std::fs::File::create(&file)?.set_len(300 << 10)?;
    let file = file.to_string_lossy().into_owned();
    let to = town.server(PORT);
    let mut kept = Vec::new();
    for (client, port) in [("client", PORT), ("stranger", PORT), ("client", AUTO)] {
        let mut talker = town.talker(client, town.server(port))?;
        let answer = talker.get("/before")?;
        ensure!(answer.code == 200 && !answer.head.to_lowercase().contains("connection:"));
        kept.push(talker);
    }
    // One that has asked nothing yet: there is no connection to the application for it.
    let mut fresh = town.talker("client", to)?;
    fresh.send("GET /fr")?;
    // Half of a request that the application has begun to read.
    let mut half = town.talker("client", to)?;
    let seen = town.app.bytes();
    half.send("POST /half HTTP/1.1\r\nHost: app\r\nContent-Length: 6\r\n\r\nabc")?;
    eventually(patience(Duration::from_secs(5)), "the half of a request", || {
        town.app.bytes() > seen
    })?;
    let (mark, before) = (town.world.b().mark(), town.app.bytes());
    let uploaded = std::thread::scope(|scope| -> Result<_> {
        // Takes two seconds and more.
        let more = ["--limit-rate", "120K", "--dump-header", "-", "--upload-file", &file];
        let (world, app) = (&town.world, &town.app);
        let url = format!("http://{to}/upload");
        let upload = scope.spawn(move || {
            let arguments = [&more[..], &[url.as_str()]].concat();
            mtls_tests::curl::run(world.pod("client"), &arguments)
        });
        eventually(patience(Duration::from_secs(5)), "that the upload has begun", || {
            app.bytes() > before + 100
        })?;
        ensure!(!upload.is_finished());
        world.b().process.signal(Signal::SIGTERM)?;
        world.b().said(0, "that it stops", |line| line.contains("SIGTERM"))?;
        upload.join().expect("no panic")
    })?;
    ensure!((uploaded.exit, uploaded.code) == (0, 200), "{uploaded:?}");
    ensure!(uploaded.body.contains("\r\nconnection: close\r\n"), "{uploaded:?}");
    ensure!(uploaded.body.trim_end().ends_with(&(300 << 10).to_string()), "{uploaded:?}");
    let answer = fresh.ask("esh HTTP/1.1\r\nHost: app\r\n\r\n")?;
    ensure!(answer.code == 200 && answer.head.contains("connection: close"), "{answer:?}");
    half.send("def")?;
    let answer = half.answer()?;
    ensure!((answer.code, answer.body.as_str()) == (200, "6\n"), "{answer:?}");
    for mut talker in kept.into_iter().chain([half]).rev() {
        // The one whose request was under way has been told with its answer.
        if let Ok(answer) = talker.get("/after") {
            ensure!(answer.code == 200, "{answer:?}");
            ensure!(answer.head.contains("connection: close"), "{answer:?}");
        }
        let (rest, end) = talker.rest()?;
        ensure!(rest.is_empty() && end != End::Silent, "{rest:?} {end:?}");
    }
    let after = town
        .app
        .requests(0)
        .iter()
        .chain(&town.auto.requests(0))
        .filter(|seen| seen.line() == "GET /after HTTP/1.1")
        .count();
    ensure!(after == 3, "{after} were still answered");
    let status = town.world.daemons[1].process.wait(patience(Duration::from_secs(5)))?;
    ensure!(status.success(), "{status}");
    for _ in 0..6 {
        let line = town.world.b().logged(mark, "its end", |line| line["direction"] == "inbound")?;
        ensure!(line["outcome"] == "ok", "{line}");
    }
    Ok(())
}
