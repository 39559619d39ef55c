//! Flags of `run` that no other test gives: where the access log goes, how the daemon's own looks, and what
//! the mesh's ranges are.
#![forbid(unsafe_code)]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use mtls_tests::client::converse;
use mtls_tests::daemon::LOG;
use mtls_tests::wait::{eventually, until};
use mtls_tests::world::{To, serve};
use mtls_tests::{Daemon, DaemonSpec, PodSpec, World};
use nix::sys::signal::Signal;
use serde_json::Value;

const PORT: u16 = 9000;

fn talk(world: &World, to: SocketAddr, text: &str) -> Result<()> {
    let talk = world.pod("sleep-full").inside(|| converse(to, text))?;
    ensure!(talk.worked(), "{to}: {talk:?}");
    Ok(())
}

/// A node's access log, beside its run directory.
fn file(spec: &DaemonSpec) -> PathBuf {
    spec.run.with_file_name(format!("{}.access.log", spec.name))
}

fn lines(file: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Waits until there are so many lines.
fn has(file: &Path, count: usize) -> Result<Vec<Value>> {
    until(LOG, &format!("{count} lines in {}", file.display()), || match lines(file) {
        Ok(lines) if lines.len() == count => Ok(lines),
        other => Err(format!("{other:?}")),
    })
}

#[test]
fn an_access_log_in_a_file_is_opened_anew_on_sighup() -> Result<()> {
    let mut world = World::with(
        &[],
        |_, _| {},
        |spec| {
            let file = file(&spec).display().to_string();
            spec.with("--access-log", &file)
        },
    )?;
    world.serve("httpbin-full", "echo", PORT)?;
    let daemon = world.a();
    let (current, rotated) = (file(&daemon.spec), file(&daemon.spec).with_extension("log.1"));
    talk(&world, To::Full.v4(PORT), "into the first")?;
    let line = has(&current, 1)?.remove(0);
    ensure!(line["direction"] == "outbound" && line["security"] == "mutual_tls", "{line}");

    // As logrotate does.
    fs::rename(&current, &rotated)?;
    daemon.process.signal(Signal::SIGHUP)?;
    eventually(LOG, "a new file", || current.exists())?;
    talk(&world, To::Full.v4(PORT), "into the second")?;
    let next = has(&current, 1)?.remove(0);
    ensure!(next != line && has(&rotated, 1)? == [line], "{next}");
    ensure!(daemon.status()?["ready"] == true, "SIGHUP ends nothing");
    let said = daemon.process.stdout.all();
    ensure!(said.is_empty(), "the file alone has them: {said:?}");
    Ok(())
}

#[test]
fn an_access_log_that_is_off_is_written_nowhere() -> Result<()> {
    let mut world = World::with(&[], |_, _| {}, |spec| spec.with("--access-log", "off"))?;
    world.serve("httpbin-full", "echo", PORT)?;
    talk(&world, To::Full.v4(PORT), "unheard of")?;
    for daemon in &mut world.daemons {
        // When a line would be written.
        eventually(LOG, "the connection's end", || {
            daemon.metric("istio_tcp_connections_closed_total", &[]).is_ok_and(|it| it == 1.0)
        })?;
        ensure!(daemon.term()?.success());
        let said = daemon.process.stdout.all();
        ensure!(said.is_empty(), "{said:?}");
    }
    Ok(())
}

#[test]
fn the_daemons_own_log_can_be_json() -> Result<()> {
    let mut world = World::with(&[], |_, _| {}, |spec| spec.with("--log-format", "json"))?;
    let daemon: &mut Daemon = &mut world.daemons[0];
    ensure!(daemon.term()?.success());
    let said = daemon.process.stderr.all();
    ensure!(said.len() > 1, "{said:?}");
    for line in said {
        let event: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        for field in ["timestamp", "level", "target", "message"] {
            ensure!(event[field].is_string(), "no {field} in {line}");
        }
    }
    Ok(())
}

/// The ranges that are given replace the default ones.
#[test]
fn the_meshs_ranges_are_those_that_are_given() -> Result<()> {
    let stranger = PodSpec::new(1, "stranger", 50);
    let v6 = stranger.v6;
    let stranger = stranger.at(Some(Ipv4Addr::new(198, 51, 100, 7)), v6);
    let range = |spec: DaemonSpec| spec.with("--mesh-range", "198.51.100.0/24");
    let world = World::with(&[stranger], |_, _| {}, range)?;
    let server = world.pod("stranger");
    let _echo = serve(server, "echo", PORT)?;
    let redirected = || world.a().decided("outbound_redirected");
    let before = redirected()?;
    talk(&world, server.v6(PORT), "outside the mesh")?;
    ensure!(redirected()? == before, "the application's own connection");
    talk(&world, server.v4(PORT), "inside")?;
    ensure!(redirected()? == before + 1.0, "the daemon's to look up");
    let line = world.a().logged(0, "the first", |_| true)?;
    ensure!(line["destination"]["address"] == server.v4(PORT).to_string(), "{line}");
    ensure!(line["security"] == "plaintext", "{line}");
    Ok(())
}
