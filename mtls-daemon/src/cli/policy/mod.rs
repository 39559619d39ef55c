//! `mtls-daemon policy …`: the policy engine's answers without a daemon. One file a verb; every verb
//! asks the functions that the data path asks.

mod client_tls;
mod mode;
mod reach;
mod rows;
mod simulate;
mod validate;

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
    /// Whether an object would be accepted
    Validate(CasesArgs),
}

pub(super) fn execute(verb: Verb) -> Result<(), Failed> {
    match verb {
        Verb::Mode(args) => mode::run(&args),
        Verb::Reach(args) => reach::run(&args),
        Verb::ClientTls(args) => client_tls::run(&args),
        Verb::Validate(args) => validate::run(&args),
    }
}
