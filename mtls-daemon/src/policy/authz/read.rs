//! Reading and validating an object (policy.md 4.3). Its rules are read in [`super::rules`].

use std::collections::BTreeMap;

use super::model::{Action, AuthorizationPolicy, is_true};
use super::rules::Rules;
use crate::policy::error::{Code, Report};
use crate::policy::field::{Field, Fields};
use crate::policy::metadata::Document;

/// What a policy can be attached to instead of workloads. None of it is a workload of ours.
const TARGETS: [(&str, &str); 4] = [
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
    ("networking.istio.io", "ServiceEntry"),
    ("", "Service"),
];

impl AuthorizationPolicy {
    /// Reads and validates. None: refused, and the report says why; what becomes of what it selects
    /// is [`super::RefusedPolicy`]'s.
    ///
    /// Two errors do not refuse the object, because what it denies is better in force than lost: an
    /// unknown key in `when` (it narrows nothing, policy.md 4.9), and the action CUSTOM (it denies
    /// what it selects, policy.md 4.1).
    pub fn read(document: &Document<'_>, report: &mut Report) -> Option<Self> {
        let before = report.errors.len();
        let (object, tolerated) = read(document, report)?;
        (report.errors.len() - before == tolerated).then_some(object)
    }

    /// As [`Self::read`], and what can be read of an object with errors, for those who describe it.
    pub fn describe(document: &Document<'_>, report: &mut Report) -> Option<Self> {
        read(document, report).map(|(object, _)| object)
    }
}

/// The object, and how many of the errors found do not refuse it.
fn read(document: &Document<'_>, report: &mut Report) -> Option<(AuthorizationPolicy, usize)> {
    let meta = document.meta.clone();
    let mut fields = document.spec(report)?;
    let selector_field = fields.take(report, "selector");
    let selector = selector_field.as_ref().map(|f| read_selector(f, report)).unwrap_or_default();
    let targets_gateway = read_targets(&mut fields, selector_field.is_some(), report);
    let action = fields.take(report, "action").map(|f| read_action(&f, report));
    let action = action.unwrap_or(Some(Action::Allow));
    let rules_field = fields.take(report, "rules");
    // Written and empty: said already.
    let rules_missing =
        rules_field.is_none_or_empty() && !(rules_field.is_none() && fields.has("rules"));
    let provider = fields.take(report, "provider");
    let mut rules = Rules::new(action);
    if let Some(field) = &rules_field {
        rules.read(field, report);
    }
    fields.finish(report);
    let action = action?;
    let mut tolerated = rules.unknown_keys;
    match (action, rules_missing) {
        (Action::Deny | Action::Custom, true) => report.error(
            meta.origin.line,
            "spec.rules",
            Code::FieldMissing,
            format!("{action} without rules never applies: an empty rule {{}} applies always"),
        ),
        (Action::Custom, false) => {
            tolerated += 1;
            report.error(
                meta.origin.line,
                "spec.action",
                Code::Unsupported,
                "external authorizers are not supported: everything that the policy selects is \
                 denied",
            );
        }
        _ => {}
    }
    if let (Some(field), true) = (&provider, action != Action::Custom) {
        field.error(report, Code::FieldValue, "is only for action CUSTOM");
    }
    let dry_run = read_dry_run(document, action, report);
    let rules = rules.rules;
    let object = AuthorizationPolicy { meta, action, dry_run, selector, targets_gateway, rules };
    Some((object, tolerated))
}

/// Nothing is written, or a list of nothing.
trait NoneOrEmpty {
    fn is_none_or_empty(&self) -> bool;
}

impl NoneOrEmpty for Option<Field<'_>> {
    fn is_none_or_empty(&self) -> bool {
        self.as_ref().is_none_or(|f| f.node.value == crate::policy::yaml::Value::List(Vec::new()))
    }
}

fn read_action(field: &Field<'_>, report: &mut Report) -> Option<Action> {
    match field.string(report)? {
        "ALLOW" => Some(Action::Allow),
        "DENY" => Some(Action::Deny),
        "AUDIT" => Some(Action::Audit),
        "CUSTOM" => Some(Action::Custom),
        other => {
            let reason = format!("{other:?} is not one of ALLOW, DENY, AUDIT, CUSTOM");
            field.error(report, Code::FieldValue, reason);
            None
        }
    }
}

fn read_selector(field: &Field<'_>, report: &mut Report) -> BTreeMap<String, String> {
    let Some(mut fields) = field.fields(report) else { return BTreeMap::new() };
    let labels =
        fields.take(report, "matchLabels").map(|f| f.selector_labels(report)).unwrap_or_default();
    if labels.is_empty() {
        let reason = "selects by no label, so the policy applies to its whole namespace";
        field.warn(report, Code::WarnSuspicious, reason);
    }
    fields.finish(report);
    labels
}

/// `targetRef` and `targetRefs`: whether there is one (policy.md 4.2).
fn read_targets(fields: &mut Fields<'_>, selector: bool, report: &mut Report) -> bool {
    let one = fields.take(report, "targetRef");
    let many = fields.take(report, "targetRefs");
    let targets: Vec<Field<'_>> =
        one.clone().into_iter().chain(many.iter().flat_map(|f| f.list(report))).collect();
    for target in &targets {
        read_target(target, report);
        let reason = "is a gateway or a service behind a waypoint, and neither is here: this policy is \
                      enforced nowhere; select workloads with selector";
        target.warn(report, Code::WarnIgnored, reason);
    }
    let several = usize::from(selector)
        + usize::from(one.is_some())
        + usize::from(targets.len() > usize::from(one.is_some()));
    if let (Some(target), true) = (targets.first(), several > 1) {
        let reason = "only one of selector, targetRef and targetRefs can be set";
        target.error(report, Code::FieldValue, reason);
    }
    !targets.is_empty()
}

fn read_target(field: &Field<'_>, report: &mut Report) {
    let Some(mut fields) = field.fields(report) else { return };
    fields.need(report, "name").and_then(|f| f.text(report));
    let kind = fields.need(report, "kind").and_then(|f| f.text(report));
    let group = fields.take(report, "group").and_then(|f| f.string(report)).unwrap_or_default();
    let group = if group == "core" { "" } else { group };
    if let Some(kind) = kind
        && !TARGETS.contains(&(group, kind))
    {
        let reason = format!("a policy cannot be attached to {group}/{kind}");
        field.error(report, Code::FieldValue, reason);
    }
    if let Some(namespace) = fields.take(report, "namespace")
        && namespace.string(report).is_some_and(|text| !text.is_empty())
    {
        let reason = "must not be set: a target is in the policy's own namespace";
        namespace.error(report, Code::FieldValue, reason);
    }
    fields.finish(report);
}

fn read_dry_run(document: &Document<'_>, action: Action, report: &mut Report) -> bool {
    const FIELD: &str = "metadata.annotations[istio.io/dry-run]";
    let Some(text) = document.meta.dry_run.as_deref() else { return false };
    let line = document.meta.origin.line;
    if !matches!(action, Action::Allow | Action::Deny) {
        let reason = format!("only ALLOW and DENY have a dry run, not {action}");
        report.error(line, FIELD, Code::FieldValue, reason);
        return false;
    }
    is_true(text).unwrap_or_else(|| {
        let reason = format!("{text:?} is neither \"true\" nor \"false\"");
        report.error(line, FIELD, Code::FieldValue, reason);
        false
    })
}
