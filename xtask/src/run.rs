//! `cargo xtask run`

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::{build, packages, preflight, shell, workspace::Workspace};

/// Build the daemon and run it on this host
///
/// `cargo xtask run` is `mtls-daemon run` with its defaults; whatever follows `--` is passed to it:
/// `cargo xtask run -- --config-dir ./config`. Another of its verbs may follow as well:
/// `cargo xtask run -- status`.
#[derive(clap::Args)]
pub struct Args {
    /// Optimised
    #[arg(long)]
    release: bool,
    /// Passed to mtls-daemon; without a verb in front, `run` is put there
    #[arg(last = true, value_name = "DAEMON ARGS")]
    daemon_args: Vec<String>,
}

pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let built = build::everything(workspace, args.release)?;
    let mut daemon = Command::new(&built.daemon);
    if args.daemon_args.first().is_none_or(|first| first.starts_with('-')) {
        packages::ensure(packages::RUN)?;
        preflight::check()?;
        daemon.arg("run");
    }
    shell::become_command(daemon.args(&args.daemon_args))
}
