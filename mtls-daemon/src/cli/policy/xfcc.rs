//! `mtls-daemon policy xfcc`: what an application is told of its client, and what it reads from it.
//!
//! Rows of `cases` are connections with the header that came in; rows of `parse` are headers.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cli::Failed;
use crate::cli::cases::{self, Answer, CasesArgs, Table};
use crate::policy::xfcc::{self, Client, Element, Forward};

pub(super) fn run(args: &CasesArgs) -> Result<(), Failed> {
    let table = Table { lists: &["cases", "parse"], expected, agrees };
    cases::run(args, &table, |list, _, row| match list {
        "parse" => parse(row),
        _ => forward(row),
    })
}

/// A row of `parse` that expects an error names a part of it.
fn expected(row: &Value) -> Option<Value> {
    if let Some(header) = row.get("expected_header") {
        return Some(header.clone());
    }
    match row.get("error_contains").and_then(Value::as_str) {
        Some(error) => Some(json!({ "error": error })),
        None => row.get("expected_identities").cloned(),
    }
}

fn agrees(expected: &Value, answer: &Answer) -> bool {
    match expected.get("error").and_then(Value::as_str) {
        Some(part) => {
            let error = answer.more.get("error").and_then(Value::as_str);
            answer.result.is_null() && error.is_some_and(|error| error.contains(part))
        }
        None => *expected == answer.result,
    }
}

fn forward(row: &Value) -> Result<Answer> {
    let how = row.get("forward_client_cert").context("forward_client_cert is missing")?;
    let how: Forward = serde_json::from_value(how.clone()).context("forward_client_cert")?;
    let client = (row["connection"] == "mtls").then(|| client(row));
    let text = |name: &str| row.get(name).and_then(Value::as_str);
    let header =
        xfcc::forwarded(how, client.as_ref(), text("local_uri_san"), text("incoming_header"));
    Ok(Answer::from(json!(header)))
}

fn client(row: &Value) -> Client {
    let peer = &row["peer"];
    let text = |name: &str| peer.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let details = row.get("details").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    // Names come without regard to case.
    let wanted = |name: &str| {
        details.iter().any(|d| d.as_str().is_some_and(|d| d.eq_ignore_ascii_case(name)))
    };
    let dns_names = peer.get("dns_sans").and_then(Value::as_array).filter(|_| wanted("DNS"));
    Client {
        hash: text("sha256"),
        subject: wanted("Subject").then(|| text("subject")),
        uri: wanted("URI").then(|| text("uri_san")),
        certificate: wanted("Cert").then(|| text("url_encoded_pem")),
        dns_names: dns_names
            .into_iter()
            .flatten()
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect(),
    }
}

fn parse(row: &Value) -> Result<Answer> {
    let header = row.get("header").and_then(Value::as_str).unwrap_or_default();
    Ok(match xfcc::parse(header) {
        Ok(hops) => {
            let identities: Vec<&str> = hops.iter().flat_map(Element::identities).collect();
            Answer::from(json!(identities))
        }
        Err(error) => {
            let mut answer = Answer::from(Value::Null);
            answer.more.insert("error".into(), json!(error.to_string()));
            answer
        }
    })
}
