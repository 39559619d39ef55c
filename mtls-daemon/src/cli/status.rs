//! `mtls-daemon status`

pub(super) mod ask;
pub(super) mod text;

use std::time::SystemTime;

use clap::{Args, ValueEnum};

use super::{Failed, print};
use crate::config::{NodeArgs, NodePaths};

/// The flags of `mtls-daemon status` and `certs`.
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

impl StatusArgs {
    /// The daemon's answer, in the form that was asked for: `part` of it as JSON, or `render`ed.
    pub(super) fn show(
        self,
        part: impl FnOnce(serde_json::Value) -> serde_json::Value,
        render: impl FnOnce(&crate::admin::Status, SystemTime) -> String,
    ) -> Result<(), Failed> {
        let paths = NodePaths::try_from(self.node)?;
        let json = ask::ask(&paths.admin_socket, "/status")?;
        match self.output {
            Output::Json => {
                print(&pretty(part(serde_json::from_str(&json).map_err(anyhow::Error::from)?))?)
            }
            Output::Text => print(&render(&parse(&json)?, SystemTime::now())),
        }
    }
}

pub(super) fn status(args: StatusArgs) -> Result<(), Failed> {
    args.show(|whole| whole, text::render)
}

pub(super) fn parse(json: &str) -> Result<crate::admin::Status, anyhow::Error> {
    use anyhow::Context;
    serde_json::from_str(json)
        .context("the daemon's answer has another shape: is it of another version? try -o json")
}

/// As the daemon said it, fields unknown to this version included.
fn pretty(value: serde_json::Value) -> Result<String, anyhow::Error> {
    Ok(serde_json::to_string_pretty(&value)? + "\n")
}
