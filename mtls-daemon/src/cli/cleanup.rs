//! `mtls-daemon cleanup`

use anyhow::anyhow;
use clap::Args;

use super::{Exit, Failed, print};
use crate::config::{NodeArgs, NodePaths};
use crate::node::{CleanupError, CleanupReport};

/// The flags of `mtls-daemon cleanup`.
#[derive(Debug, Args)]
pub(super) struct CleanupArgs {
    #[command(flatten)]
    node: NodeArgs,
}

pub(super) fn cleanup(args: CleanupArgs) -> Result<(), Failed> {
    let paths = NodePaths::try_from(args.node)?;
    let report = crate::node::cleanup(&paths.node, &paths.run_base).map_err(busy)?;
    print(&format!("{report}\n"))?;
    whole(&report)
}

/// What is left of rules and routes keeps a namespace's traffic from its way.
fn whole(report: &CleanupReport) -> Result<(), Failed> {
    if report.problems.is_empty() {
        return Ok(());
    }
    let problems = report.problems.join("\n");
    let count = report.problems.len();
    Err(anyhow!("{problems}\n{count} network namespaces are not as they were before").into())
}

fn busy(error: CleanupError) -> Failed {
    Failed::new(if error.is_busy() { Exit::Busy } else { Exit::Failure }, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_taken_back_is_a_failure_that_names_it() {
        let mut report = CleanupReport { pins: 12, namespaces: 1, problems: Vec::new() };
        assert!(whole(&report).is_ok());
        report.problems = vec!["netns 7: no such route".to_owned(), "netns 9: gone".to_owned()];
        let failed = whole(&report).expect_err("two namespaces are left");
        assert_eq!(failed.exit, Exit::Failure);
        let said = failed.to_string();
        for part in ["netns 7: no such route\n", "netns 9: gone\n", "2 network namespaces"] {
            assert!(said.contains(part), "{said}");
        }
        assert!(!report.to_string().contains("netns"), "{report}");
    }
}
