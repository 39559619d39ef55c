//! `mtls-daemon policy validate`, rows without an object: whether single values are ones that a
//! policy can have.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::policies::{text, texts};
use crate::cli::cases::Answer;
use crate::policy::authz::attribute::{self, Attribute};

/// `op` says what the `values` are: those of a condition's `key`, of a field, or of one form.
pub(super) fn answer(row: &Value) -> Result<Answer> {
    let values = texts(&row["values"])?;
    let of = |attribute: &Attribute| {
        attribute.check_count(values.len())?;
        values.iter().try_for_each(|value| attribute.check(value))
    };
    let checked = match text(row, "op")? {
        "condition" => match Attribute::of_key(text(row, "key")?) {
            Ok(attribute) => of(&attribute),
            Err(error) => Err(error.to_string()),
        },
        "wildcard_value" => values.iter().try_for_each(|value| attribute::check_wildcard(value)),
        "trust_domain_value" => {
            values.iter().try_for_each(|value| attribute::check_trust_domain(value))
        }
        "path" => of(&Attribute::Path),
        "port" => of(&Attribute::Port),
        "ip" => of(&Attribute::SourceIp),
        "service_account" => of(&Attribute::ServiceAccount),
        other => bail!("op {other:?} is not known"),
    };
    let mut answer = Answer::from(json!(checked.is_ok()));
    answer.more.insert("warning".to_owned(), json!(false));
    answer.more.insert("error".to_owned(), json!(checked.err()));
    Ok(answer)
}
