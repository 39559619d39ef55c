//! `cargo xtask lint`

use std::{process::ExitCode, time::Instant};

use anyhow::{Context, Result};

use crate::{
    ebpf, packages,
    shell::{run as run_command, say},
    workspace::Workspace,
};

/// Check formatting, clippy, licences, advisories and the repository's own rules
///
/// Nothing here needs a network once the dependencies are there.
#[derive(clap::Args)]
pub struct Args {}

pub fn run(workspace: &Workspace, _args: &Args) -> Result<ExitCode> {
    let steps: [(&str, fn(&Workspace) -> Result<()>); 2] =
        [("formatting", formatting), ("clippy", clippy)];
    for (name, step) in steps {
        let start = Instant::now();
        step(workspace).with_context(|| format!("lint: {name}"))?;
        say(format_args!("lint: {name}: ok ({:.1} s)", start.elapsed().as_secs_f32()));
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
    ]))
}
