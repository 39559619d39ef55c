//! What the verifier says to each kernel program.
#![forbid(unsafe_code)]

use std::io::Write;

use anyhow::{Context, Result, ensure};
use mtls_tests::{DaemonSpec, World};

/// Attached where a workload is the host's.
const HOST: &str = "mtls_host";

const PROGRAMS: [&str; 8] = [
    "mtls_connect4",
    "mtls_connect6",
    "mtls_established",
    "mtls_inbound",
    "mtls_peername4",
    "mtls_peername6",
    "mtls_sockname4",
    "mtls_sockname6",
];

/// A tenth of what the kernel allows (BPF_COMPLEXITY_LIMIT_INSNS): room for verifiers that prune less.
const LIMIT: u64 = 100_000;

/// Since Linux 5.16 the kernel tells how many instructions it went through.
fn kernel_tells() -> Result<bool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(|it: char| !it.is_ascii_digit()).map(str::parse::<u32>);
    let mut number = || numbers.next().context("a number")?.context("in the kernel's release");
    Ok((number()?, number()?) >= (5, 16))
}

#[test]
fn each_program_is_listed_and_far_from_the_verifiers_limit() -> Result<()> {
    let world = World::without_daemons(&[])?;
    world.mesh.write()?;
    // At debug the daemon says all that the verifier said.
    let mut daemon = DaemonSpec::new(&world.bed, 0).with("--log-level", "debug").spawn()?;
    daemon.ready().with_context(|| daemon.process.stderr.all().join("\n"))?;
    let status = daemon.status()?;
    let (programs, counts) = (&status["kernel"]["programs"], &status["kernel"]["instructions"]);
    let listed: Vec<&String> = programs.as_object().context("programs")?.keys().collect();
    ensure!(listed == PROGRAMS, "{programs}");
    if !kernel_tells()? {
        ensure!(counts.is_null(), "counts that the kernel does not give: {counts}");
        return Ok(());
    }
    ensure!(counts.as_object().is_some_and(|it| it.len() == PROGRAMS.len() + 1), "{counts}");
    for program in PROGRAMS.into_iter().chain([HOST]) {
        let count = counts[program].as_u64().with_context(|| format!("no count of {program}"))?;
        // Not with println!, which the harness keeps to itself: `cargo xtask vm test` has it in its table.
        writeln!(std::io::stdout(), "verified instructions: {program} {count}")?;
        ensure!((1..LIMIT).contains(&count), "{program}: {count} instructions");
    }
    // Verified for a slot that cannot be, it would be over after a few instructions.
    let inbound = counts["mtls_inbound"].as_u64().unwrap_or_default();
    ensure!(inbound > 100, "mtls_inbound was verified in part: {inbound} instructions");
    Ok(())
}
