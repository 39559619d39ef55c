//! A private key is in the daemon's memory for as long as somebody needs it, and not a moment of
//! carelessness longer.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mtls_tests::client::converse;
use mtls_tests::process::{Process, sibling};
use mtls_tests::secrets::{Needles, found, keys_in_use, needles, spelled, spellings};
use mtls_tests::svids::{Material, from_files};
use mtls_tests::wait::patience;
use mtls_tests::world::{To, serve};
use mtls_tests::{Ca, Daemon, World, openssl, until};

const PORT: u16 = 9000;
const SLEEP: &str = "spiffe://cluster.local/ns/full/sa/sleep";
#[test]
fn a_key_leaves_the_memory_with_the_last_workload_that_needs_it() -> Result<()> {
    let (mut world, material) = from_files()?;
    let server = world.pod("httpbin-full").clone();
    let _echo = serve(&server, "echo", PORT)?;
    let client = world.pod("sleep-full").clone();
    let talk = || client.inside(|| converse(To::Full.v4(PORT), "before"));
    ensure!(talk()?.worked());
    // Read again and again: no reading may leave anything.
    let mut keys = vec![needles(&material.key("sleep"))?];
    for _ in 0..3 {
        let before = material.serial(world.a(), SLEEP)?;
        material.renew(Material::A, "sleep", "full/sleep")?;
        until(Duration::from_secs(10), "the new certificate", || {
            let now = material.serial(world.a(), SLEEP).map_err(|error| error.to_string())?;
            if now == before { Err(now) } else { Ok(()) }
        })?;
        ensure!(talk()?.worked());
        keys.push(needles(&material.key("sleep"))?);
    }
    let pid = world.a().process.pid();
    let current = keys.last().context("keys")?;
    let present = found(pid, current)?;
    ensure!(!present.is_empty(), "the key in use is not found: this test could not fail");

    world.change(|mesh| {
        mesh.remove("NodeWorkload", "full", "sleep-full");
    })?;
    let all: Needles = keys.into_iter().flatten().collect();
    until(Duration::from_secs(20), "the key to be gone", || match found(pid, &all) {
        Ok(left) if left.is_empty() => Ok(()),
        Ok(left) => Err(left.join("\n")),
        Err(error) => Err(format!("{error:#}")),
    })?;
    Ok(())
}

/// The key of the certificate that a peer of `full/httpbin` is shown, out of its daemon's memory.
fn key_in_use(world: &World, name: &str) -> Result<PathBuf> {
    let server = world.pod("httpbin-full").v4(PORT);
    // It may be renewed between the two questions.
    until(Duration::from_secs(30), "the key in use: without it this test could not fail", || {
        let look = || {
            let seen = openssl::look(world.pod("sleep-legacy"), server, &["-alpn", "istio"])?;
            let public = seen.public_key()?;
            for scalar in keys_in_use(world.b().process.pid())? {
                let key = openssl::p256_key(&world.bed.directory, name, &scalar)?;
                if openssl::public_key(&key)? == public {
                    return Ok(key);
                }
            }
            anyhow::bail!("no key fits {public}")
        };
        look().map_err(|error| format!("{error:#}"))
    })
}

/// A lifetime in which a key is renewed while a test waits.
fn short() -> String {
    format!("{}s", patience(Duration::from_secs(12)).as_secs())
}

/// A key that the daemon made, and those before it, when nobody needs them any more. The last of them.
fn nothing_is_left_of_keys_that_the_daemon_makes(world: &mut World) -> Result<Needles> {
    let _echo = serve(world.pod("httpbin-full"), "echo", PORT)?;
    let client = world.pod("sleep-full").clone();
    let mut keys: Vec<PathBuf> = Vec::new();
    while keys.len() < 3 {
        ensure!(client.inside(|| converse(To::Full.v4(PORT), "hello"))?.worked());
        let key = key_in_use(world, &format!("key-{}", keys.len()))?;
        let text = fs::read(&key)?;
        if keys.iter().any(|known| fs::read(known).is_ok_and(|known| known == text)) {
            std::thread::sleep(Duration::from_millis(500));
        } else {
            keys.push(key);
        }
    }
    let keys: Vec<Needles> = keys.iter().map(|key| needles(key)).collect::<Result<_>>()?;
    let pid = world.b().process.pid();
    let last = keys.last().context("keys")?.clone();
    ensure!(!found(pid, &last)?.is_empty(), "the key in use is not found: this could not fail");
    world.change(|mesh| {
        mesh.remove("NodeWorkload", "full", "httpbin-full");
    })?;
    let all: Needles = keys.into_iter().flatten().collect();
    until(Duration::from_secs(20), "the keys to be gone", || match found(pid, &all) {
        Ok(left) if left.is_empty() => Ok(()),
        Ok(left) => Err(left.join("\n")),
        Err(error) => Err(format!("{error:#}")),
    })?;
    // Others are there: it is no daemon that has forgotten everything.
    ensure!(!keys_in_use(pid)?.is_empty(), "another workload's key");
    Ok(all)
}

