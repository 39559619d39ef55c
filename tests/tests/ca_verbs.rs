//! What an operator types on the CA's machine: whose the files stay, which trust domain is meant.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mtls_tests::process::{Process, bound, output, sibling};
use mtls_tests::wait;
use nix::sys::signal::Signal;

/// Of nobody on this host.
const SERVICE: u32 = 4_000_041;
const SOON: Duration = Duration::from_secs(30);

/// A directory below one that every user may enter.
struct Place {
    _held: tempfile::TempDir,
    directory: PathBuf,
}

impl Place {
    fn new() -> Result<Self> {
        let held = tempfile::tempdir()?;
        fs::set_permissions(held.path(), fs::Permissions::from_mode(0o755))?;
        let directory = held.path().join("ca");
        Ok(Self { _held: held, directory })
    }

    fn start(&self, arguments: &[&str]) -> Result<Process> {
        let mut command = bound(sibling("mtls-daemon", "MTLS_DAEMON_BIN")?);
        command.args(["ca", "run", "--listen", "127.0.0.1:0", "--dir"]).arg(&self.directory);
        command.args(arguments);
        Process::start("the CA", command)
    }

    /// Runs a CA until it serves, and ends it.
    fn run(&self, arguments: &[&str]) -> Result<()> {
        let mut process = self.start(arguments)?;
        wait::eventually(SOON, "the CA to serve", || {
            process.stderr.all().iter().any(|line| line.contains("the CA serves"))
        })
        .with_context(|| format!("{:?}", process.stderr.all()))?;
        process.signal(Signal::SIGTERM)?;
        ensure!(process.wait(SOON)?.success());
        Ok(())
    }

    fn ca(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(sibling("mtls-daemon", "MTLS_DAEMON_BIN")?);
        command.env_remove("MTLS_TRUST_DOMAIN");
        command.arg("ca").args(words).arg("--dir").arg(&self.directory);
        output(command)
    }

