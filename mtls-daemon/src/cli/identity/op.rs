//! `mtls-daemon identity op`: what can be done with identities, one row a question.

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use super::super::cases::{self, Answer, CaseFile, CasesArgs, Table};
use super::{Failed, said, says, valid};
use crate::identity::{IstioIdentity, SpiffeId, SpiffeIdError, TrustDomain, istio};

/// Rows have an `op`: parse_identity, gen_uri, expand_san, from_segments, from_path, replace_path,
/// replace_segments, append_path, append_segments, member_of, match (docs/identity.md)
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("rows").arg("cases").required(true))]
pub(super) struct OpArgs {
    #[command(flatten)]
    cases: CasesArgs,
}

pub(super) fn op(args: &OpArgs) -> Result<(), Failed> {
    let table = Table { expected, agrees, ..Table::default() };
    cases::run(&args.cases, &table, answer)
}

fn expected(row: &Value) -> Option<Value> {
    // A row that expects an error expects no identity, however it spells that.
    if row.get("error").is_some_and(|error| !error.is_null()) {
        return Some(Value::Null);
    }
    row.get("expected").cloned().or_else(|| said(row, &["valid", "path"]))
}

/// Sets of names are equal in any order.
fn agrees(expected: &Value, answer: &Answer) -> bool {
    match (expected.as_array(), answer.result.as_array()) {
        (Some(expected), Some(found)) => {
            expected.len() == found.len() && expected.iter().all(|value| found.contains(value))
        }
        _ => says(expected, answer),
    }
}

fn answer(_: &str, file: &CaseFile, row: &Value) -> Result<Answer> {
    let text = |name| file.text(row, name).with_context(|| format!("a row without `{name}`"));
    Ok(match text("op")? {
        "parse_identity" => parse_identity(text("input")?).into(),
        "gen_uri" => generate(text("trust_domain")?, text("namespace")?, text("service_account")?),
        "expand_san" => {
            let aliases = list(file, row, "trust_domains")?;
            let aliases =
                aliases.into_iter().map(TrustDomain::configured).collect::<Result<Vec<_>, _>>()?;
            json!(istio::expand(list(file, row, "san")?, &aliases)).into()
        }
        "member_of" => {
            let domain = TrustDomain::parse(text("trust_domain")?)?;
            no_or_id(text("input")?)?.is_some_and(|id| id.is_member_of(&domain)).into_answer()
        }
        "match" => matches(file, row, no_or_id(text("input")?)?.as_ref())?.into_answer(),
        op => valid(made(op, file, row)?.map(|id| json!({"id": id, "path": id.path()}))),
    })
}

trait IntoAnswer {
    fn into_answer(self) -> Answer;
}

impl IntoAnswer for bool {
    fn into_answer(self) -> Answer {
        Value::from(self).into()
    }
}

/// As Istio reads one, which is looser than a SPIFFE ID.
fn parse_identity(input: &str) -> Value {
    match IstioIdentity::parse(input) {
        Some(istio) => json!({
            "trust_domain": istio.trust_domain,
            "namespace": istio.namespace,
            "service_account": istio.service_account,
        }),
        None => Value::Null,
    }
}

fn generate(trust_domain: &str, namespace: &str, account: &str) -> Answer {
    let made = TrustDomain::configured(trust_domain)
        .and_then(|domain| SpiffeId::istio(&domain, namespace, account));
    match made {
        Ok(id) => json!(id).into(),
        Err(error) => {
            let mut answer = Answer::from(Value::Null);
            answer.more.insert("reason".to_owned(), error.to_string().into());
            answer
        }
    }
}

/// An ID that is made of parts; the outer error is the row's own.
fn made(op: &str, file: &CaseFile, row: &Value) -> Result<Result<SpiffeId, SpiffeIdError>> {
    let domain = file.text(row, "trust_domain").context("a row without `trust_domain`")?;
    let domain = match TrustDomain::parse(domain) {
        Ok(domain) => domain,
        Err(error) => return Ok(Err(error)),
    };
    let start = file.text(row, "start").unwrap_or_default();
    if let Err(error) = SpiffeId::from_path(&domain, start) {
        return Ok(Err(error));
    }
    let path = || file.text(row, "path_in").context("a row without `path_in`");
    let segments = || list(file, row, "segments");
    Ok(match op {
        "from_path" | "replace_path" => SpiffeId::from_path(&domain, path()?),
        "append_path" => match path()? {
            more if more.is_empty() || more.starts_with('/') => {
                SpiffeId::from_path(&domain, &format!("{start}{more}"))
            }
            _ => Err(SpiffeIdError::LeadingSlash),
        },
        "from_segments" | "replace_segments" => SpiffeId::from_segments(&domain, segments()?),
        "append_segments" => {
            let before = start.split('/').skip(1);
            SpiffeId::from_segments(&domain, before.chain(segments()?))
        }
        other => bail!("{other:?} is no operation"),
    })
}

fn matches(file: &CaseFile, row: &Value, id: Option<&SpiffeId>) -> Result<bool> {
    let argument = || file.text(row, "arg").context("a row without `arg`");
    Ok(match file.text(row, "matcher").context("a row without `matcher`")? {
        "any" => true,
        "id" => id == Some(&SpiffeId::parse(argument()?)?),
        "one_of" => {
            list(file, row, "arg")?.into_iter().any(|one| Some(one) == id.map(SpiffeId::as_str))
        }
        "member_of" => {
            let domain = TrustDomain::parse(argument()?)?;
            id.is_some_and(|id| id.is_member_of(&domain))
        }
        other => bail!("{other:?} is no matcher"),
    })
}

/// An empty text stands for a peer without an identity.
fn no_or_id(text: &str) -> Result<Option<SpiffeId>> {
    Ok(if text.is_empty() { None } else { Some(SpiffeId::parse(text)?) })
}

fn list<'v>(file: &'v CaseFile, row: &'v Value, name: &str) -> Result<Vec<&'v str>> {
    let values = file.field(row, name).and_then(Value::as_array);
    let values = values.with_context(|| format!("a row without the list `{name}`"))?;
    values.iter().map(|v| v.as_str().with_context(|| format!("`{name}` holds {v}"))).collect()
}