#[test]
fn a_key_of_the_embedded_ca_s_making_leaves_the_memory_too() -> Result<()> {
    let mut world = World::with(&[], |_, _| {}, |spec| spec.with("--svid-lifetime", &short()))?;
    nothing_is_left_of_keys_that_the_daemon_makes(&mut world)?;
    Ok(())
}

#[test]
fn a_key_that_a_ca_signed_leaves_the_memory_and_was_never_in_the_ca_s() -> Result<()> {
    let mut world = World::without_daemons(&[Ca::pod(0)])?;
    let ca = Ca::start(&world.bed, &[])?;
    let identities = ["full/sleep", "full/httpbin", "partial/httpbin"];
    world.start(|spec| ca.joined(spec.with("--svid-lifetime", &short()), &identities))?;
    let keys = nothing_is_left_of_keys_that_the_daemon_makes(&mut world)?;
    let told = found(ca.process.pid(), &keys)?;
    ensure!(told.is_empty(), "the CA was told a key: {}", told.join("\n"));
    Ok(())
}

/// Its arguments, its environment and all that it has printed.
fn public(process: &Process) -> Result<String> {
    let of = |what: &str| fs::read(format!("/proc/{}/{what}", process.pid()));
    let mut text = process.stderr.all().join("\n");
    text.push_str(&process.stdout.all().join("\n"));
    for what in ["cmdline", "environ"] {
        text.push_str(&String::from_utf8_lossy(&of(what)?).replace('\0', "\n"));
    }
    Ok(text)
}

