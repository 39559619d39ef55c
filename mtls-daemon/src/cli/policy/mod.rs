//! `mtls-daemon policy …`: the policy engine's answers without a daemon. One file a verb; every verb
//! asks the functions that the data path asks.

mod asked;
mod eval;
mod fields;
mod matching;
mod policies;
mod select;
mod status;

use clap::Subcommand;

use super::Failed;
use super::cases::CasesArgs;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Whether connections and requests are allowed, by which policy and rule
    ///
    /// Without --cases: reads connections as JSON, one a line, and holds them to the policies of
    /// --config.
    Eval(eval::EvalArgs),
    /// Whether one value of a policy matches: strings, host names, identities, trust domains
    Match(CasesArgs),
    /// Which policies apply to a workload
    Select(CasesArgs),
    /// Which rules are enforced otherwise than written where HTTP is not seen
    Status(CasesArgs),
    /// Whether a value is one that a policy can have
    Validate(CasesArgs),
}

pub(super) fn execute(verb: Verb) -> Result<(), Failed> {
    match verb {
        Verb::Eval(args) => eval::run(&args),
        Verb::Match(args) => matching::run(&args),
        Verb::Select(args) => select::run(&args),
        Verb::Status(args) => status::run(&args),
        Verb::Validate(args) => fields::run(&args),
    }
}
