//! `cargo xtask build`

use std::process::ExitCode;

use anyhow::Result;

use crate::{binaries::Binaries, ebpf, packages, shell::say, workspace::Workspace};

/// Build the kernel object, the daemon and the tests' programs
///
/// The kernel object goes to target/ebpf/mtls-ebpf.o and is embedded in the daemon; it is rebuilt only
/// when its sources or its toolchain change. A missing toolchain is installed.
#[derive(clap::Args)]
pub struct Args {
    /// Optimised; the default is the dev profile, whose dependencies are optimised anyway
    #[arg(long)]
    release: bool,
}

pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let built = everything(workspace, args.release)?;
    say(format_args!("kernel object: {}", workspace.ebpf_object().display()));
    say(format_args!("daemon: {}", built.daemon.display()));
    Ok(ExitCode::SUCCESS)
}

/// Builds all that runs.
///
/// # Errors
/// When something cannot be installed or does not compile.
pub fn everything(workspace: &Workspace, release: bool) -> Result<Binaries> {
    packages::ensure(packages::BUILD)?;
    ebpf::build(workspace)?;
    Binaries::build(workspace, release)
}
