//! What the walkthroughs say of identities: what a server's certificate holds, what becomes of it when
//! the trust domain changes, where keys are not, and how one sees who is in the mesh.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use mtls_tests::Town;
use mtls_tests::walkthrough::certificate::{self, Key, Question};
use mtls_tests::walkthrough::steps::DENIED;
use mtls_tests::walkthrough::{Family, Member, Request, attempt, three, two};

const QUESTION: Question = Question { from: "legacy", to: "mtls-test" };

fn members() -> Vec<Member> {
    three::walkthrough().members
}

#[test]
fn a_server_shows_an_rsa_certificate_where_rsa_is_asked_for() -> Result<()> {
    let town = Town::new(&members(), |spec| spec.with("--key-type", "rsa-2048"))?;
    for family in [Family::V4, Family::V6] {
        let text = certificate::ask(&town, QUESTION, family)?;
        let lines = certificate::lines("cluster.local", "mtls-test", Key::Rsa2048);
        ensure!(certificate::missing(&text, &lines).is_none(), "{lines:?} in {text}");
        let subject = text.lines().find(|line| line.trim_start().starts_with("Subject:"));
        ensure!(subject.is_some_and(|line| line.trim() == "Subject:"), "{text}");
    }
    // And it is as good as another: both ends hold RSA keys.
    let request = Request::headers("full", "mtls-test", mtls_tests::walkthrough::steps::IDENTITY);
    let attempt = attempt(&town, &request, Family::V4)?;
    ensure!(attempt.differs(&request).is_none(), "{attempt:?}");
    Ok(())
}

#[test]
fn another_trust_domain_gives_new_names_and_its_alias_keeps_policies_working() -> Result<()> {
    let mut town = Town::new(&members(), |spec| spec)?;
    town.world.change(three::deny_get)?;
    let denied = Request::headers("full", "mtls-test", DENIED);
    let before = attempt(&town, &denied, Family::V4)?;
    ensure!(before.differs(&denied).is_none(), "{before:?}");

    for daemon in &mut town.world.daemons {
        daemon.term()?;
        daemon.spec = daemon.spec.clone().with("--trust-domain", "new.example");
        daemon.spec = daemon.spec.clone().with("--trust-domain-alias", "cluster.local");
        daemon.restart()?;
    }
    let text = certificate::ask(&town, QUESTION, Family::V4)?;
    ensure!(text.contains("URI:spiffe://new.example/ns/mtls-test/sa/httpbin"), "{text}");
    let own = Request::headers("mtls-test", "mtls-test", DENIED);
    let attempted = attempt(&town, &own, Family::V4)?;
    ensure!(attempted.curl.code == 200, "{attempted:?}");
    let uri = attempted.uri().context("a header")?;
    ensure!(uri == "spiffe://new.example/ns/mtls-test/sa/sleep", "{uri}");
    // The policy still says cluster.local.
    let attempted = attempt(&town, &denied, Family::V4)?;
    ensure!(attempted.curl.code == 403, "{attempted:?}");
    Ok(())
}

#[test]
fn no_workloads_key_is_in_a_file() -> Result<()> {
    let town = Town::new(&members(), |spec| spec)?;
    let directory = &town.world.bed.directory;
    let mut seen = 0;
    let holding = files_with(directory, "PRIVATE KEY", &mut seen)?;
    let ca = directory.join("ca");
    // The CA's own is the one that has to outlive the daemon.
    ensure!(holding.iter().any(|file| file.starts_with(&ca)), "the search finds nothing at all");
    ensure!(holding.iter().all(|file| file.starts_with(&ca)), "{holding:?}");
    ensure!(seen > 2, "{seen} files");
    Ok(())
}

fn files_with(directory: &Path, text: &str, seen: &mut usize) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            found.extend(files_with(&entry.path(), text, seen)?);
        } else if kind.is_file() {
            *seen += 1;
            if String::from_utf8_lossy(&std::fs::read(entry.path())?).contains(text) {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

#[test]
fn the_status_says_which_pods_are_in_the_mesh() -> Result<()> {
    let members = two::walkthrough().members;
    let town = Town::new(&members, |spec| spec)?;
    let mut shown = BTreeSet::new();
    for daemon in &town.world.daemons {
        let status = daemon.status()?;
        let workloads = status["workloads"].as_array().context("workloads")?;
        for workload in workloads {
            ensure!(workload["state"] == "enrolled", "{workload}");
            shown.insert(workload["workload"].as_str().context("a name")?.to_owned());
        }
    }
    let enrolled = members.iter().filter(|it| it.enrolled);
    let expected: BTreeSet<String> =
        enrolled.map(|it| format!("{}/{}", it.namespace, it.pod)).collect();
    ensure!(shown == expected, "{shown:?} instead of {expected:?}");
    Ok(())
}

#[test]
fn without_an_object_the_default_mode_is_said() -> Result<()> {
    let town = Town::new(&members(), |spec| spec)?;
    ensure!(town.world.mesh.count("PeerAuthentication") == 0);
    let mark = town.world.b().mark();
    let request = Request::headers("full", "mtls-test", mtls_tests::walkthrough::steps::IDENTITY);
    let attempted = attempt(&town, &request, Family::V4)?;
    ensure!(attempted.differs(&request).is_none(), "{attempted:?}");
    let line = town.world.b().logged(mark, "inbound", |line| line["direction"] == "inbound")?;
    ensure!(line["mode"] == "PERMISSIVE", "{line}");
    let policy = line["policy"].as_str().unwrap_or_default();
    ensure!(policy.contains("default") && policy.contains("no PeerAuthentication"), "{line}");
    Ok(())
}
