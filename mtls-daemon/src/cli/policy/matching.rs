//! `mtls-daemon policy match`: one matcher at a time.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::policies::{Mesh, text, texts};
use crate::cli::Failed;
use crate::cli::cases::{self, Answer, CaseFile, CasesArgs, Table};
use crate::policy::authz::identity::{Account, expand_principals};
use crate::policy::authz::text::{Pattern, glob};
use crate::policy::host;

pub(super) fn run(args: &CasesArgs) -> Result<(), Failed> {
    cases::run(args, &Table { expected, ..Table::default() }, |_, file, row| matches(file, row))
}

/// Rows about identities say what a strict reading answers; null: that there is no one answer.
fn expected(row: &Value) -> Option<Value> {
    match row.get("expected_strict") {
        Some(Value::Null) => None,
        Some(strict) => Some(strict.clone()),
        None => row.get("expected").cloned(),
    }
}

/// What a row asks shows in its fields.
fn matches(file: &CaseFile, row: &Value) -> Result<Answer> {
    let has = |name: &str| row.get(name).is_some();
    if has("principals") {
        let mesh = Mesh::read(file, row)?;
        let principals = texts(&row["principals"]).context("principals")?;
        return Ok(json!(expand_principals(&principals, &mesh.settings())).into());
    }
    let result = if has("identity") {
        identity(row)?
    } else if has("value") {
        string(row)?
    } else if has("a") && has("b") {
        let (a, b) = (text(row, "a")?, text(row, "b")?);
        match text(row, "op")? {
            "matches" => host::matches(a, b),
            "subset_of" => host::subset_of(a, b),
            other => bail!("op {other:?} is not one of matches, subset_of"),
        }
    } else {
        bail!("the row asks for no match: it has no principals, identity, value, or a and b")
    };
    Ok(json!(result).into())
}

/// `prefix` stands before the value in what is matched; `*` alone matches without it.
fn string(row: &Value) -> Result<bool> {
    let (value, input) = (text(row, "value")?, text(row, "input")?);
    let prefix = row["prefix"].as_str().unwrap_or_default();
    let pattern = Pattern::new(value);
    Ok(match pattern {
        Pattern::Present => pattern.matches(input.as_bytes()),
        _ => input.strip_prefix(prefix).is_some_and(|rest| pattern.matches(rest.as_bytes())),
    })
}

fn identity(row: &Value) -> Result<bool> {
    let identity = text(row, "identity")?;
    let account = identity.strip_prefix("spiffe://").and_then(Account::of);
    let Some(account) = account else { return Ok(false) };
    if let Some(namespace) = row["namespace_value"].as_str() {
        return Ok(glob(namespace, account.namespace));
    }
    let value = text(row, "service_account")?;
    let own = row["policy_namespace"].as_str().unwrap_or_default();
    let (namespace, name) = value.split_once('/').unwrap_or((own, value));
    Ok((namespace, name) == (account.namespace, account.name))
}
