//! Revocation lists in files, for CAs that have no other way to tell.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use mtls_tests::World;
use mtls_tests::bed::PodSpec;
use mtls_tests::client::{self, End, converse, ping, read_to_end};
use mtls_tests::late::Late;
use mtls_tests::openssl;
use mtls_tests::svids::svid;
use mtls_tests::wait::until;
use mtls_tests::world::To;
use serde_json::Value;

const PORT: u16 = 9000;
const SLEEP: &str = "spiffe://cluster.local/ns/full/sa/sleep";

fn put(place: &Path, text: &str) -> Result<()> {
    let partial = place.with_file_name("partial");
    fs::write(&partial, text)?;
    Ok(fs::rename(partial, place)?)
}

#[test]
fn a_file_cuts_off_a_stolen_key_and_an_overdue_one_everybody() -> Result<()> {
    let mut world = World::with(&[PodSpec::new(0, "thief", 40)], |_, _| {}, |spec| spec)?;
    world.serve("httpbin-full", "echo", PORT)?;
    let directory = world.bed.directory.clone();
    let ca = openssl::mesh_ca(&directory);
    let lists = directory.join("crl");
    fs::create_dir(&lists)?;
    let file = lists.join("ca.pem");
    put(&file, &openssl::crl(&directory, &ca, &[], 3600)?)?;
    world.daemons[1].term()?;
    let flags = ["--crl-file", lists.to_str().unwrap_or_default(), "--revocation", "required"];
    world.daemons[1].spec.arguments.extend(flags.map(str::to_owned));
    world.daemons[1].restart()?;

    // Somebody who has a copy of a key, in a pod that no daemon looks after.
    let stolen = openssl::svid(&directory, "stolen", &ca, SLEEP)?;
    let (thief, server) = (world.pod("thief"), world.pod("httpbin-full"));
    let late = Late::new(thief, server.v4(PORT), &stolen, Duration::ZERO)?;
    let mut open = thief.inside(|| client::connect(late.address))?;
    ping(&mut open, "with a stolen key")?;
    let mut sound = world.pod("sleep-full").inside(|| client::connect(To::Full.v4(PORT)))?;
    ping(&mut sound, "with its own")?;

    let mark = world.b().mark();
    let serial = openssl::serial(&stolen)?;
    // The next list's date must be another second's.
    std::thread::sleep(Duration::from_millis(1100));
    put(&file, &openssl::crl(&directory, &ca, &[&serial], 3600)?)?;
    let (_, end) = read_to_end(&mut open)?;
    ensure!(end != End::Silent, "the stolen key's connection stayed open");
    let revoked = |line: &Value| line["outcome"] == "peer_certificate_revoked";
    let line = world.b().logged(mark, "its end", revoked)?;
    let serial = serial.to_lowercase();
    let detail = line["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains(serial.trim_start_matches('0')), "{line}");
    let late = Late::new(thief, server.v4(PORT), &stolen, Duration::ZERO)?;
    let mark = world.b().mark();
    let again = thief.inside(|| converse(late.address, "again"));
    ensure!(!again.is_ok_and(|talk| talk.worked()), "a new connection with the stolen key");
    world.b().logged(mark, "the refusal", revoked)?;
    ping(&mut sound, "the owner has another certificate")?;

    // Half a file: the one before stays in force, and status says so.
    fs::write(&file, "-----BEGIN X509 CRL-----\nMIIB\n")?;
    let problem = until(Duration::from_secs(10), "status to say so", || {
        let status = world.b().status().map_err(|error| format!("{error:#}"))?;
        let problems = status["revocation"]["problems"].to_string();
        if problems.contains("ca.pem") { Ok(problems) } else { Err(status.to_string()) }
    })?;
    ensure!(problem.contains("PEM"), "{problem}");
    ping(&mut sound, "nothing else changed")?;

    // Whoever should fetch the next one does not.
    std::thread::sleep(Duration::from_millis(1100));
    put(&file, &openssl::crl(&directory, &ca, &[&serial], 5)?)?;
    let (_, end) = read_to_end(&mut sound)?;
    ensure!(end == End::Broken, "{end:?}");
    let unknown = |line: &Value| line["outcome"] == "revocation_unknown";
    let line = world.b().logged(mark, "everybody is refused", unknown)?;
    let detail = line["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains("should have been followed"), "{line}");
    put(&file, &openssl::crl(&directory, &ca, &[&serial], 3600)?)?;
    let client = world.pod("sleep-full");
    until(Duration::from_secs(10), "a new list to be read", || {
        match client.inside(|| converse(To::Full.v4(PORT), "hello")) {
            Ok(talk) if talk.worked() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
}

#[test]
fn a_list_that_cannot_be_used_at_the_start_is_an_error_and_the_workloads_stay_shut() -> Result<()> {
    let mut world = World::new()?;
    let file = world.bed.directory.join("crl.pem");
    fs::write(&file, "nothing\n")?;
    world.daemons[1].term()?;
    let spec = world.b().spec.clone().with("--crl-file", file.to_str().unwrap_or_default());
    let (status, said) = spec.refused()?;
    ensure!(status.code() == Some(64) && said.contains("crl.pem"), "{status}: {said}");
    world.serve("httpbin-full", "echo", PORT)?;
    let talk = world.pod("sleep-full").inside(|| converse(To::Full.v4(PORT), "hello"))?;
    ensure!(!talk.worked(), "{talk:?}");
    Ok(())
}

/// A client's daemon refuses the server whose certificate is on a list, and whoever no list speaks of where
/// one is required.
#[test]
fn a_server_on_a_list_is_refused_by_its_clients() -> Result<()> {
    let mut world = World::new()?;
    world.serve("httpbin-full", "echo", PORT)?;
    world.serve("httpbin-partial", "echo", PORT)?;
    let directory = world.bed.directory.clone();
    let ca = openssl::mesh_ca(&directory);
    let lists = directory.join("crl");
    fs::create_dir(&lists)?;
    let file = lists.join("ca.pem");
    world.daemons[0].term()?;
    let flags = ["--crl-file", lists.to_str().unwrap_or_default(), "--revocation", "required"];
    world.daemons[0].spec.arguments.extend(flags.map(str::to_owned));
    // Somebody else's: of nobody here is it known that they are not revoked.
    let other = openssl::self_signed(&directory, "other")?;
    put(&lists.join("other.pem"), &openssl::crl(&directory, &other, &[], 3600)?)?;
    world.daemons[0].restart()?;
    let client = world.pod("sleep-full").clone();
    let talk = |to: To| client.inside(|| converse(to.v4(PORT), "hello"));
    let outcome = |world: &World, mark: usize, what: &str| -> Result<Value> {
        world
            .a()
            .logged(mark, what, |line| line["direction"] == "outbound" && line["outcome"] == what)
    };
    ensure!(!talk(To::Full)?.worked(), "no list of its CA, and one is required");
    let line = outcome(&world, 0, "revocation_unknown")?;
    ensure!(line["detail"].as_str().is_some_and(|it| it.contains("was ever had")), "{line}");
    put(&file, &openssl::crl(&directory, &ca, &[], 3600)?)?;
    let works = |to: To| {
        until(Duration::from_secs(10), "traffic", || match talk(to) {
            Ok(talk) if talk.worked() => Ok(()),
            other => Err(format!("{other:?}")),
        })
    };
    works(To::Full)?;
    works(To::Partial)?;

    let mut open = client.inside(|| client::connect(To::Full.v4(PORT)))?;
    ping(&mut open, "before")?;
    let server = svid(world.b(), "spiffe://cluster.local/ns/full/sa/httpbin")?;
    let serial = server["serial"].as_str().unwrap_or_default().to_uppercase();
    let mark = world.a().mark();
    // The next list's date must be another second's.
    std::thread::sleep(Duration::from_millis(1100));
    put(&file, &openssl::crl(&directory, &ca, &[&serial], 3600)?)?;
    let (_, end) = read_to_end(&mut open)?;
    ensure!(end != End::Silent, "the connection to it stayed open");
    let line = outcome(&world, mark, "upstream_certificate_revoked")?;
    let detail = line["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains(&serial.to_lowercase()) && line["fault"] == "server", "{line}");
    let mark = world.a().mark();
    ensure!(!talk(To::Full)?.worked(), "a new connection to a revoked server");
    let line = outcome(&world, mark, "upstream_certificate_revoked")?;
    ensure!(line["bytes_sent"] == 0, "{line}");
    works(To::Partial)
}
