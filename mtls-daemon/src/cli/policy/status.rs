//! `mtls-daemon policy status`: which rules are enforced otherwise than written where a connection
//! is not HTTP, or its requests are not seen.

use anyhow::Result;
use serde_json::{Value, json};

use super::policies::with_document;
use crate::cli::Failed;
use crate::cli::cases::{self, Answer, CaseFile, CasesArgs, Table};
use crate::policy::AuthorizationPolicy;
use crate::policy::authz::status::differences;

pub(super) fn run(args: &CasesArgs) -> Result<(), Failed> {
    let expected =
        |row: &Value| row.get("expected_status").or_else(|| row.get("expected")).cloned();
    let table = Table { expected, agrees, ..Table::default() };
    cases::run(args, &table, |_, file, row| status(file, row))
}

/// Whether there is something to say; the wording is each implementation's own.
fn agrees(expected: &Value, answer: &Answer) -> bool {
    expected.is_null() == answer.result.is_null()
}

fn status(_file: &CaseFile, row: &Value) -> Result<Answer> {
    with_document(&row["policy"], |document, report| {
        let object = AuthorizationPolicy::describe(document, report);
        let found = object.as_ref().map(differences).unwrap_or_default();
        let list: Vec<Value> = found
            .iter()
            .map(|one| json!({"rule": one.rule, "fields": one.fields, "effect": one.effect}))
            .collect();
        let mut answer = Answer::from(if list.is_empty() { Value::Null } else { json!(list) });
        if let Some(error) = report.errors.first() {
            answer.more.insert("error".to_owned(), json!(error.to_string()));
        }
        answer
    })
}
