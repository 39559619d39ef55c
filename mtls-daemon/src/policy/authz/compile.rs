//! Objects to what is evaluated. Whatever cannot be told makes an ALLOW rule match nothing and a
//! DENY rule match more, never the other way (policy.md 4.8, 4.9).

use std::sync::Arc;

use ipnet::IpNet;

use super::attribute::{self, Attribute};
use super::identity::{expand_domains, expand_principals};
use super::index::AuthzSettings;
use super::model::{Action, AuthorizationPolicy, Condition, Operation, Rule, Source, Values};
use super::status::{Difference, differences};
use super::template::PathPattern;
use super::text::{Pattern, Texts};

/// One policy, ready to be asked.
#[derive(Debug)]
pub(super) struct Compiled {
    /// `AuthorizationPolicy namespace/name`.
    pub object: Arc<str>,
    pub action: Action,
    pub dry_run: bool,
    /// Set: it was refused, and this is why.
    pub refused: Option<Arc<str>>,
    /// What is not enforced as written where HTTP is not seen.
    pub differences: Vec<Difference>,
    pub rules: Vec<CompiledRule>,
}

/// A rule that can match.
#[derive(Debug)]
pub(super) struct CompiledRule {
    /// Its place in the object: rules that can never match are left out.
    pub index: u32,
    /// Any of these. Empty: anybody.
    pub from: Vec<Vec<Test>>,
    /// Any of these. Empty: anything.
    pub to: Vec<Vec<Test>>,
    /// All of these.
    pub when: Vec<Test>,
    /// As written it has a field that only HTTP has.
    pub http: bool,
}

/// One field or condition, either its values or its `not` values.
#[derive(Debug)]
pub(super) struct Test {
    pub matcher: Matcher,
    /// False: a `not` field, that none of the values may match.
    pub wanted: bool,
    /// Only a request can be asked.
    pub http: bool,
}

#[derive(Debug)]
pub(super) enum Matcher {
    Principal(Texts),
    /// Any characters for each `*`.
    Namespace(Vec<Arc<str>>),
    /// Namespace and name.
    ServiceAccount(Vec<(Arc<str>, Arc<str>)>),
    TrustDomain(Texts),
    SourceIp(Vec<IpNet>),
    RemoteIp(Vec<IpNet>),
    DestinationIp(Vec<IpNet>),
    Port(Vec<u16>),
    Sni(Texts),
    Host(Vec<Pattern>),
    Method(Texts),
    Path(Vec<PathPattern>),
    Header {
        name: Arc<str>,
        values: Vec<Pattern>,
        widely: bool,
    },
    Never,
}

/// The rule cannot be enforced as written, and would allow too much without what is missing.
struct Dropped;

/// What the compilation of one rule's fields depends on.
struct Context<'a> {
    settings: &'a AuthzSettings<'a>,
    namespace: &'a str,
    allow: bool,
    /// The rule as written has a field that only HTTP has.
    http: bool,
}

pub(super) fn compile(object: &AuthorizationPolicy, settings: &AuthzSettings<'_>) -> Compiled {
    let rules = (0..)
        .zip(&object.rules)
        .filter_map(|(index, rule)| {
            let mut context = Context {
                settings,
                namespace: &object.meta.namespace,
                allow: object.action == Action::Allow,
                http: false,
            };
            context.rule(index, rule).ok()
        })
        .collect();
    Compiled {
        object: object.meta.origin.object.clone(),
        action: object.action,
        dry_run: object.dry_run,
        refused: None,
        differences: differences(object),
        rules,
    }
}

