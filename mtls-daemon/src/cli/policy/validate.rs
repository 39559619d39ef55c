//! `mtls-daemon policy validate`: whether the daemon would accept an object, or a value of one.

use anyhow::Result;
use serde_json::{Value, json};

use super::{fields, rows};
use crate::cli::Failed;
use crate::cli::cases::{self, Answer, CaseFile, CasesArgs, Table};
use crate::policy::error::Code;

pub(super) fn run(args: &CasesArgs) -> Result<(), Failed> {
    let table = Table { expected: |row| row.get("valid").cloned(), agrees, ..Table::default() };
    cases::run(args, &table, |_, file, row| answer(file, row))
}

fn agrees(expected: &Value, answer: &Answer) -> bool {
    *expected == answer.result
}

fn answer(_file: &CaseFile, row: &Value) -> Result<Answer> {
    let object = &row["object"];
    if object.is_null() {
        return fields::answer(row);
    }
    let objects = rows::objects(&rows::document(object));
    let errors: Vec<String> = objects.errors.iter().map(ToString::to_string).collect();
    // What is right and nothing here uses says nothing about the object.
    let of_ours = [Code::WarnIgnored, Code::WarnNoToken];
    let doubtful = objects.warnings.iter().any(|warning| !of_ours.contains(&warning.code));
    let warnings: Vec<String> = objects.warnings.iter().map(ToString::to_string).collect();
    let mut answer = Answer::from(json!(errors.is_empty()));
    answer.more.insert("warning".into(), json!(doubtful));
    answer.more.insert("error".into(), json!(errors.first()));
    answer.more.insert("warnings".into(), json!(warnings));
    Ok(answer)
}
