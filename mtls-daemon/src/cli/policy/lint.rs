//! `mtls-daemon policy lint DIR`: what is wrong in a directory of objects, for CI.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use serde_json::json;

use crate::cli::{Exit, Failed, print};
use crate::config::MeshArgs;
use crate::policy::error::{Code, ConfigError};
use crate::source::files;

#[derive(Debug, Args)]
pub(in crate::cli) struct LintArgs {
    /// Directory to read: every *.yaml and *.yml in it, as `run --config-dir` does
    dir: PathBuf,
    /// Exit 65 for warnings as well
    #[arg(long)]
    deny_warnings: bool,
    /// How findings are printed: text, or one JSON object a line
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    mesh: MeshArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

pub(in crate::cli) fn run(args: LintArgs) -> Result<(), Failed> {
    let settings = args.mesh.try_into()?;
    // Objects for one node alone are looked at as well: whose node it is makes no difference.
    let (errors, warnings) = match files::load(&args.dir, "", &settings, 0) {
        Ok(loaded) => (loaded.errors, loaded.warnings),
        Err(files::LoadError(errors)) => (errors, Vec::new()),
    };
    // What would be in force instead is no finding of its own.
    let errors: Vec<ConfigError> =
        errors.into_iter().filter(|error| error.code != Code::Refused).collect();
    let mut out = String::new();
    for (severity, finding) in errors
        .iter()
        .map(|error| ("error", error))
        .chain(warnings.iter().map(|warning| ("warning", warning)))
    {
        let line = match args.output {
            Output::Text => format!("{severity}: {finding}"),
            Output::Json => json!({
                "file": finding.file,
                "line": finding.line,
                "object": finding.object,
                "field": finding.field,
                "code": finding.code.as_str(),
                "severity": severity,
                "reason": finding.reason,
            })
            .to_string(),
        };
        writeln!(out, "{line}").expect("writing to a String does not fail");
    }
    print(&out)?;
    if errors.is_empty() && (warnings.is_empty() || !args.deny_warnings) {
        return Ok(());
    }
    let reason =
        anyhow!("{}: {} errors, {} warnings", args.dir.display(), errors.len(), warnings.len());
    Err(Failed::new(Exit::Findings, reason))
}
