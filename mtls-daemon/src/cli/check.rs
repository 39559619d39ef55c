//! `mtls-daemon check`

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;

use super::{Exit, Failed, print};
use crate::config::{MeshArgs, NodeArgs, NodePaths};
use crate::source::files::{self, LoadError};

/// The flags of `mtls-daemon check`.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Directory to read: every *.yaml and *.yml in it, as `run --config-dir` does
    dir: PathBuf,
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    mesh: MeshArgs,
}

pub(super) fn check(args: CheckArgs) -> Result<(), Failed> {
    let node = NodePaths::try_from(args.node)?.node;
    let settings = args.mesh.try_into()?;
    let loaded = files::load(&args.dir, node.as_str(), &settings, 0)
        .map_err(|error| Failed::new(Exit::Config, error))?;
    if !loaded.errors.is_empty() {
        return Err(Failed::new(Exit::Config, LoadError(loaded.errors)));
    }
    let mut out = String::new();
    for warning in &loaded.warnings {
        writeln!(out, "warning: {warning}").expect("writing to a String does not fail");
    }
    let workloads = loaded.snapshot.node_workloads().len();
    writeln!(
        out,
        "{}: good, {workloads} workloads for node {node}, {} warnings",
        args.dir.display(),
        loaded.warnings.len()
    )
    .expect("writing to a String does not fail");
    print(&out)
}
