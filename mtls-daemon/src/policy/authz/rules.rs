//! Reading and validating rules (policy.md 4.3).

use super::attribute::{self, Attribute};
use super::model::{Action, Condition, Operation, Rule, Source, Values};
use crate::policy::error::{Code, Report};
use crate::policy::field::{Field, Fields};

/// The rules of one object.
pub(super) struct Rules {
    /// None: the action itself is wrong.
    action: Option<Action>,
    pub rules: Vec<Rule>,
    /// Errors that do not refuse the object.
    pub unknown_keys: usize,
}

impl Rules {
    pub fn new(action: Option<Action>) -> Self {
        Self { action, rules: Vec::new(), unknown_keys: 0 }
    }

    pub fn read(&mut self, field: &Field<'_>, report: &mut Report) {
        for item in field.list(report) {
            if let Some(fields) = item.fields(report) {
                let rule = self.rule(fields.strictly(), report);
                if self.action == Some(Action::Deny) && denies_every_connection(&rule) {
                    item.warn(
                        report,
                        Code::WarnSuspicious,
                        "asks only what HTTP has, so it denies every connection to ports that are \
                         not HTTP: name the ports that it is for",
                    );
                }
                self.rules.push(rule);
            }
        }
    }

    fn rule(&mut self, mut fields: Fields<'_>, report: &mut Report) -> Rule {
        let mut rule = Rule::default();
        if let Some(from) = fields.take(report, "from") {
            for item in some_items(&from, report) {
                rule.from.extend(wrapped(&item, "source", report).map(|f| read_source(f, report)));
            }
        }
        if let Some(to) = fields.take(report, "to") {
            for item in some_items(&to, report) {
                let operation = wrapped(&item, "operation", report);
                rule.to.extend(operation.map(|f| read_operation(f, report)));
            }
        }
        if let Some(when) = fields.take(report, "when") {
            for item in when.list(report) {
                let fields = item.fields(report);
                rule.when.extend(fields.and_then(|f| self.condition(&item, f, report)));
            }
        }
        fields.finish(report);
        rule
    }

    fn condition(
        &mut self,
        item: &Field<'_>,
        mut fields: Fields<'_>,
        report: &mut Report,
    ) -> Option<Condition> {
        let key_field = fields.need(report, "key");
        let key = key_field.as_ref().and_then(|field| field.text(report));
        let attribute = key.map(Attribute::of_key);
        let known = attribute.as_ref().and_then(|found| found.as_ref().ok());
        let values = read_values(&mut fields, ["values", "notValues"], known, report);
        fields.finish(report);
        let key = key?;
        if values.is_empty() {
            let reason = "needs values or notValues";
            item.error(report, Code::FieldMissing, reason);
        }
        if let (Some(field), Some(Err(error))) = (&key_field, &attribute) {
            self.unknown_keys += 1;
            let consequence = match self.action {
                Some(Action::Allow) => "the rule allows nothing",
                _ => "the rule applies without it",
            };
            field.error(report, Code::FieldValue, format!("{key:?}: {error}; {consequence}"));
        }
        if let (Some(field), Some(Attribute::Token)) = (&key_field, known) {
            warn_token(field, report);
        }
        Some(Condition { key: key.into(), values })
    }
}

/// Istio warns of these, whatever else `when` asks.
fn denies_every_connection(rule: &Rule) -> bool {
    let from_connection = rule.from.iter().any(|source| {
        let not_http = [
            &source.principals,
            &source.namespaces,
            &source.service_accounts,
            &source.ip_blocks,
            &source.remote_ip_blocks,
            &source.trust_domains,
        ];
        not_http.iter().any(|values| !values.is_empty())
    });
    let to_connection = rule.to.iter().any(|operation| !operation.ports.is_empty());
    if rule.to.is_empty() { !rule.from.is_empty() && !from_connection } else { !to_connection }
}

/// The items of a list that must have some.
fn some_items<'n>(field: &Field<'n>, report: &mut Report) -> Vec<Field<'n>> {
    let before = report.errors.len();
    let items = field.list(report);
    if items.is_empty() && report.errors.len() == before {
        field.error(report, Code::FieldValue, "must not be empty: leave it out to ask nothing");
    }
    items
}

/// `{source: {…}}` and `{operation: {…}}`: the inner mapping, which must have a field.
fn wrapped<'n>(item: &Field<'n>, name: &'static str, report: &mut Report) -> Option<Fields<'n>> {
    let mut outer = item.fields(report)?;
    let inner = outer.need(report, name);
    outer.finish(report);
    inner?.fields(report)
}

