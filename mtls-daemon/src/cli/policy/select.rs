//! `mtls-daemon policy select`: which policies apply to a workload.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::policies::{Mesh, Policies, labels, text};
use crate::cli::Failed;
use crate::cli::cases::{self, Answer, CaseFile, CasesArgs, Table};
use crate::policy::authz::Action;

pub(super) fn run(args: &CasesArgs) -> Result<(), Failed> {
    cases::run(args, &Table { expected, agrees, ..Table::default() }, |_, file, row| {
        select(file, row)
    })
}

fn expected(row: &Value) -> Option<Value> {
    match row.get("expected_peer_authn") {
        Some(objects) => {
            Some(json!({"peer_authn": objects, "namespace_mode": row["expected_namespace_mode"]}))
        }
        None => row.get("expected").cloned(),
    }
}

/// Lists of objects have no order.
fn agrees(expected: &Value, answer: &Answer) -> bool {
    sorted(expected) == sorted(&answer.result)
}

fn sorted(value: &Value) -> Value {
    let mut value = value.clone();
    for list in value.as_object_mut().into_iter().flatten().filter_map(|(_, v)| v.as_array_mut()) {
        list.sort_by_key(ToString::to_string);
    }
    value
}

fn select(file: &CaseFile, row: &Value) -> Result<Answer> {
    let mesh = Mesh::read(file, row)?;
    let policies = Policies::read(file, row)?;
    let workload = &row["workload"];
    let namespace = text(workload, "namespace").context("workload")?;
    let labels = labels(&workload["labels"])?;
    let of_authentication = row.get("expected_peer_authn").is_some()
        || (!policies.authentications.is_empty() && policies.authorizations.is_empty());
    if of_authentication {
        let all = policies.modes(&mesh);
        let applying = all.applying(namespace, &labels);
        let names: Vec<String> = applying
            .iter()
            .map(|object| format!("{}/{}", object.meta.namespace, object.meta.name))
            .collect();
        // Nothing says anything about the whole namespace: the mode is the default, not a choice.
        let chosen = applying.iter().any(|object| object.selector.is_empty());
        let mode = all.namespace_mode(namespace).mode.to_string();
        let mode = if chosen { mode.as_str() } else { "UNKNOWN" };
        return Ok(json!({"peer_authn": names, "namespace_mode": mode}).into());
    }
    let found = policies.compile(&mesh).for_workload(namespace, &labels);
    let of = |action: Action| -> Vec<&str> {
        let list = found.policies().filter(|p| p.action == action && p.refused.is_none());
        list.map(|p| short(p.object)).collect()
    };
    let mut answer = Answer::from(json!({
        "deny": of(Action::Deny),
        "allow": of(Action::Allow),
        "audit": of(Action::Audit),
        "custom": of(Action::Custom),
    }));
    let refused: Vec<Value> = found
        .policies()
        .filter_map(|p| Some(json!({"policy": short(p.object), "reason": &**p.refused?})))
        .collect();
    if !refused.is_empty() {
        answer.more.insert("refused".to_owned(), json!(refused));
    }
    Ok(answer)
}

/// `namespace/name` of `AuthorizationPolicy namespace/name`.
fn short(object: &str) -> &str {
    object.split_once(' ').map_or(object, |(_, name)| name)
}
