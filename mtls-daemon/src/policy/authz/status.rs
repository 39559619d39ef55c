//! Which rules are enforced otherwise than written, and how (policy.md 4.8).

use std::fmt;

use super::attribute::Attribute;
use super::model::{Action, AuthorizationPolicy, Rule};

/// One rule that is not enforced as written on connections that are not HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// From 0. None: the policy as a whole.
    pub rule: Option<u32>,
    /// Those that only HTTP has, as they are written.
    pub fields: Vec<String>,
    pub effect: &'static str,
}

/// `rule 0 (methods, paths): the rule allows no connection that is not HTTP`.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(rule) = self.rule {
            write!(f, "rule {rule} ({}): ", self.fields.join(", "))?;
        }
        f.write_str(self.effect)
    }
}

const NAMES: [&str; 7] = [
    "principals",
    "requestPrincipals",
    "namespaces",
    "serviceAccounts",
    "trustDomains",
    "ipBlocks",
    "remoteIpBlocks",
];
const TO_NAMES: [&str; 4] = ["hosts", "ports", "methods", "paths"];

/// What is different where HTTP is not seen. Empty: the policy is enforced as written everywhere,
/// or is no workload's.
pub fn differences(object: &AuthorizationPolicy) -> Vec<Difference> {
    if object.targets_gateway {
        return Vec::new();
    }
    let mut found = Vec::new();
    let whole = match object.action {
        Action::Custom => Some("CUSTOM is not supported: everything that it selects is denied"),
        Action::Audit => Some("AUDIT decides nothing: its matches are noted"),
        _ => None,
    };
    found.extend(whole.map(|effect| Difference { rule: None, fields: Vec::new(), effect }));
    for (index, rule) in (0..).zip(&object.rules) {
        let fields = http_fields(rule);
        if fields.is_empty() || object.action == Action::Custom {
            continue;
        }
        let effect = match object.action {
            Action::Allow => "the rule allows no connection that is not HTTP",
            Action::Audit => "the rule is noted without these fields where there is no HTTP",
            _ => "the rule denies without these fields where there is no HTTP: more than written",
        };
        found.push(Difference { rule: Some(index), fields, effect });
    }
    found
}

/// The fields of a rule that only HTTP has, as they are written, sorted.
fn http_fields(rule: &Rule) -> Vec<String> {
    let mut fields = Vec::new();
    let mut add = |name: &str, (attribute, values): (Attribute, &super::model::Values)| {
        if attribute.is_http() {
            let mut letters = name.chars();
            let first = letters.next().map(|c| c.to_ascii_uppercase()).into_iter();
            let not = format!("not{}", first.chain(letters).collect::<String>());
            fields.extend((!values.any.is_empty()).then(|| name.to_owned()));
            fields.extend((!values.none.is_empty()).then_some(not));
        }
    };
    for source in &rule.from {
        NAMES.into_iter().zip(source.fields()).for_each(|(name, field)| add(name, field));
    }
    for operation in &rule.to {
        TO_NAMES.into_iter().zip(operation.fields()).for_each(|(name, field)| add(name, field));
    }
    for condition in &rule.when {
        if Attribute::of_key(&condition.key).is_ok_and(|attribute| attribute.is_http()) {
            fields.push(condition.key.to_string());
        }
    }
    fields.sort_unstable();
    fields.dedup();
    fields
}
