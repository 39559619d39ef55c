//! `mtls-daemon identity parse`

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use super::super::cases::{self, Answer, CaseFile, CasesArgs, Table};
use super::{Failed, invalid, said, says, show, valid};
use crate::identity::{SpiffeId, SpiffeIdError, TrustDomain};

#[derive(Debug, Args)]
pub(super) struct ParseArgs {
    /// SPIFFE IDs such as spiffe://cluster.local/ns/foo/sa/web
    #[arg(value_name = "ID", required_unless_present = "cases", conflicts_with = "cases")]
    ids: Vec<String>,
    /// They are trust domains: names such as cluster.local, or IDs that are in them
    ///
    /// Rows say it themselves: by their `kind` (`id` or `trust-domain`), or by names that begin
    /// with `id:` or `td:`; else the file's name says it.
    #[arg(long)]
    trust_domain: bool,
    #[command(flatten)]
    cases: CasesArgs,
}

pub(super) fn parse(args: &ParseArgs) -> Result<(), Failed> {
    if args.cases.cases.is_some() {
        let table = Table {
            expected: |row| said(row, &["valid", "trust_domain", "path"]),
            agrees: says,
            ..Table::default()
        };
        let file_is = args.cases.cases.as_ref().and_then(|path| path.file_stem()?.to_str());
        let file_is = args.trust_domain
            || file_is.is_some_and(|name| name.replace('-', "").contains("trustdomain"));
        return cases::run(&args.cases, &table, |_, file, row| answer(file, row, file_is));
    }
    let mut wrong = Vec::new();
    for id in &args.ids {
        if !show(id, parsed(id, args.trust_domain))? {
            wrong.push(format!("{id:?}"));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(invalid(&wrong.join(", "))) }
}

fn answer(file: &CaseFile, row: &Value, file_is: bool) -> anyhow::Result<Answer> {
    let input = file.text(row, "input").context("a row without `input`")?;
    let name = file.text(row, "name").unwrap_or_default();
    let trust_domain = match file.text(row, "kind") {
        Some("id") => false,
        Some("trust-domain") => true,
        Some(other) => anyhow::bail!("{other:?} is no kind: it is `id` or `trust-domain`"),
        None if name.starts_with("id:") => false,
        None if name.starts_with("td:") => true,
        None => file_is,
    };
    Ok(parsed(input, trust_domain))
}

fn parsed(input: &str, trust_domain: bool) -> Answer {
    let found = match trust_domain {
        // A colon is in no trust domain: whoever writes one means an ID.
        true if !input.contains(":/") => {
            TrustDomain::parse(input).map(|name| result(name.as_str(), "", None))
        }
        _ => id(input),
    };
    valid(found)
}

fn id(input: &str) -> Result<Value, SpiffeIdError> {
    let id = SpiffeId::parse(input)?;
    Ok(result(id.trust_domain(), id.path(), id.istio_parts()))
}

fn result(trust_domain: &str, path: &str, istio: Option<(&str, &str)>) -> Value {
    let mut result = json!({"trust_domain": trust_domain, "path": path});
    if let Some((namespace, account)) = istio {
        result["namespace"] = namespace.into();
        result["service_account"] = account.into();
    }
    result
}
