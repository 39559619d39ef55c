//! `mtls-daemon ca token`

use std::time::{Duration, SystemTime};

use anyhow::anyhow;
use clap::{Args, Subcommand};

use super::{DirectoryArgs, KeptTrustDomainArgs, date, duration, failed, workload};
use crate::ca::token::{self, Tokens};
use crate::cli::table::table;
use crate::cli::{Failed, print};
use crate::identity::NodeName;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum TokenVerb {
    /// Make a token for one node, and print it: the CA itself keeps only its hash
    Create(CreateArgs),
    /// Show the tokens: whose, until when, used or not
    List(ListArgs),
    /// Take a token back before it is used
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct CreateArgs {
    /// Name of the node that the token is for
    #[arg(long, value_name = "NAME")]
    node: NodeName,
    /// Identities that the node may run: <namespace>/<service account> or SPIFFE IDs (repeatable or
    /// comma-separated); they replace those of an earlier token
    #[arg(long, value_name = "ID", value_delimiter = ',', required = true)]
    identities: Vec<String>,
    /// How long the token may be used
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    expires_in: Duration,
    #[command(flatten)]
    trust_domain: KeptTrustDomainArgs,
    #[command(flatten)]
    directory: DirectoryArgs,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ListArgs {
    #[command(flatten)]
    directory: DirectoryArgs,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RevokeArgs {
    /// The token's name, as `list` shows it: the part between the dots
    id: String,
    #[command(flatten)]
    directory: DirectoryArgs,
}

pub(super) fn token(verb: TokenVerb) -> Result<(), Failed> {
    match verb {
        TokenVerb::Create(args) => create(args),
        TokenVerb::List(args) => list(args),
        TokenVerb::Revoke(args) => revoke(args),
    }
}

fn create(args: CreateArgs) -> Result<(), Failed> {
    let directory = args.directory.open()?;
    let domain = args.trust_domain.of(&directory)?;
    let identities: Result<Vec<_>, _> =
        args.identities.iter().map(|text| workload(text, &domain)).collect();
    let now = SystemTime::now();
    let made = token::create(&directory, args.node, identities?, args.expires_in, now);
    let (_, text) = made.map_err(failed)?;
    print(&format!("{}\n", *text))
}

fn list(args: ListArgs) -> Result<(), Failed> {
    let tokens: Tokens = args.directory.open()?.read(token::FILE).map_err(failed)?;
    let now = SystemTime::now();
    let rows: Vec<_> = tokens
        .iter()
        .map(|(id, token)| {
            [
                id.to_owned(),
                token.node.to_string(),
                token.state(now).to_owned(),
                date(token.expires),
                token.failed_attempts.to_string(),
                token.identities.iter().cloned().collect::<Vec<_>>().join(","),
            ]
        })
        .collect();
    print(&table(["TOKEN", "NODE", "STATE", "EXPIRES", "WRONG", "IDENTITIES"], &rows))
}

fn revoke(args: RevokeArgs) -> Result<(), Failed> {
    if token::revoke(&args.directory.open()?, &args.id).map_err(failed)? {
        return Ok(());
    }
    Err(anyhow!("there is no token {:?}: `ca token list` shows them", args.id).into())
}
