//! A private key is in the daemon's memory for as long as somebody needs it, and not a moment of
//! carelessness longer.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mtls_tests::client::converse;
use mtls_tests::svids::{Material, from_files};
use mtls_tests::until;
use mtls_tests::world::{To, serve};

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
