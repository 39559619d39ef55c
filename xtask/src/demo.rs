//! `cargo xtask demo`

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::{build, packages, preflight, shell, workspace::Workspace};

/// See it work: real clients and servers on two nodes, in the clear and with mutual TLS
///
/// Installs what is missing (and says so), builds, makes network namespaces for workloads that are
/// enrolled and others that are not, runs curl between all of them under each policy of a walkthrough,
/// and compares with what is expected. Needs root. Leaves nothing behind.
#[derive(clap::Args)]
pub struct Args {
    /// Optimised; takes longer to build
    #[arg(long)]
    release: bool,
    /// 2, 3, 4 or all: docs/walkthroughs.md
    #[arg(long, default_value = "4")]
    walkthrough: String,
    /// Passed to the demo; try `-- --help`
    #[arg(last = true, value_name = "DEMO ARGS")]
    demo_args: Vec<String>,
}

pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    packages::ensure(packages::TEST)?;
    preflight::check()?;
    let built = build::everything(workspace, args.release)?;
    let mut demo = Command::new(built.tests_program("mtls-demo")?);
    demo.envs(built.environment());
    demo.args(["--walkthrough", &args.walkthrough]);
    shell::become_command(demo.args(&args.demo_args))
}
