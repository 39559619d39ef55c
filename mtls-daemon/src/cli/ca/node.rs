//! `mtls-daemon ca nodes`

use clap::Args;

use super::{DirectoryArgs, date, failed};
use crate::ca::nodes::{self, Nodes};
use crate::ca::revoke::{self, Held};
use crate::cli::table::table;
use crate::cli::{Failed, print};

#[derive(Debug, Args)]
pub(in crate::cli) struct NodesArgs {
    #[command(flatten)]
    directory: DirectoryArgs,
}

pub(super) fn nodes(args: NodesArgs) -> Result<(), Failed> {
    let directory = args.directory.open()?;
    let nodes: Nodes = directory.read(nodes::FILE).map_err(failed)?;
    let revoked: Held = directory.read(revoke::FILE).map_err(failed)?;
    let rows: Vec<_> = nodes
        .0
        .iter()
        .map(|(name, node)| {
            let state = if revoked.names_node(name) { "revoked" } else { "joined" };
            let identities = node.identities.iter().cloned().collect::<Vec<_>>().join(",");
            [name.to_string(), state.to_owned(), date(node.joined), identities]
        })
        .collect();
    print(&table(["NODE", "STATE", "JOINED", "IDENTITIES"], &rows))
}
