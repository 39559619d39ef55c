//! `mtls-daemon cleanup`

use clap::Args;

use super::{Exit, Failed, print};
use crate::bpf::BpfError;
use crate::config::{NodeArgs, NodePaths};
use crate::node::Busy;

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

/// A daemon that runs is to be stopped first.
fn busy(error: anyhow::Error) -> Failed {
    let held = matches!(error.downcast_ref(), Some(Busy::Held { .. }))
        || matches!(error.downcast_ref(), Some(BpfError::Claimed { .. }));
    Failed::new(if held { Exit::Busy } else { Exit::Failure }, error)
}
