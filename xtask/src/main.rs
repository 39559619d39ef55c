//! `cargo xtask VERB`: everything one does with this repository. One verb, one file.

mod binaries;
mod build;
mod demo;
mod ebpf;
mod lint;
mod packages;
mod preflight;
mod run;
mod shell;
mod test;
mod toolchain;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Build, try, test and check mtls-ebpf. Each verb installs what it needs and says so.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Build(build::Args),
    Demo(demo::Args),
    Run(run::Args),
    Test(test::Args),
    Lint(lint::Args),
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = Workspace::find().and_then(|workspace| match cli.verb {
        Verb::Build(args) => build::run(&workspace, &args),
        Verb::Demo(args) => demo::run(&workspace, &args),
        Verb::Run(args) => run::run(&workspace, &args),
        Verb::Test(args) => test::run(&workspace, &args),
        Verb::Lint(args) => lint::run(&workspace, &args),
        Verb::Vm(args) => vm::run(&workspace, &args),
    });
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
