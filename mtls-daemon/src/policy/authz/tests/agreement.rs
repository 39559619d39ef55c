//! The compiled policies against the plainest reading of the rules, on policies and questions made
//! at random from few values, so that matches are as common as misses.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::policy::ObjectMeta;
use crate::policy::error::Origin;

fn values(of: &'static [&'static str]) -> impl Strategy<Value = Values> {
    let list = || vec(select(of).prop_map(Arc::<str>::from), 0..3);
    // Most fields are not there in most rules.
    prop_oneof![
        3 => Just(Values::default()),
        1 => (list(), list()).prop_map(|(any, none)| Values { any, none }),
    ]
}

const PRINCIPALS: &[&str] =
    &["td/ns/foo/sa/web", "cluster.local/ns/bar/sa/*", "*", "*/sa/web", "x/ns/foo/sa/web"];
const NAMESPACES: &[&str] = &["foo", "b*", "*", "f*o"];
const ACCOUNTS: &[&str] = &["web", "bar/db"];
const DOMAINS: &[&str] = &["td", "old-td", "*-td", "*", "x"];
const RANGES: &[&str] = &["10.0.0.0/24", "10.0.0.9", "fd00::/8", "192.0.2.1"];
const PORTS: &[&str] = &["80", "81"];
const TOKENS: &[&str] = &["*", "iss/sub"];
const METHODS: &[&str] = &["GET", "P*"];
const PATHS: &[&str] = &["/a", "/a/*", "*/b", "/{*}/b", "/a/{**}", "*"];
const HOSTS: &[&str] = &["shop.example", "*.example", "SHOP*"];
const HEADERS: &[&str] = &["blue", "*", "b*"];

fn source() -> impl Strategy<Value = Source> {
    let who = (values(PRINCIPALS), values(NAMESPACES), values(ACCOUNTS), values(DOMAINS));
    (who, values(RANGES), values(RANGES), values(TOKENS)).prop_map(
        |((principals, namespaces, service_accounts, trust_domains), ip, remote, tokens)| Source {
            principals,
            request_principals: tokens,
            namespaces,
            service_accounts,
            trust_domains,
            ip_blocks: ip,
            remote_ip_blocks: remote,
        },
    )
}

fn operation() -> impl Strategy<Value = Operation> {
    (values(HOSTS), values(PORTS), values(METHODS), values(PATHS))
        .prop_map(|(hosts, ports, methods, paths)| Operation { hosts, ports, methods, paths })
}

