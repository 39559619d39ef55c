//! What the CA revokes is refused by every node, and what it opened is closed, within the stated bound.
#![forbid(unsafe_code)]

use std::fs;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mtls_tests::bed::PodSpec;
use mtls_tests::client::{self, End, converse, ping, read_to_end};
use mtls_tests::daemon::{Daemon, DaemonSpec};
use mtls_tests::process::Process;
use mtls_tests::wait::{patience, until};
use mtls_tests::world::To;
use mtls_tests::{Ca, World};
use serde_json::Value;

const PORT: u16 = 9000;
const SLEEP: &str = "spiffe://cluster.local/ns/full/sa/sleep";
const IDENTITIES: [&str; 4] = ["full/sleep", "full/two", "full/httpbin", "partial/httpbin"];
/// From `ca revoke` to closed, as docs/ca.md states it for `--ca-poll 5s`.
const BOUND: Duration = Duration::from_secs(10);

/// Two nodes that joined one CA. Node a has two clients, `full/sleep` and `full/two`; an echo server
/// for them is on node b, whose `partial/httpbin` is one of its clients as well.
fn world(run: impl Fn(usize, DaemonSpec) -> DaemonSpec) -> Result<(World, Ca)> {
    let mut world = World::without_daemons(&[Ca::pod(0), PodSpec::new(0, "two", 12)])?;
    let node = world.node(0).clone();
    let pod = world.pod("two").clone();
    world.mesh.enrol(&node, &pod, "full", "two", "two");
    let ca = Ca::start(&world.bed, &[])?;
    world.start(|spec| {
        let index = usize::from(spec.name.ends_with("-b"));
        ca.joined(run(index, spec), &IDENTITIES)
    })?;
    world.serve("httpbin-full", "echo", PORT)?;
    Ok((world, ca))
}

fn open(world: &World, pod: &str) -> Result<TcpStream> {
    world.pod(pod).inside(|| {
        let mut stream = client::connect(To::Full.v4(PORT))?;
        ping(&mut stream, "while it is good")?;
        Ok(stream)
    })
}

fn works(world: &World, pod: &str) -> Result<bool> {
    Ok(world.pod(pod).inside(|| converse(To::Full.v4(PORT), "hello"))?.worked())
}

/// The connection ends by itself, within the bound from now.
fn ends(mut stream: TcpStream) -> Result<Duration> {
    let begun = Instant::now();
    stream.set_read_timeout(Some(patience(BOUND)))?;
    let (_, end) = read_to_end(&mut stream)?;
    ensure!(end == End::Broken, "it ended {end:?} after {:?}", begun.elapsed());
    Ok(begun.elapsed())
}

fn svid(daemon: &Daemon, identity: &str) -> Result<Value> {
    let status = daemon.status()?;
    let svids = status["svids"].as_array().context("svids")?;
    let svid = svids.iter().find(|svid| svid["identity"] == identity);
    Ok(svid.with_context(|| format!("no SVID of {identity}: {status}"))?.clone())
}

fn serial(daemon: &Daemon, identity: &str) -> Result<String> {
    Ok(svid(daemon, identity)?["serial"].as_str().context("a serial")?.to_owned())
}

/// Waits until the daemon has the CA's list of this number.
fn has_list(daemon: &Daemon, number: u64) -> Result<()> {
    until(BOUND, &format!("{} to have list {number}", daemon.spec.name), || {
        let status = daemon.status().map_err(|error| format!("{error:#}"))?;
        match status["revocation"]["list"]["number"].as_u64() {
            Some(held) if held >= number => Ok(()),
            _ => Err(format!("{}", status["revocation"])),
        }
    })
}

fn fast(_: usize, spec: DaemonSpec) -> DaemonSpec {
    spec.with("--ca-poll", "1s")
}

