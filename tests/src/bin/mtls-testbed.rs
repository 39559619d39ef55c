//! The testbed's helper: runs a program in a namespace and a cgroup, or is an application there.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Parser;
use mtls_tests::{apps, cgroup, leftovers, netns};
use nix::sys::prctl;
use nix::sys::signal::Signal;

/// Runs a program in a network namespace and a cgroup, or is an application there.
#[derive(Parser)]
enum Arguments {
    /// Enter a network namespace and a cgroup, then become the program
    Exec {
        #[arg(long)]
        netns: PathBuf,
        #[arg(long)]
        cgroup: Option<PathBuf>,
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
    /// Serve TCP connections and print a JSON line an event
    Serve {
        kind: apps::Kind,
        #[arg(long)]
        port: u16,
    },
    /// Connect to an echo server, say something, and print a JSON line an event until it ends
    Talk {
        to: SocketAddr,
        /// Say nothing, and reset the connection at the end
        #[arg(long)]
        silent: bool,
    },
    /// Remove what testbeds of dead processes left behind
    Sweep,
}

fn main() -> Result<()> {
    match Arguments::parse() {
        Arguments::Exec { netns, cgroup, program } => exec(netns, cgroup, &program),
        Arguments::Serve { kind, port } => apps::serve(kind, port),
        Arguments::Talk { to, silent } => apps::talk(to, silent),
        Arguments::Sweep => {
            let _lock = leftovers::exclusively()?;
            leftovers::sweep()
        }
    }
}

fn exec(netns: PathBuf, cgroup: Option<PathBuf>, program: &[OsString]) -> Result<()> {
    // A testbed that is killed takes its processes with it.
    prctl::set_pdeathsig(Signal::SIGKILL).context("PR_SET_PDEATHSIG")?;
    if let Some(cgroup) = cgroup {
        cgroup::join(&cgroup)?;
    }
    netns::enter(&netns)?;
    let (name, arguments) = program.split_first().context("a program")?;
    // The demo blocks the signals that it waits for; what it starts must not inherit that.
    nix::sys::signal::SigSet::empty().thread_set_mask().context("signal mask")?;
    let error = Command::new(name).args(arguments).exec();
    Err(error).with_context(|| format!("running {}", name.display()))
}