fn condition() -> impl Strategy<Value = Condition> {
    let of = |key: &'static str, list: &'static [&'static str]| {
        values(list).prop_map(move |values| Condition { key: key.into(), values })
    };
    prop_oneof![
        of("source.namespace", NAMESPACES),
        of("source.principal", PRINCIPALS),
        of("destination.port", PORTS),
        of("destination.ip", RANGES),
        of("connection.sni", HOSTS),
        of("request.headers[x-team]", HEADERS),
        of("request.auth.principal", TOKENS),
        of("source.colour", TOKENS),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    (vec(source(), 0..3), vec(operation(), 0..3), vec(condition(), 0..3))
        .prop_map(|(from, to, when)| Rule { from, to, when })
}

fn object() -> impl Strategy<Value = AuthorizationPolicy> {
    let action = select(&[Action::Allow, Action::Deny, Action::Audit, Action::Allow][..]);
    let place = (select(&["foo", "bar", "root"][..]), "[a-c]", select(&["", "a", "b"][..]));
    (action, any::<bool>(), place, vec(rule(), 0..3)).prop_map(
        |(action, dry_run, (namespace, name, app), rules)| AuthorizationPolicy {
            meta: ObjectMeta {
                namespace: namespace.into(),
                name: name.as_str().into(),
                labels: BTreeMap::new(),
                created: None,
                dry_run: None,
                origin: Origin {
                    file: "f".into(),
                    line: 1,
                    object: format!("AuthorizationPolicy {namespace}/{name}").into(),
                },
            },
            action,
            dry_run: dry_run && action != Action::Audit,
            selector: if app.is_empty() { BTreeMap::new() } else { labels(&[("app", app)]) },
            targets_gateway: false,
            rules,
        },
    )
}

fn question() -> impl Strategy<Value = Question> {
    let principal = prop::option::of(
        select(&["td/ns/foo/sa/web", "old-td/ns/bar/sa/db", "x/ns/foo/sa/web", "x/odd"][..])
            .prop_map(str::to_owned),
    );
    let address = || {
        select(&["10.0.0.9", "::ffff:10.0.0.1", "fd00::1", "192.0.2.1"][..])
            .prop_map(|text| text.parse::<IpAddr>().expect("an address"))
    };
    let http = (
        select(&["GET", "PUT"][..]),
        select(&["shop.example", "Shop.example:1"][..]),
        select(&["/a", "/a/b", "/x/b?q", "/"][..]),
        vec(
            select(&["blue", "red", ""][..]).prop_map(|v| ("X-Team".to_owned(), v.to_owned())),
            0..3,
        ),
    )
        .prop_map(|(method, host, path, headers)| {
            (method.to_owned(), host.to_owned(), path.to_owned(), headers)
        });
    let sni = prop::option::of(Just("shop.example".to_owned()));
    (principal, address(), address(), select(&[80, 81][..]), sni, prop::option::of(http)).prop_map(
        |(principal, source, remote, port, sni, http)| Question {
            principal,
            source,
            remote: Some(remote),
            destination: SocketAddr::new([10, 0, 0, 1].into(), port),
            sni,
            http,
        },
    )
}

/// `*` at one end, or alone; else as it is.
fn wildcard(value: &str, text: &str) -> bool {
    if value == "*" {
        !text.is_empty()
    } else if let Some(end) = value.strip_prefix('*') {
        text.ends_with(end)
    } else if let Some(start) = value.strip_suffix('*') {
        text.starts_with(start)
    } else {
        value == text
    }
}

fn in_range(value: &str, address: IpAddr) -> bool {
    let range = if value.contains('/') {
        value.parse::<ipnet::IpNet>().unwrap()
    } else {
        value.parse::<IpAddr>().unwrap().into()
    };
    range.contains(&address.to_canonical())
}

/// What one value of a field says, for the attributes that a question has. `policy` is the
/// namespace of the policy.
fn holds(key: &str, value: &str, question: &Question, policy: &str) -> bool {
    let id = question.principal.as_deref().unwrap_or_default();
    let parts: Vec<&str> = id.split('/').collect();
    let account = match parts[..] {
        [_, "ns", namespace, "sa", name] => Some((namespace, name)),
        _ => None,
    };
    let destination = question.destination;
    match key {
        "principals" | "source.principal" => {
            let named: Vec<&str> = value.split('/').collect();
            let mesh = ["cluster.local", "td", "old-td"].contains(&named[0]) && named.len() == 5;
            let ours = ["td", "old-td"].contains(&parts[0]) && mesh;
            let rest = |text: &[&str]| text[1..].join("/");
            (ours && wildcard(&rest(&named), &rest(&parts))) || (!mesh && wildcard(value, id))
        }
        "namespaces" | "source.namespace" => account.is_some_and(|(namespace, _)| {
            let whole = value.split_once('*').filter(|(a, b)| !a.is_empty() && !b.is_empty());
            match whole {
                Some((start, end)) => {
                    namespace.len() >= start.len() + end.len()
                        && namespace.starts_with(start)
                        && namespace.ends_with(end)
                }
                None => wildcard(value, namespace),
            }
        }),
        "serviceAccounts" => {
            let named = value.split_once('/').unwrap_or((policy, value));
            account == Some(named)
        }
        "trustDomains" => {
            let ours = ["td", "old-td"];
            (ours.contains(&value) && ours.contains(&parts[0])) || wildcard(value, parts[0])
        }
        "ipBlocks" => in_range(value, question.source),
        "remoteIpBlocks" => in_range(value, question.remote.unwrap()),
        "destination.ip" => in_range(value, destination.ip()),
        "ports" | "destination.port" => value == destination.port().to_string(),
        "connection.sni" => question.sni.as_deref().is_some_and(|sni| wildcard(value, sni)),
        _ => {
            let (method, host, path, _) = question.http.as_ref().expect("HTTP is there");
            match key {
                "methods" => wildcard(value, method),
                "hosts" => wildcard(&value.to_lowercase(), &host.to_lowercase()),
                _ => {
                    let path = path.split('?').next().unwrap();
                    match value {
                        "/{*}/b" => path == "/a/b" || path == "/x/b",
                        "/a/{**}" => path.starts_with("/a/"),
                        _ => wildcard(value, path),
                    }
                }
            }
        }
    }
}

fn is_http(key: &str) -> bool {
    ["methods", "hosts", "paths", "tokens", "request.headers[x-team]", "request.auth.principal"]
        .contains(&key)
}

/// A field of a rule; None: what it asks cannot be told.
fn field(
    key: &str,
    values: &Values,
    question: &Question,
    object: &AuthorizationPolicy,
) -> Option<bool> {
    if values.is_empty() {
        return Some(true);
    }
    if ["tokens", "request.auth.principal", "source.colour"].contains(&key)
        || (is_http(key) && question.http.is_none())
    {
        return None;
    }
    if key == "request.headers[x-team]" {
        return Some(header(values, question, object.action == Action::Allow));
    }
    let any = |list: &[Arc<str>]| {
        list.iter().any(|value| holds(key, value, question, &object.meta.namespace))
    };
    Some((values.any.is_empty() || any(&values.any)) && !any(&values.none))
}

/// ALLOW wants every field of the name to match, DENY any.
fn header(values: &Values, question: &Question, allow: bool) -> bool {
    let fields: Vec<&str> =
        question.http.as_ref().unwrap().3.iter().map(|(_, value)| value.as_str()).collect();
    let one = |list: &[Arc<str>], text: &str, empty: bool| {
        list.iter().any(|value| (&**value == "*" && empty) || wildcard(value, text))
    };
    let some = |list: &[Arc<str>]| fields.iter().any(|text| one(list, text, true));
    let every =
        |list: &[Arc<str>]| !fields.is_empty() && fields.iter().all(|text| one(list, text, false));
    let is = if allow { every(&values.any) } else { some(&values.any) };
    let is_not = if allow { !some(&values.none) } else { !every(&values.none) };
    (values.any.is_empty() || is) && (values.none.is_empty() || is_not)
}

fn rule_holds(rule: &Rule, question: &Question, object: &AuthorizationPolicy) -> bool {
    let sources: Vec<Vec<Option<bool>>> = rule
        .from
        .iter()
        .map(|s| {
            [
                ("principals", &s.principals),
                ("tokens", &s.request_principals),
                ("namespaces", &s.namespaces),
                ("serviceAccounts", &s.service_accounts),
                ("trustDomains", &s.trust_domains),
                ("ipBlocks", &s.ip_blocks),
                ("remoteIpBlocks", &s.remote_ip_blocks),
            ]
            .map(|(key, values)| field(key, values, question, object))
            .to_vec()
        })
        .collect();
    let operations: Vec<Vec<Option<bool>>> = rule
        .to
        .iter()
        .map(|o| {
            [("hosts", &o.hosts), ("ports", &o.ports), ("methods", &o.methods), ("paths", &o.paths)]
                .map(|(key, values)| field(key, values, question, object))
                .to_vec()
        })
        .collect();
    let when: Vec<Option<bool>> = rule
        .when
        .iter()
        .map(|c| {
            // A key that nobody knows is not known with any values.
            if &*c.key == "source.colour" {
                None
            } else {
                field(&c.key, &c.values, question, object)
            }
        })
        .collect();
    let all = || sources.iter().chain(&operations).flatten().chain(&when);
    if object.action == Action::Allow && all().any(Option::is_none) {
        return false;
    }
    let every = |list: &[Option<bool>]| list.iter().all(|value| value.unwrap_or(true));
    let any = |lists: &[Vec<Option<bool>>]| lists.is_empty() || lists.iter().any(|l| every(l));
    any(&sources) && any(&operations) && every(&when)
}

/// Whether `question` is allowed, by reading the objects one after the other.
fn plainly(objects: &[AuthorizationPolicy], question: &Question) -> bool {
    let in_force = |action: Action| {
        objects.iter().filter(move |object| {
            object.action == action
                && !object.dry_run
                && ["foo", "root"].contains(&&*object.meta.namespace)
                && object.selector.get("app").is_none_or(|app| app == "a")
        })
    };
    let hit = |object: &AuthorizationPolicy| {
        object.rules.iter().any(|rule| rule_holds(rule, question, object))
    };
    !in_force(Action::Deny).any(hit)
        && (in_force(Action::Allow).next().is_none() || in_force(Action::Allow).any(hit))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_is_compiled_decides_as_the_rules_read(objects in vec(object(), 0..4), question in question()) {
        let expected = plainly(&objects, &question);
        let all = compiled(objects, Vec::new()).for_workload("foo", &labels(&[("app", "a")]));
        let verdict = question.ask(&all);
        prop_assert_eq!(verdict.allowed, expected, "{}", verdict);
        prop_assert!(verdict.allowed || verdict.policy.is_some());
        // Where no rule asks HTTP, a request is judged as its connection.
        if !all.needs_http(question.destination.port()) && question.http.is_some() {
            prop_assert_eq!(all.connection(&question.connection()), verdict);
        }
    }
}
