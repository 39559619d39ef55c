//! The command line: one file a verb, and the exit codes that scripts rely on.

mod ca;
mod cases;
mod certs;
mod check;
mod cleanup;
pub mod exit;
mod identity;
mod policy;
mod run;
mod status;
mod table;
mod wait;

pub use exit::{Exit, Failed};

use clap::{Parser, Subcommand};

/// Gives every workload on this node a SPIFFE identity and mutual TLS, without sidecars.
#[derive(Debug, Parser)]
#[command(
    name = "mtls-daemon",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = exit::HELP
)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon of this node until SIGTERM or SIGINT
    #[command(after_help = exit::HELP)]
    Run(Box<crate::config::RunArgs>),
    /// Show the running daemon's workloads, identities, configuration and connections
    #[command(after_help = exit::HELP)]
    Status(status::StatusArgs),
    /// Show the running daemon's certificates: serial, issuer, times, next renewal, last error
    #[command(after_help = exit::HELP)]
    Certs(status::StatusArgs),
    /// Wait until the workload of this process' own cgroup is enrolled and has its certificate: for a
    /// unit's ExecStartPre
    ///
    /// A unit that is started again has another cgroup, which the daemon has to find first. What the unit
    /// connects to before is not intercepted. Without --node, every daemon of the host is asked whose
    /// workload it is.
    #[command(after_help = exit::HELP)]
    Wait(wait::WaitArgs),
    /// Remove everything a daemon left in the kernel: its workloads talk as if it had never been
    ///
    /// A stopped or killed daemon leaves its programs in place, so that its workloads cannot talk in
    /// the clear until a daemon is back. This takes them away for good, with rules, routes and pins.
    #[command(after_help = exit::HELP)]
    Cleanup(cleanup::CleanupArgs),
    /// A certificate authority for many nodes
    #[command(subcommand)]
    Ca(ca::CaVerb),
    /// Read a configuration directory as the daemon would, and print what is wrong with it
    #[command(after_help = exit::HELP)]
    Check(check::CheckArgs),
    /// Parse and check SPIFFE IDs, SVIDs and trust bundles
    Identity(identity::IdentityArgs),
    /// Ask the policy engine, without a daemon: what would it decide, and why
    #[command(after_help = exit::HELP, subcommand_required = true, arg_required_else_help = true)]
    Policy {
        #[command(subcommand)]
        verb: policy::Verb,
    },
}

/// Does what the command line says.
///
/// # Errors
/// What failed, and the exit code for it.
pub fn execute(cli: Cli) -> Result<(), Failed> {
    match cli.verb {
        Verb::Run(args) => run::run(*args),
        Verb::Status(args) => status::status(args),
        Verb::Certs(args) => certs::certs(args),
        Verb::Wait(args) => wait::wait(args),
        Verb::Cleanup(args) => cleanup::cleanup(args),
        Verb::Ca(verb) => ca::ca(verb),
        Verb::Check(args) => check::check(args),
        Verb::Identity(args) => identity::identity(args),
        Verb::Policy { verb } => policy::execute(verb),
    }
}

/// Writes to stdout; a reader that has gone (`| head`) is no error.
fn print(text: &str) -> Result<(), Failed> {
    use std::io::Write;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("cannot write to stdout").into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    /// Arguments and environments can be read by others: a secret is in a file.
    #[test]
    fn no_argument_is_a_secret() {
        use clap::CommandFactory;
        const SECRET: [&str; 6] =
            ["key", "token", "secret", "password", "passphrase", "credential"];
        /// A place, or a kind of key.
        const PLAIN: [&str; 4] = ["FILE", "DIR", "TYPE", "KIND"];
        fn look(command: &clap::Command, seen: &mut Vec<String>) {
            for argument in command.get_arguments().filter(|it| it.get_action().takes_values()) {
                let name = argument.get_long().unwrap_or(argument.get_id().as_str());
                if name.split(['-', '_']).any(|word| SECRET.contains(&word)) {
                    let values = argument.get_value_names().unwrap_or_default();
                    let plain = values.iter().all(|it| PLAIN.contains(&it.as_str()));
                    assert!(plain && !values.is_empty(), "{}: {name}", command.get_name());
                    seen.push(name.to_owned());
                }
            }
            command.get_subcommands().for_each(|verb| look(verb, seen));
        }
        let mut seen = Vec::new();
        look(&Cli::command(), &mut seen);
        for name in ["ca-token-file", "ca-join-token-file", "key-encryption-file"] {
            assert!(seen.iter().any(|it| it == name), "{name} among {seen:?}");
        }
    }

    #[test]
    fn usage_errors_have_claps_exit_code() {
        for args in [&["mtls-daemon", "fly"][..], &["mtls-daemon", "run", "--mesh-range", "x"]] {
            let error = Cli::try_parse_from(args).expect_err("a usage error");
            assert_eq!(error.exit_code(), i32::from(Exit::Usage as u8));
        }
    }
}
