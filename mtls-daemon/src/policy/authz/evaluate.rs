//! Rules against a connection or a request. Nothing here allocates.

use std::net::IpAddr;

use super::ask::{Connection, Request};
use super::compile::{Compiled, CompiledRule, Matcher, Test};
use super::identity::{Account, trust_domain_of};
use super::model::Action;
use super::text::{Pattern, glob};

/// What is asked. Without a request, only what a connection has is known.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    connection: &'a Connection<'a>,
    account: Option<Account<'a>>,
    source: IpAddr,
    remote: IpAddr,
    destination: IpAddr,
    request: Option<&'a Request<'a>>,
}

impl<'a> Ask<'a> {
    pub fn new(connection: &'a Connection<'a>, request: Option<&'a Request<'a>>) -> Self {
        Self {
            connection,
            account: connection.principal.and_then(Account::of),
            source: connection.source.to_canonical(),
            remote: connection.remote.to_canonical(),
            destination: connection.destination.ip().to_canonical(),
            request,
        }
    }
}

impl Compiled {
    /// The first rule that matches.
    pub fn matching(&self, ask: &Ask<'_>) -> Option<u32> {
        let allow = self.action == Action::Allow;
        self.rules.iter().find(|rule| rule.matches(ask, allow)).map(|rule| rule.index)
    }
}

impl CompiledRule {
    /// Any `from`, any `to`, all `when` (policy.md 4.4). On a connection, an ALLOW rule with a field
    /// that only HTTP has does not match, and another goes without the field (policy.md 4.8).
    fn matches(&self, ask: &Ask<'_>, allow: bool) -> bool {
        if allow && self.http && ask.request.is_none() {
            return false;
        }
        let any = |clauses: &[Vec<Test>]| {
            clauses.is_empty() || clauses.iter().any(|tests| all(tests, ask))
        };
        any(&self.from) && any(&self.to) && all(&self.when, ask)
    }

    /// Can match something on this port of the workload that only HTTP can tell.
    pub fn asks_http(&self, port: u16) -> bool {
        let open = |tests: &[Test]| {
            tests.iter().all(|test| match &test.matcher {
                Matcher::Port(ports) => ports.contains(&port) == test.wanted,
                _ => true,
            })
        };
        self.http
            && open(&self.when)
            && (self.to.is_empty() || self.to.iter().any(|tests| open(tests)))
    }
}

fn all(tests: &[Test], ask: &Ask<'_>) -> bool {
    tests.iter().all(|test| match ask.request {
        None if test.http => true,
        _ => test.matcher.matches(ask) == test.wanted,
    })
}

impl Matcher {
    /// Whether any value matches. Without an identity those of identities do not, so their `not`
    /// twins hold for plaintext (policy.md 4.5).
    fn matches(&self, ask: &Ask<'_>) -> bool {
        let connection = ask.connection;
        match self {
            Self::Principal(texts) => {
                connection.principal.is_some_and(|principal| texts.any(principal.as_bytes()))
            }
            Self::Namespace(values) => ask
                .account
                .is_some_and(|account| values.iter().any(|value| glob(value, account.namespace))),
            Self::ServiceAccount(values) => ask.account.is_some_and(|account| {
                values.iter().any(|(namespace, name)| {
                    **namespace == *account.namespace && **name == *account.name
                })
            }),
            Self::TrustDomain(texts) => connection
                .principal
                .is_some_and(|principal| texts.any(trust_domain_of(principal).as_bytes())),
            Self::SourceIp(ranges) => ranges.iter().any(|range| range.contains(&ask.source)),
            Self::RemoteIp(ranges) => ranges.iter().any(|range| range.contains(&ask.remote)),
            Self::DestinationIp(ranges) => {
                ranges.iter().any(|range| range.contains(&ask.destination))
            }
            Self::Port(ports) => ports.contains(&connection.destination.port()),
            Self::Sni(texts) => connection.sni.is_some_and(|sni| texts.any(sni.as_bytes())),
            Self::Host(values) => ask.request.is_some_and(|request| {
                values.iter().any(|value| value.matches_any_case(request.host.as_bytes()))
            }),
            Self::Method(texts) => {
                ask.request.is_some_and(|request| texts.any(request.method.as_bytes()))
            }
            Self::Path(values) => ask.request.is_some_and(|request| {
                let path = without_query(request.path);
                values.iter().any(|value| value.matches(path))
            }),
            Self::Header { name, values, widely } => {
                ask.request.is_some_and(|request| header(request, name, values, *widely))
            }
            Self::Never => false,
        }
    }
}

fn without_query(path: &str) -> &str {
    path.split(['?', '#']).next().unwrap_or_default()
}

/// A header can be there several times. Widely: any of them matches, empty ones count as there.
/// Else all of them have to match.
fn header(request: &Request<'_>, name: &str, values: &[Pattern], widely: bool) -> bool {
    let matches = |value: &[u8]| {
        values.iter().any(|pattern| match pattern {
            Pattern::Present => widely || !value.is_empty(),
            other => other.matches(value),
        })
    };
    match name {
        ":authority" | "host" => {
            values.iter().any(|value| value.matches_any_case(request.host.as_bytes()))
        }
        ":method" => matches(request.method.as_bytes()),
        ":path" => matches(request.path.as_bytes()),
        _ if widely => request.headers.any(name, &mut |value| matches(value)),
        _ => {
            request.headers.any(name, &mut |_| true)
                && !request.headers.any(name, &mut |value| !matches(value))
        }
    }
}
