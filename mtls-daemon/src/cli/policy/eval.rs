//! `mtls-daemon policy eval`: what becomes of a connection or a request, and why.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};

use super::asked::Asked;
use super::policies::{Mesh, Policies};
use crate::cli::cases::{self, Answer, CaseFile, CasesArgs, Table};
use crate::cli::{Exit, Failed, print};
use crate::identity::TrustDomain;
use crate::mesh::MeshSettings;
use crate::policy::error::refused_objects;
use crate::policy::path::Normalisation;
use crate::source::files;

#[derive(Debug, Args)]
pub(in crate::cli) struct EvalArgs {
    #[command(flatten)]
    cases: CasesArgs,
    /// Directory of configuration; connections come on stdin, one JSON object a line
    ///
    /// {"connection": {"src": {"principal": …, "ip": …}, "dst": {"namespace": …, "labels": {…},
    /// "ip": …, "port": …}}, "enforcement": "http" or "tcp"}, and with http:
    /// {"method": …, "path": …, "host": …, "headers": {…}} in the connection.
    #[arg(long, value_name = "DIR", conflicts_with = "cases", required_unless_present = "cases")]
    config: Option<PathBuf>,
    /// Namespace whose policies hold for the whole mesh
    #[arg(long, value_name = "NS", default_value = "istio-system", conflicts_with = "cases")]
    root_namespace: String,
    /// Trust domain of the mesh
    #[arg(long, value_name = "TD", default_value = "cluster.local", conflicts_with = "cases")]
    trust_domain: String,
    /// Another name of the trust domain (repeatable)
    #[arg(long, value_name = "TD", conflicts_with = "cases")]
    alias: Vec<String>,
}

pub(super) fn run(args: &EvalArgs) -> Result<(), Failed> {
    match &args.config {
        Some(directory) => stdin(args, directory),
        None => cases::run(&args.cases, &Table::default(), |_, file, row| evaluate(file, row)),
    }
}

fn evaluate(file: &CaseFile, row: &Value) -> Result<Answer> {
    let mesh = Mesh::read(file, row)?;
    let asked = Asked::read(row)?;
    let policies = Policies::read(file, row)?;
    let modes = policies.modes(&mesh).workload_modes(asked.namespace, &asked.labels);
    let authorization = policies.compile(&mesh).for_workload(asked.namespace, &asked.labels);
    Ok(asked.judge(modes.at(asked.destination.port()), &authorization, Normalisation::default()))
}

/// One answer for each line of stdin, as soon as it has come.
fn stdin(args: &EvalArgs, directory: &Path) -> Result<(), Failed> {
    let settings = settings(args).map_err(|error| Failed::new(Exit::Config, error))?;
    let loaded = files::load(directory, "", &settings, 0)
        .map_err(|error| Failed::new(Exit::Config, error))?;
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    for error in &loaded.errors {
        eprintln!("error: {error}");
    }
    let mut failed = 0_usize;
    for (number, line) in (1..).zip(std::io::stdin().lock().lines()) {
        let line = line.context("cannot read stdin")?;
        if line.trim().is_empty() {
            continue;
        }
        let (row, answered) = one(&line, &loaded);
        failed += usize::from(answered.is_err());
        let name = row.as_ref().and_then(|row| row.get("name")).cloned();
        let name = name.unwrap_or_else(|| json!(format!("line {number}")));
        print(&cases::line_of(name, &answered))?;
    }
    let not_asked = anyhow::anyhow!("{failed} lines of stdin are no connections");
    if !loaded.errors.is_empty() {
        if failed > 0 {
            eprintln!("{not_asked}");
        }
        let refused = refused_objects(&loaded.errors);
        let reason = anyhow::anyhow!(
            "{refused} objects refused; the answers are those of what is in force instead"
        );
        return Err(Failed::new(Exit::Config, reason));
    }
    if failed > 0 { Err(not_asked.into()) } else { Ok(()) }
}

fn one(line: &str, loaded: &files::Loaded) -> (Option<Value>, Result<Answer>) {
    let row: Value = match serde_json::from_str(line).context("the line is not JSON") {
        Ok(row) => row,
        Err(error) => return (None, Err(error)),
    };
    let answered = Asked::read(&row).map(|asked| {
        let port = asked.destination.port();
        let plan = loaded.snapshot.inbound_of(asked.namespace, &asked.labels, port);
        asked.judge(&plan.mode, &plan.authorization, Normalisation::default())
    });
    (Some(row), answered)
}

fn settings(args: &EvalArgs) -> Result<MeshSettings> {
    let domain = |name: &String| {
        TrustDomain::configured(name).with_context(|| format!("{name:?} is no trust domain"))
    };
    Ok(MeshSettings {
        trust_domain: domain(&args.trust_domain)?,
        trust_domain_aliases: args.alias.iter().map(domain).collect::<Result<_>>()?,
        root_namespace: args.root_namespace.as_str().into(),
        enable_auto_mtls: true,
        mesh_ranges: Vec::new(),
    })
}