fn read_source(mut fields: Fields<'_>, report: &mut Report) -> Source {
    let at = (fields.line, fields.path.clone());
    let mut values = |names: [&'static str; 2], attribute: Attribute| {
        read_values(&mut fields, names, Some(&attribute), report)
    };
    let source = Source {
        principals: values(["principals", "notPrincipals"], Attribute::Principal),
        request_principals: values(["requestPrincipals", "notRequestPrincipals"], Attribute::Token),
        namespaces: values(["namespaces", "notNamespaces"], Attribute::Namespace),
        service_accounts: values(
            ["serviceAccounts", "notServiceAccounts"],
            Attribute::ServiceAccount,
        ),
        trust_domains: values(["trustDomains", "notTrustDomains"], Attribute::TrustDomain),
        ip_blocks: values(["ipBlocks", "notIpBlocks"], Attribute::SourceIp),
        remote_ip_blocks: values(["remoteIpBlocks", "notRemoteIpBlocks"], Attribute::RemoteIp),
    };
    fields.finish(report);
    let error = |report: &mut Report, reason: &str| {
        report.error(at.0, &at.1, Code::FieldValue, reason);
    };
    if source.fields().iter().all(|(_, values)| values.is_empty()) {
        error(report, "must not be empty: leave `from` out to ask nothing");
    }
    let otherwise_named = !source.principals.is_empty() || !source.namespaces.is_empty();
    if otherwise_named && !source.service_accounts.is_empty() {
        error(report, "serviceAccounts cannot be set with namespaces or principals");
    }
    source
}

fn read_operation(mut fields: Fields<'_>, report: &mut Report) -> Operation {
    let at = (fields.line, fields.path.clone());
    let mut values = |names: [&'static str; 2], attribute: Attribute| {
        read_values(&mut fields, names, Some(&attribute), report)
    };
    let operation = Operation {
        hosts: values(["hosts", "notHosts"], Attribute::Host),
        ports: values(["ports", "notPorts"], Attribute::Port),
        methods: values(["methods", "notMethods"], Attribute::Method),
        paths: values(["paths", "notPaths"], Attribute::Path),
    };
    fields.finish(report);
    if operation.fields().iter().all(|(_, values)| values.is_empty()) {
        let reason = "must not be empty: leave `to` out to ask nothing";
        report.error(at.0, &at.1, Code::FieldValue, reason);
    }
    operation
}

/// A field and its `not` twin. Without an attribute, only that there is text.
fn read_values(
    fields: &mut Fields<'_>,
    names: [&'static str; 2],
    attribute: Option<&Attribute>,
    report: &mut Report,
) -> Values {
    let [any, none] = names.map(|name| {
        let Some(field) = fields.take(report, name) else { return Vec::new() };
        let texts = field.texts(report);
        if texts.is_empty() && field.list(&mut Report::default()).is_empty() {
            field.warn(report, Code::WarnSuspicious, "is empty and asks nothing");
        }
        if let Some(attribute) = attribute {
            if let Err(reason) = attribute.check_count(texts.len()) {
                field.error(report, Code::FieldValue, reason);
            }
            if *attribute == Attribute::Token && names[0] == "requestPrincipals" {
                warn_token(&field, report);
            }
        }
        for (item, text) in &texts {
            check_value(item, text, names[0], attribute, report);
        }
        texts.into_iter().map(|(_, text)| text.into()).collect()
    });
    Values { any, none }
}

fn check_value(
    item: &Field<'_>,
    text: &str,
    name: &str,
    attribute: Option<&Attribute>,
    report: &mut Report,
) {
    let checked = match attribute {
        Some(Attribute::TrustDomain) if name == "trustDomains" => {
            attribute::check_trust_domain(text)
        }
        Some(attribute) => attribute.check(text),
        None => Ok(()),
    };
    if let Err(reason) = checked {
        item.error(report, Code::FieldValue, reason);
    }
    if attribute == Some(&Attribute::Principal) && text.starts_with("spiffe://") {
        let reason = "principals are written without spiffe://: this one matches nobody";
        item.warn(report, Code::WarnSuspicious, reason);
    }
}

fn warn_token(field: &Field<'_>, report: &mut Report) {
    field.warn(
        report,
        Code::WarnNoToken,
        "no JWT is validated: in an ALLOW rule this never holds, other rules go without it",
    );
}