impl Context<'_> {
    fn rule(&mut self, index: u32, rule: &Rule) -> Result<CompiledRule, Dropped> {
        let from = rule.from.iter().map(|source| self.source(source)).collect::<Result<_, _>>()?;
        let to = rule.to.iter().map(|to| self.operation(to)).collect::<Result<_, _>>()?;
        let mut when = Vec::new();
        for Condition { key, values } in &rule.when {
            match Attribute::of_key(key) {
                Ok(attribute) => self.add(&attribute, values, &mut when)?,
                Err(_) if self.allow => return Err(Dropped),
                Err(_) => {}
            }
        }
        Ok(CompiledRule { index, from, to, when, http: self.http })
    }

    fn source(&mut self, source: &Source) -> Result<Vec<Test>, Dropped> {
        self.clause(&source.fields())
    }

    fn operation(&mut self, operation: &Operation) -> Result<Vec<Test>, Dropped> {
        self.clause(&operation.fields())
    }

    fn clause(&mut self, fields: &[(Attribute, &Values)]) -> Result<Vec<Test>, Dropped> {
        let mut tests = Vec::new();
        for (attribute, values) in fields {
            self.add(attribute, values, &mut tests)?;
        }
        Ok(tests)
    }

    /// Adds the tests of one field and its `not` twin.
    fn add(
        &mut self,
        attribute: &Attribute,
        values: &Values,
        tests: &mut Vec<Test>,
    ) -> Result<(), Dropped> {
        for (list, wanted) in [(&values.any, true), (&values.none, false)] {
            if list.is_empty() {
                continue;
            }
            self.http |= attribute.is_http();
            match self.matcher(attribute, list, wanted) {
                Some(matcher) => tests.push(Test { matcher, wanted, http: attribute.is_http() }),
                // A value that cannot be compared: a DENY rule goes without the field.
                None if self.allow => return Err(Dropped),
                None => {}
            }
        }
        Ok(())
    }

    /// None: what the field asks cannot be told.
    fn matcher(&self, attribute: &Attribute, list: &[Arc<str>], wanted: bool) -> Option<Matcher> {
        if list.iter().any(|value| attribute.check(value).is_err()) {
            return None;
        }
        Some(match attribute {
            Attribute::Principal => {
                Matcher::Principal(Texts::new(expand_principals(list, self.settings)))
            }
            Attribute::Namespace => Matcher::Namespace(list.to_vec()),
            Attribute::ServiceAccount => Matcher::ServiceAccount(
                list.iter()
                    .map(|value| match value.split_once('/') {
                        Some((namespace, name)) => (namespace.into(), name.into()),
                        None => (self.namespace.into(), value.clone()),
                    })
                    .collect(),
            ),
            Attribute::TrustDomain => {
                Matcher::TrustDomain(Texts::new(expand_domains(list, self.settings)))
            }
            Attribute::SourceIp => Matcher::SourceIp(ranges(list)?),
            Attribute::RemoteIp => Matcher::RemoteIp(ranges(list)?),
            Attribute::DestinationIp => Matcher::DestinationIp(ranges(list)?),
            Attribute::Port => {
                Matcher::Port(list.iter().map(|v| attribute::port(v)).collect::<Option<_>>()?)
            }
            Attribute::Sni => Matcher::Sni(Texts::new(list)),
            Attribute::Host => Matcher::Host(patterns(list)),
            Attribute::Method => Matcher::Method(Texts::new(list)),
            Attribute::Path => {
                Matcher::Path(list.iter().map(|v| PathPattern::new(v).ok()).collect::<Option<_>>()?)
            }
            Attribute::Header(name) => Matcher::Header {
                name: name.clone(),
                values: patterns(list),
                // Several fields of one name: the reading that denies more.
                widely: self.allow != wanted,
            },
            // The token's principal and claims are not known, whatever it says: in an ALLOW rule
            // neither its presence nor its absence is anything to rely on.
            Attribute::Token => return None,
            // There are no such filters, so their metadata is never there.
            Attribute::Metadata if self.allow => Matcher::Never,
            Attribute::Metadata => return None,
        })
    }
}

fn ranges(list: &[Arc<str>]) -> Option<Vec<IpNet>> {
    list.iter().map(|value| attribute::range(value)).collect()
}

fn patterns(list: &[Arc<str>]) -> Vec<Pattern> {
    list.iter().map(|value| Pattern::new(value)).collect()
}
