//! `cargo xtask lint`: one step after the other, each timed; the first that fails ends it.

mod advisories;
mod licenses;
mod manifest;
mod spdx;
mod tidy;
mod tokens;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context, Result};

use crate::{
    ebpf, packages,
    shell::{run as run_command, say},
    workspace::Workspace,
};

/// Check formatting, clippy, dependencies and the repository's own rules
///
/// Steps: tidy (which module may name what, sizes of files), formatting, dependencies (licences, bans and
/// sources by deny.toml, known advisories by xtask/advisories.txt), clippy with warnings denied, also for
/// the kernel programs and the fuzzers. None needs a network once the dependencies and the toolchain are there.
#[derive(clap::Args)]
pub struct Args {
    /// Only this step; may be repeated
    #[arg(long, value_enum)]
    only: Vec<Step>,
    /// Write xtask/advisories.txt anew from a local copy of the RustSec advisory database, and end
    #[arg(long, value_name = "FOLDER", conflicts_with = "only")]
    update_advisories: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Step {
    Tidy,
    Fmt,
    Deps,
    Clippy,
}

pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    if let Some(database) = &args.update_advisories {
        advisories::update(workspace, database)?;
        return Ok(ExitCode::SUCCESS);
    }
    type Check = fn(&Workspace) -> Result<()>;
    let steps: [(Step, &str, Check); 4] = [
        (Step::Tidy, "tidy", tidy::check),
        (Step::Fmt, "formatting", formatting),
        (Step::Deps, "dependencies", dependencies),
        (Step::Clippy, "clippy", clippy),
    ];
    for (step, name, check) in steps {
        if args.only.is_empty() || args.only.contains(&step) {
            let start = Instant::now();
            check(workspace).with_context(|| format!("lint: {name}"))?;
            say(format_args!("lint: {name}: ok ({:.1} s)", start.elapsed().as_secs_f32()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn formatting(workspace: &Workspace) -> Result<()> {
    run_command(workspace.cargo().args(["fmt", "--all", "--check"]))?;
    run_command(workspace.cargo().args([
        "fmt",
        "--check",
        "--manifest-path",
        "mtls-ebpf/Cargo.toml",
    ]))
}

fn dependencies(workspace: &Workspace) -> Result<()> {
    let rules = manifest::Rules::read(workspace)?;
    let mut used = Vec::new();
    for folder in [".", "mtls-ebpf", "fuzz"] {
        used.extend(manifest::dependencies(workspace, folder)?);
    }
    licenses::check(&rules, &used)?;
    advisories::check(workspace, &rules, &used)
}

fn clippy(workspace: &Workspace) -> Result<()> {
    packages::ensure(packages::BUILD)?;
    ebpf::build(workspace)?;
    run_command(workspace.cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))?;
    fuzzers(workspace)?;
    // The kernel programs are looked at as if they were for this machine: clippy comes with another
    // compiler than the one that builds `core` for the kernel, and looking needs no linking.
    let target = workspace.root().join("target/ebpf/clippy");
    run_command(
        workspace
            .cargo()
            .current_dir(workspace.root().join("mtls-ebpf"))
            .env_remove("CARGO_TARGET_DIR")
            .env(
                "CARGO_ENCODED_RUSTFLAGS",
                format!("--cfg=bpf_target_arch=\"{}\"\x1f-Cpanic=abort", std::env::consts::ARCH),
            )
            .args(["clippy", "--release", "--target-dir"])
            .arg(target)
            .args(["--", "--deny", "warnings", "--deny", "clippy::undocumented_unsafe_blocks"]),
    )
}

/// A workspace of its own that nothing else compiles. Looking needs neither coverage nor libFuzzer itself, which
/// is C++. With the workspace's own profile, most of what it depends on has been looked at already.
fn fuzzers(workspace: &Workspace) -> Result<()> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace.root().join("target"), PathBuf::from);
    run_command(
        workspace
            .cargo()
            .env("CUSTOM_LIBFUZZER_PATH", "/nowhere/libfuzzer.a")
            .args(["clippy", "--locked", "--manifest-path", "fuzz/Cargo.toml", "--target-dir"])
            .arg(target)
            .args(["--config", "profile.dev.opt-level=0"])
            .args(["--config", "profile.dev.package.\"*\".opt-level=2"])
            .args(["--", "--deny", "warnings"]),
    )
}
