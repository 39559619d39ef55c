//! A private key is in the daemon's memory for as long as somebody needs it, and not a moment of
//! carelessness longer.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mtls_tests::client::converse;
use mtls_tests::process::{Process, sibling};
use mtls_tests::svids::{Material, from_files};
use mtls_tests::world::{To, serve};
use mtls_tests::{Ca, World, until};

const PORT: u16 = 9000;
const SLEEP: &str = "spiffe://cluster.local/ns/full/sa/sleep";
/// So many bytes of a key in a row are no accident.
const ENOUGH: usize = 16;

/// Pieces of a key, each called by what it is a piece of.
type Needles = Vec<(&'static str, Vec<u8>)>;

/// The key in every form that it could lie around in.
fn needles(key: &Path) -> Result<Needles> {
    let pem = fs::read_to_string(key)?;
    let der = mtls_tests::openssl::pkcs8_der(key)?;
    // ECPrivateKey: version 1, then an OCTET STRING of 32 bytes.
    let at = der.windows(5).position(|it| it == [0x02, 0x01, 0x01, 0x04, 0x20]);
    let at = at.context("a P-256 key")? + 5;
    let scalar = &der[at..at + 32];
    // Arithmetic has the number's words the other way around.
    let reversed: Vec<u8> = scalar.iter().rev().copied().collect();
    let mut needles: Needles = Vec::new();
    for (name, bytes) in [("the scalar", scalar), ("the scalar, reversed", &reversed)] {
        needles.extend(bytes.chunks_exact(ENOUGH).map(|piece| (name, piece.to_vec())));
    }
    // Around the scalar: that alone tells one key from another.
    needles.push(("the PKCS#8", der[at - 2..at - 2 + ENOUGH].to_vec()));
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    // The second line, which the end of the scalar is in: so it is with line ends and without.
    let own = body.as_bytes().get(64..64 + 32).context("a longer key")?;
    needles.extend(own.chunks_exact(ENOUGH).map(|piece| ("the PEM", piece.to_vec())));
    Ok(needles)
}

/// What of `needles` is in the memory of a process, and in which mapping.
fn found(pid: u32, needles: &Needles) -> Result<Vec<String>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = File::open(format!("/proc/{pid}/mem")).context("run as root")?;
    let mut found = Vec::new();
    let mut begins: Vec<Needles> = vec![Needles::new(); 256];
    for (name, needle) in needles {
        begins[usize::from(needle[0])].push((name, needle.clone()));
    }
    let mut read = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) =
            line.split(' ').next().and_then(|it| it.split_once('-')).context("maps")?;
        let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        let mut bytes = vec![0; usize::try_from(to - from)?];
        // A mapping can go while it is read.
        if memory.read_exact_at(&mut bytes, from).is_err() {
            continue;
        }
        read += bytes.len();
        // One pass: there is much memory, and few bytes begin a needle.
        for (at, byte) in bytes.iter().enumerate() {
            for (name, needle) in &begins[usize::from(*byte)] {
                if bytes[at..].starts_with(needle) {
                    found.push(format!("{name} at +{at:#x} of {line}"));
                }
            }
        }
    }
    ensure!(read > 1 << 20, "only {read} bytes of memory could be read");
    Ok(found)
}

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