    fn owners(&self) -> Result<Vec<(PathBuf, u32)>> {
        let mut owners = vec![(self.directory.clone(), fs::metadata(&self.directory)?.uid())];
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            owners.push((entry.path(), entry.metadata()?.uid()));
        }
        Ok(owners)
    }

    fn give_to(&self, user: u32) -> Result<()> {
        for (path, _) in self.owners()? {
            chown(&path, Some(user), Some(user))?;
        }
        Ok(())
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn ends(output: &Output, code: i32, words: &[&str]) -> Result<()> {
    let said = said(output);
    ensure!(output.status.code() == Some(code), "{}: {said}", output.status);
    for word in words {
        ensure!(said.contains(word), "{word:?} is not in: {said}");
    }
    Ok(())
}

/// What a CA says that does not start.
fn refusal(mut process: Process) -> Result<String> {
    let error = |line: &str| line.starts_with("error: ").then(|| line.to_owned());
    let said = process.stderr.find_after(0, SOON, "an error", error)?;
    let status = process.wait(SOON)?;
    ensure!(status.code() == Some(64), "{status}: {said}");
    Ok(said)
}

#[test]
fn a_verb_of_root_leaves_the_files_to_the_services_user() -> Result<()> {
    let place = Place::new()?;
    place.run(&[])?;
    place.give_to(SERVICE)?;
    let root = place.ca(&["root", "show"])?;
    ends(&root, 0, &["BEGIN CERTIFICATE"])?;
    ends(&place.ca(&["token", "create", "--node", "vm-1", "--identities", "a/b"])?, 0, &["join"])?;
    ends(&place.ca(&["revoke", "--identity", "a/b"])?, 0, &["1 new entries"])?;
    ends(&place.ca(&["root", "rotate"])?, 0, &["root-2 signs", "root-1 is trusted no more"])?;
    let owners = place.owners()?;
    ensure!(owners.iter().all(|(_, owner)| *owner == SERVICE), "{owners:?}");
    ensure!(owners.len() > 5, "{owners:?}");

    // The service itself is started by its manager as the user that it is to be.
    let said = refusal(place.start(&[])?)?;
    ensure!(said.contains(&format!("run it as user {SERVICE}")), "{said}");
    ensure!(!said.contains("chown"), "{said}");
    Ok(())
}

#[test]
fn the_directory_knows_its_trust_domain() -> Result<()> {
    let place = Place::new()?;
    place.run(&["--trust-domain", "prod.example"])?;
    let revoked = |words: &[&str]| place.ca(&[&["revoke"], words].concat());
    ends(&revoked(&["--identity", "shop/web"])?, 0, &["1 new entries"])?;
    ends(&revoked(&["--list"])?, 0, &["spiffe://prod.example/ns/shop/sa/web"])?;
    let token = ["token", "create", "--node", "vm-1", "--identities", "shop/db"];
    ends(&place.ca(&token)?, 0, &[])?;
    ends(&place.ca(&["token", "list"])?, 0, &["spiffe://prod.example/ns/shop/sa/db"])?;

    let both = ["prod.example", "cluster.local"];
    let other = ["--trust-domain", "cluster.local"];
    ends(&revoked(&[&["--identity", "shop/pay"], &other[..]].concat())?, 64, &both)?;
    ends(&revoked(&[&["--node", "vm-1"], &other[..]].concat())?, 64, &both)?;
    ends(&revoked(&["--identity", "spiffe://cluster.local/ns/shop/sa/pay"])?, 64, &both)?;
    ends(&place.ca(&[&token[..], &other].concat())?, 64, &both)?;
    ends(&place.ca(&[&["root", "prepare"], &other[..]].concat())?, 64, &both)?;
    let said = refusal(place.start(&other)?)?;
    ensure!(both.iter().all(|name| said.contains(name)), "{said}");

    // A directory from before it was kept there: only the server can tell.
    fs::remove_file(place.directory.join("trust-domain"))?;
    ends(&revoked(&["--identity", "shop/pay"])?, 64, &["start `ca run` once"])?;
    place.run(&["--trust-domain", "prod.example"])?;
    ends(&revoked(&["--identity", "shop/pay"])?, 0, &["1 new entries"])
}

/// A connection takes a descriptor, and shells give few.
#[test]
fn the_ca_takes_all_the_files_that_it_may_open() -> Result<()> {
    let place = Place::new()?;
    let limits = r#"ulimit -S -n 256 && ulimit -H -n 8192 && exec "$@""#;
    let mut command = bound("sh");
    command.args(["-c", limits, "sh"]).arg(sibling("mtls-daemon", "MTLS_DAEMON_BIN")?);
    command.args(["ca", "run", "--listen", "127.0.0.1:0", "--dir"]).arg(&place.directory);
    let process = Process::start("the CA", command)?;
    wait::eventually(SOON, "the CA to serve", || {
        process.stderr.all().iter().any(|line| line.contains("the CA serves"))
    })?;
    let limits = fs::read_to_string(format!("/proc/{}/limits", process.pid()))?;
    let line = limits.lines().find(|line| line.starts_with("Max open files")).context("a limit")?;
    ensure!(line.split_whitespace().filter(|word| *word == "8192").count() == 2, "{line}");
    Ok(())
}

#[test]
fn what_the_ca_never_heard_of_is_revoked_with_a_warning() -> Result<()> {
    let place = Place::new()?;
    ends(&place.ca(&["root", "show"])?, 64, &["is no CA's directory"])?;
    place.run(&[])?;
    for words in [["--node", "vm-9"], ["--serial", "5f31"]] {
        let output = place.ca(&[&["revoke"], &words[..]].concat())?;
        ends(&output, 0, &["warning: ", words[1], "1 new entries"])?;
    }
    Ok(())
}

fn key_file(directory: &Path) -> Result<PathBuf> {
    let file = directory.join("kek");
    fs::write(&file, [7; 32])?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    Ok(file)
}

#[test]
fn keys_that_are_encrypted_stay_so_through_a_rotation() -> Result<()> {
    let place = Place::new()?;
    let file = key_file(place.directory.parent().context("a parent")?)?;
    let sealed = ["--key-encryption-file", file.to_str().context("UTF-8")?];
    place.run(&sealed)?;
    ends(&place.ca(&["root", "prepare"])?, 64, &["--key-encryption-file"])?;
    ends(&place.ca(&["root", "rotate"])?, 64, &["--key-encryption-file"])?;
    ends(&place.ca(&[&["root", "rotate"], &sealed[..]].concat())?, 0, &["root-2 signs"])?;
    let key = fs::read_to_string(place.directory.join("root-2.key"))?;
    ensure!(key.contains("SEALED"), "a key in the clear");
    place.run(&sealed)
}
