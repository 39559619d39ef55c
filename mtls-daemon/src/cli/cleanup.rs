//! `mtls-daemon cleanup`

use clap::Args;

use super::{Exit, Failed, print};
use crate::config::{NodeArgs, NodePaths};
use crate::node::CleanupError;

/// The flags of `mtls-daemon cleanup`.
#[derive(Debug, Args)]
pub(super) struct CleanupArgs {
    #[command(flatten)]
    node: NodeArgs,
}

pub(super) fn cleanup(args: CleanupArgs) -> Result<(), Failed> {
    let paths = NodePaths::try_from(args.node)?;
    let report = crate::node::cleanup(&paths.node, &paths.run_base).map_err(busy)?;
    print(&format!("{report}\n"))
}

fn busy(error: CleanupError) -> Failed {
    Failed::new(if error.is_busy() { Exit::Busy } else { Exit::Failure }, error)
}
