//! `mtls-daemon identity`: SPIFFE IDs, SVIDs and bundles, judged as the daemon judges them.

mod bundle;
mod making;
mod mutation;
mod op;
mod parse;
mod recipe;
mod svid;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::cases::Answer;
use super::{Exit, Failed, exit, print};

#[derive(Debug, Args)]
pub(super) struct IdentityArgs {
    #[command(subcommand)]
    verb: IdentityVerb,
}

#[derive(Debug, Subcommand)]
enum IdentityVerb {
    /// Parse SPIFFE IDs or trust domains, one JSON line each
    #[command(after_help = exit::HELP)]
    Parse(parse::ParseArgs),
    /// Put identities together, split, expand and compare them, as rows of a file say
    #[command(after_help = exit::HELP)]
    Op(op::OpArgs),
    /// Check an X.509 SVID: its rules, its key, and whether a bundle's CAs signed it
    #[command(after_help = exit::HELP)]
    CheckSvid(Box<svid::CheckSvidArgs>),
    /// Check a trust bundle: a SPIFFE bundle document, or certificates in PEM
    #[command(after_help = exit::HELP)]
    CheckBundle(bundle::CheckBundleArgs),
}

pub(super) fn identity(args: IdentityArgs) -> Result<(), Failed> {
    match args.verb {
        IdentityVerb::Parse(args) => parse::parse(&args),
        IdentityVerb::Op(args) => op::op(&args),
        IdentityVerb::CheckSvid(args) => svid::check_svid(&args),
        IdentityVerb::CheckBundle(args) => bundle::check_bundle(&args),
    }
}

/// `{"valid": true, …}`, or that it is not, with the reason beside the result.
fn valid<E: std::fmt::Display>(found: Result<Value, E>) -> Answer {
    match found {
        Ok(mut result) => {
            result["valid"] = true.into();
            result.into()
        }
        Err(reason) => {
            let mut answer = Answer::from(json!({"valid": false}));
            answer.more.insert("reason".to_owned(), reason.to_string().into());
            answer
        }
    }
}

/// What a row says of the result, of the fields in which its kind can say something.
fn said(row: &Value, fields: &[&str]) -> Option<Value> {
    row.get("valid")?;
    let said =
        fields.iter().filter_map(|field| Some(((*field).to_owned(), row.get(*field)?.clone())));
    Some(Value::Object(said.collect()))
}

/// A result may say more than was expected.
fn says(expected: &Value, answer: &Answer) -> bool {
    match expected.as_object() {
        Some(fields) => fields.iter().all(|(name, value)| answer.result.get(name) == Some(value)),
        None => *expected == answer.result,
    }
}

/// Prints the answer for what was named on the command line; whether it is valid.
fn show(name: &str, answer: Answer) -> Result<bool, Failed> {
    let valid = answer.result["valid"] == true;
    let mut line = serde_json::Map::new();
    line.insert("name".to_owned(), name.into());
    line.insert("result".to_owned(), answer.result);
    line.extend(answer.more);
    print(&format!("{}\n", Value::Object(line)))?;
    Ok(valid)
}

fn invalid(what: &str) -> Failed {
    Failed::new(Exit::Failure, anyhow::anyhow!("{what} is not valid"))
}

#[cfg(test)]
mod tests;
