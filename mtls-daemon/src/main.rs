//! The node daemon and its command line.

use std::process::ExitCode;

use clap::Parser;
use mtls_daemon::cli::{self, Cli, Exit};

fn main() -> ExitCode {
    match cli::execute(Cli::parse()) {
        Ok(()) => Exit::Ok.into(),
        Err(failed) => {
            eprintln!("error: {failed}");
            failed.exit.into()
        }
    }
}
