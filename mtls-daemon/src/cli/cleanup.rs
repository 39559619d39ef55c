//! `mtls-daemon cleanup`

use clap::Args;

use super::{Failed, print};
use crate::config::{NodeArgs, NodePaths};

/// The flags of `mtls-daemon cleanup`.
#[derive(Debug, Args)]
pub(super) struct CleanupArgs {
    #[command(flatten)]
    node: NodeArgs,
}

pub(super) fn cleanup(args: CleanupArgs) -> Result<(), Failed> {
    let paths = NodePaths::try_from(args.node)?;
    let report = crate::node::cleanup(paths.node.as_str(), &paths.run_base)?;
    print(&format!("{report}\n"))
}