#[test]
fn a_revoked_certificate_is_cut_off_within_the_bound_and_no_other() -> Result<()> {
    // Node a is not told: it goes on showing the certificate, as somebody would who has its key.
    let (world, ca) = world(|index, spec| match index {
        0 => spec.with("--ca-poll", "1h"),
        _ => spec,
    })?;
    let (used, mut other) = (open(&world, "sleep-full")?, open(&world, "two")?);
    let (serial, mark) = (serial(world.a(), SLEEP)?, world.b().mark());
    ca.revoke(&["--serial", &serial, "--reason", "key lost"])?;
    let took = ends(used)?;
    ensure!(took < patience(BOUND), "{took:?}");
    let revoked = |line: &Value| line["outcome"] == "peer_certificate_revoked";
    let line = world.b().logged(mark, "the end of the connection", revoked)?;
    let detail = line["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains(&serial) && detail.contains("key lost"), "{line}");
    ensure!(detail.contains("was open"), "{line}");
    ensure!(line["source"]["identity"] == SLEEP && line["fault"] == "client", "{line}");

    let mark = world.b().mark();
    ensure!(!works(&world, "sleep-full")?, "a new connection with the revoked certificate");
    world.b().logged(mark, "the refusal", revoked)?;
    let reason = "reason=\"peer_certificate_revoked\"";
    ensure!(world.b().metric("mtls_connections_failed_total", &[reason])? >= 2.0);
    let told = |line: &Value| line["detail"].as_str().is_some_and(|it| it.contains("was revoked"));
    world.a().logged(0, "node a is told why", told)?;

    ping(&mut other, "another certificate of that node")?;
    ensure!(works(&world, "two")? && works(&world, "httpbin-partial")?);
    let list = &world.b().status()?["revocation"]["list"];
    ensure!(list["number"] == 1 && list["entries"] == 1, "{list}");
    ensure!(list["age_seconds"].as_u64().is_some_and(|age| age < 30), "{list}");
    ensure!(world.b().metric("mtls_revocation_list_entries", &["list=\"ca\""])? == 1.0);
    ensure!(world.b().reported("mtls_revocation_list_age_seconds", &["list=\"ca\""])? < 30.0);
    Ok(())
}

#[test]
fn a_node_replaces_a_certificate_of_its_own_that_was_revoked() -> Result<()> {
    let (world, ca) = world(fast)?;
    let used = open(&world, "sleep-full")?;
    let first = serial(world.a(), SLEEP)?;
    ca.revoke(&["--serial", &first])?;
    ends(used)?;
    until(BOUND, "another certificate", || match serial(world.a(), SLEEP) {
        Ok(now) if now != first => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    ensure!(works(&world, "sleep-full")?);
    Ok(())
}

#[test]
fn a_revoked_identity_stays_out_through_restarts_and_while_the_ca_is_away() -> Result<()> {
    let (mut world, mut ca) = world(fast)?;
    let (used, mut other) = (open(&world, "sleep-full")?, open(&world, "two")?);
    // It has a session by now, which is worth nothing once it is revoked.
    let mark = world.b().mark();
    ensure!(works(&world, "sleep-full")?);
    world.b().logged(mark, "a resumed session", |line| line["tls"]["resumed"] == true)?;
    let audit = ca.mark();
    ca.revoke(&["--identity", "full/sleep"])?;
    ends(used)?;
    for daemon in &world.daemons {
        has_list(daemon, 1)?;
    }
    ensure!(!works(&world, "sleep-full")?);
    ping(&mut other, "another identity")?;
    let refused = |line: &Value| line["outcome"] == "own_certificate_revoked";
    world.a().logged(0, "its own node does not use it either", refused)?;
    ca.audited(audit, "that it is not issued again", |line| {
        line["verdict"] == "refused" && line["identity"] == SLEEP
    })?;

    // The CA is away: nothing breaks, and what was revoked stays so.
    ca.stop()?;
    ensure!(works(&world, "two")? && !works(&world, "sleep-full")?);
    world.daemons[1].kill9()?;
    let spec = world.b().spec.clone();
    let name = format!("mtls-daemon of {}", spec.name);
    world.daemons[1].process = Process::start(name, spec.command()?)?;
    // It has no SVIDs, which only the CA gives, and the list of before.
    has_list(world.b(), 1)?;
    ensure!(!works(&world, "sleep-full")?);

    ca.restart()?;
    world.daemons[1].ready()?;
    until(BOUND, "what is not revoked to work", || match works(&world, "two") {
        Ok(true) => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    ensure!(!works(&world, "sleep-full")?);
    // Revoked while it was away, too: the command writes files.
    ca.revoke(&["--identity", "full/sleep", "--undo"])?;
    until(BOUND, "the identity to be back", || match works(&world, "sleep-full") {
        Ok(true) => Ok(()),
        other => Err(format!("{other:?}")),
    })
}

#[test]
fn a_revoked_node_takes_with_it_all_that_it_obtained() -> Result<()> {
    let (mut world, ca) = world(fast)?;
    let opened = [open(&world, "sleep-full")?, open(&world, "two")?];
    let mut other = open(&world, "httpbin-partial")?;
    let (audit, mark, node) = (ca.mark(), world.b().mark(), world.a().spec.name.clone());
    ca.revoke(&["--node", &node, "--reason", "stolen"])?;
    for stream in opened {
        ends(stream)?;
    }
    for pod in ["sleep-full", "two"] {
        ensure!(!works(&world, pod)?, "{pod}");
    }
    let line =
        world.b().logged(mark, "the end", |it| it["outcome"] == "peer_certificate_revoked")?;
    ensure!(line["detail"].as_str().is_some_and(|it| it.contains("stolen")), "{line}");
    ping(&mut other, "the other node's workloads")?;
    ensure!(works(&world, "httpbin-partial")?);
    // It is told nothing any more, and gets nothing: not even for identities that nobody revoked, neither
    // with its own certificate nor with a new token.
    world.a().said(0, "that the CA refuses it", |line| line.contains("tells nothing"))?;
    let own = |line: &Value| line["caller"].as_str().is_some_and(|it| it.contains(&node));
    let asked = ca.mark();
    world.daemons[0].kill9()?;
    let spec = world.a().spec.clone();
    ca.renew_token(&spec, &IDENTITIES)?;
    world.daemons[0].process = Process::start("the next daemon of the node", spec.command()?)?;
    ca.audited(asked, "what it gets", |line| own(line) && line["verdict"] == "refused")?;
    let joined = |line: &Value| own(line) && line.to_string().contains("token");
    let line = ca.audited(asked, "what it gets with the token", joined)?;
    ensure!(line["verdict"] == "refused", "{line}");
    let issued: Vec<_> = ca.process.stdout.json_after(audit);
    let issued = issued.iter().find(|line| own(line) && line["verdict"] == "issued");
    ensure!(issued.is_none(), "{issued:?}");
    Ok(())
}

/// Certificates it gets; the list it cannot keep, and what is not kept is not in force.
#[test]
fn where_a_list_is_required_nobody_is_believed_before_there_is_one() -> Result<()> {
    let mut world = World::without_daemons(&[Ca::pod(0)])?;
    let ca = Ca::start(&world.bed, &[])?;
    world.mesh.write()?;
    let spec =
        |index: usize| ca.joined(fast(index, DaemonSpec::new(&world.bed, index)), &IDENTITIES);
    let (a, b) = (spec(0), spec(1).with("--revocation", "required"));
    let place = b.state.join("revocations.signed");
    fs::create_dir_all(&place)?;
    world.daemons.push(a.start()?);
    world.daemons.push(b.spawn()?);
    world.serve("httpbin-full", "echo", PORT)?;
    let awaited =
        |world: &World| -> Result<String> { Ok(world.b().status()?["awaited"].to_string()) };
    // What cannot be written is in force all the same, and said.
    world.daemons[1].ready()?;
    ensure!(works(&world, "sleep-full")?);
    let problems = |world: &World| -> Result<String> {
        Ok(world.b().status()?["revocation"]["problems"].to_string())
    };
    ensure!(problems(&world)?.contains("cannot be kept"), "{}", problems(&world)?);
    fs::remove_dir(&place)?;
    until(Duration::from_secs(30), "the list on disk", || match problems(&world) {
        Ok(problems) if problems == "[]" && place.is_file() => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    // What it has kept counts for the next daemon although the CA is away; without it the list is awaited
    // again.
    let mut ca = ca;
    ca.stop()?;
    for kept in [true, false] {
        world.daemons[1].kill9()?;
        if !kept {
            fs::remove_file(&place)?;
        }
        world.daemons[1].process = Process::start("the next daemon", world.b().spec.command()?)?;
        until(Duration::from_secs(30), "what is awaited", || match awaited(&world) {
            Ok(it) if it.contains("SVID") && it.contains("a revocation list") != kept => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
        ensure!(!works(&world, "sleep-full")?);
    }
    ca.restart()?;
    world.daemons[1].ready()?;
    until(BOUND, "traffic", || match works(&world, "sleep-full") {
        Ok(true) => Ok(()),
        other => Err(format!("{other:?}")),
    })
}

#[test]
fn a_list_that_grows_too_old_closes_what_is_open_where_that_is_asked_for() -> Result<()> {
    let (world, mut ca) = world(|index, spec| match index {
        0 => fast(0, spec),
        _ => fast(1, spec).with("--revocation-max-age", "10s"),
    })?;
    let used = open(&world, "sleep-full")?;
    ca.stop()?;
    let begun = Instant::now();
    let mut used = used;
    used.set_read_timeout(Some(patience(Duration::from_secs(30))))?;
    let (_, end) = read_to_end(&mut used)?;
    ensure!(end == End::Broken && begun.elapsed() > Duration::from_secs(5), "{end:?}");
    ensure!(!works(&world, "sleep-full")?);
    let unknown = |line: &Value| line["outcome"] == "revocation_unknown";
    let line = world.b().logged(0, "why", unknown)?;
    ensure!(line["fault"] == "us", "{line}");
    ca.restart()?;
    until(BOUND, "a fresh list", || match works(&world, "sleep-full") {
        Ok(true) => Ok(()),
        other => Err(format!("{other:?}")),
    })
}