#[test]
fn neither_arguments_nor_logs_nor_answers_have_a_key_or_a_token() -> Result<()> {
    let mut world = World::without_daemons(&[Ca::pod(0)])?;
    let mut ca = Ca::start(&world.bed, &["--log-level", "trace"])?;
    let identities = ["full/sleep", "full/httpbin", "partial/httpbin"];
    world.start(|spec| ca.joined(spec.with("--log-level", "trace"), &identities))?;
    let _echo = serve(world.pod("httpbin-full"), "echo", PORT)?;
    let client = world.pod("sleep-full").clone();
    let works = || -> Result<()> {
        until(Duration::from_secs(30), "traffic", || {
            match client.inside(|| converse(To::Full.v4(PORT), "hello")) {
                Ok(talk) if talk.worked() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
    };
    works()?;
    let mut secrets: Vec<String> = Vec::new();
    // A token that is spent, one that is wrong, and one that a node joins with again.
    let mut tokens = Vec::new();
    for daemon in &world.daemons {
        let file = world.bed.directory.join(format!("nodes-files/{}.token", daemon.spec.name));
        tokens.push(fs::read_to_string(&file)?);
    }
    let serials = |daemon: &Daemon| Ok::<_, anyhow::Error>(daemon.status()?["svids"].to_string());
    let before = serials(world.a())?;
    world.daemons[0].term()?;
    fs::remove_dir_all(&world.a().spec.state)?;
    let spec = world.a().spec.clone();
    let file = ca.renew_token(&spec, &identities)?;
    let good = fs::read_to_string(&file)?;
    let wrong = format!("{}{}", &good.trim_end()[..good.trim_end().len() - 4], "0000");
    fs::write(&file, &wrong)?;
    let mark = ca.mark();
    world.daemons[0].process = Process::start("the next daemon", spec.command()?)?;
    ca.audited(mark, "the wrong token", |line| line["verdict"] == "refused")?;
    fs::write(&file, &good)?;
    world.daemons[0].ready()?;
    works()?;
    ensure!(serials(world.a())? != before, "it has joined again");
    tokens.extend([good, wrong]);
    for token in &tokens {
        let (name, secret) = token.trim().rsplit_once('.').context("a token")?;
        ensure!(name.starts_with("mtls-join.") && secret.len() >= 32, "{name}");
        // Any part of it that would help to guess the rest.
        secrets.extend([secret[..16].to_owned(), secret[16..32].to_owned()]);
    }

    let processes = [&world.a().process, &world.b().process, &ca.process];
    let mut number = 0;
    for process in processes {
        let keys = keys_in_use(process.pid())?;
        ensure!(!keys.is_empty(), "no key is found: this test could not fail");
        for scalar in keys {
            number += 1;
            let key = openssl::p256_key(&world.bed.directory, &format!("k{number}"), &scalar)?;
            secrets.extend(spellings(&key)?);
        }
    }
    let mut texts = vec![];
    for process in processes {
        let text = public(process)?;
        ensure!(text.contains("TRACE"), "nothing is said at this level: {text}");
        texts.push(text);
    }
    for daemon in &world.daemons {
        texts.extend([daemon.status()?.to_string(), daemon.http("/metrics")?.1]);
    }
    // As they would be found if they were there.
    let names = [world.a().spec.name.clone()];
    ensure!(texts.iter().any(|text| spelled(text, &names).is_some()), "the texts are not theirs");
    for text in &texts {
        for sign in ["mtls-join.", "private key-----"] {
            let line = text.lines().find(|line| line.to_lowercase().contains(sign));
            ensure!(line.is_none(), "{line:?}");
        }
        if let Some(secret) = spelled(text, &secrets) {
            let lines = text.lines().filter(|line| spelled(line, &secrets).is_some());
            anyhow::bail!("{secret}: {:?}", lines.collect::<Vec<_>>());
        }
    }
    ca.stop()
}

/// The capabilities of deploy/systemd/mtls-daemon.service but CAP_SYS_RESOURCE, which containers lack and
/// only kernels before 5.11 ask for.
const CAPABILITIES: &str = "+dac_override,+dac_read_search,+net_admin,+net_raw,+sys_admin,\
     +sys_ptrace,+perfmon,+bpf";

/// Becomes `program` as a user of no consequence with [`CAPABILITIES`]. A program that gains some is
/// not dumpable: so `env` gains them, and what it becomes gains nothing.
fn as_other_user() -> Vec<String> {
    let capabilities = ["inh", "ambient"].map(|set| format!("--{set}-caps={CAPABILITIES}"));
    let words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    words.map(str::to_owned).into_iter().chain(capabilities).chain(["env".to_owned()]).collect()
}

/// What of a process may be dumped is its own user's under /proc, and root's otherwise (proc(5)).
fn dumpable(pid: u32) -> Result<bool> {
    let (whole, environment) = (format!("/proc/{pid}/status"), format!("/proc/{pid}/environ"));
    let status = fs::read_to_string(whole)?;
    ensure!(status.lines().any(|line| line.starts_with("Uid:\t65534\t65534")), "{status}");
    Ok(fs::metadata(environment)?.uid() != 0)
}

#[test]
fn neither_daemon_nor_ca_can_be_dumped() -> Result<()> {
    let mut world = World::without_daemons(&[Ca::pod(0)])?;
    let (ca, under) = (world.pod("ca").place.clone(), as_other_user());
    let start = |program: &str, arguments: &[&str]| {
        let mut command = ca.command(&under[0])?;
        command.args(&under[1..]).arg(program).args(arguments);
        Process::start(program, command)
    };
    // Otherwise what follows would show nothing.
    let other = start("sleep", &["60"])?;
    until(Duration::from_secs(10), "a program like others", || match dumpable(other.pid()) {
        Ok(true) => Ok(()),
        other => Err(format!("{other:?}")),
    })?;

    let daemon = sibling("mtls-daemon", "MTLS_DAEMON_BIN")?;
    let daemon = daemon.to_str().context("a path in UTF-8")?;
    let directory = world.bed.directory.join("undumped-ca");
    let directory = directory.to_str().context("a path in UTF-8")?;
    let ca = start(daemon, &["ca", "run", "--listen", "127.0.0.1:0", "--dir", directory])?;
    ca.stderr.find_after(0, Duration::from_secs(30), "the CA to serve", |line| {
        line.contains("the CA serves").then_some(())
    })?;
    ensure!(!dumpable(ca.pid())?, "the CA would leave its root's key in a core file");

    let under: Vec<&str> = under.iter().map(String::as_str).collect();
    world.start(|spec| spec.under(&under))?;
    ensure!(!dumpable(world.a().process.pid())?, "the daemon would leave keys in a core file");
    Ok(())
}
