//! `mtls-daemon policy …`: the policy engine's answers without a daemon. One file a verb; every verb
//! asks the functions that the data path asks.

mod asked;
mod client_tls;
mod eval;
mod fields;
mod lint;
mod matching;
mod mode;
mod policies;
mod reach;
mod rows;
mod select;
mod simulate;
mod status;
mod validate;
mod xfcc;

use clap::Subcommand;

use super::Failed;
use super::cases::CasesArgs;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// A server's effective PeerAuthentication modes, and what becomes of a connection under them
    Mode(CasesArgs),
    /// Whether a client reaches a server, and whether the server sees mTLS
    Reach(CasesArgs),
    /// What a client sends: mTLS or plaintext, with which settings, by which DestinationRule
    ClientTls(CasesArgs),
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
    /// Whether an object would be accepted, or a single value of a policy
    Validate(CasesArgs),
    /// The X-Forwarded-Client-Cert that an application gets, and the identities that it names
    Xfcc(CasesArgs),
    /// Say what is wrong in a directory of objects; exit 65 if something is
    Lint(lint::LintArgs),
}

pub(super) fn execute(verb: Verb) -> Result<(), Failed> {
    match verb {
        Verb::Mode(args) => mode::run(&args),
        Verb::Reach(args) => reach::run(&args),
        Verb::ClientTls(args) => client_tls::run(&args),
        Verb::Validate(args) => validate::run(&args),
        Verb::Eval(args) => eval::run(&args),
        Verb::Match(args) => matching::run(&args),
        Verb::Select(args) => select::run(&args),
        Verb::Status(args) => status::run(&args),
        Verb::Xfcc(args) => xfcc::run(&args),
        Verb::Lint(args) => lint::run(args),
    }
}
