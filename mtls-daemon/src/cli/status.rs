//! `mtls-daemon status`

pub(super) mod ask;
mod text;

use clap::{Args, ValueEnum};

use super::{Failed, print};
use crate::config::{NodeArgs, NodePaths};

/// The flags of `mtls-daemon status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    node: NodeArgs,

    /// Tables for people, or the daemon's whole answer
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

pub(super) fn status(args: StatusArgs) -> Result<(), Failed> {
    let paths = NodePaths::try_from(args.node)?;
    let json = ask::ask(&paths.admin_socket, "/status")?;
    match args.output {
        Output::Json => print(&pretty(&json)?),
        Output::Text => print(&text::render(&parse(&json)?, std::time::SystemTime::now())),
    }
}

pub(super) fn parse(json: &str) -> Result<crate::admin::Status, anyhow::Error> {
    use anyhow::Context;
    serde_json::from_str(json)
        .context("the daemon's answer has another shape: is it of another version? try -o json")
}

/// As the daemon said it, fields unknown to this version included.
fn pretty(json: &str) -> Result<String, anyhow::Error> {
    let value: serde_json::Value = serde_json::from_str(json)?;
    Ok(serde_json::to_string_pretty(&value)? + "\n")
}
