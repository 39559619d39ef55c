//! `cargo xtask test`

use std::process::ExitCode;

use anyhow::Result;

use crate::{build, packages, preflight, shell, workspace::Workspace};

/// Run every test: unit, property, and integration tests on real kernel traffic
///
/// Installs what is missing (and says so), builds, and runs `cargo test` for all packages. Needs root
/// and a kernel with the features that the daemon needs; without them it fails and never skips.
///
/// What follows is passed to `cargo test`: `cargo xtask test --package mtls-tests strict`, or
/// `cargo xtask test -- strict -- --nocapture`.
#[derive(clap::Args)]
pub struct Args {
    /// Optimised
    #[arg(long)]
    release: bool,
    /// A filter and options for `cargo test`; after a second `--`, options for the test programs
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CARGO TEST ARGS")]
    test_args: Vec<String>,
}

pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    packages::ensure(packages::TEST)?;
    packages::ensure(packages::APPLICATIONS)?;
    packages::ensure(packages::UNITS)?;
    preflight::check()?;
    let built = build::everything(workspace, args.release)?;
    let mut cargo = workspace.cargo();
    cargo.envs(built.environment());
    cargo.arg("test");
    let chooses =
        |arg: &String| arg == "-p" || arg.starts_with("--package") || arg.starts_with("-p=");
    if !args.test_args.iter().take_while(|arg| *arg != "--").any(chooses) {
        cargo.arg("--workspace");
    }
    if args.release {
        cargo.arg("--release");
    }
    shell::become_command(cargo.args(&args.test_args))
}
