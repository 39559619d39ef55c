//! Every rule of policy.md 4 by rows of policies, questions and answers; and that the compiled form
//! agrees with the plainest reading of the rules.

mod agreement;
mod reading;
mod rows;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::*;
use crate::policy::error::Report;
use crate::policy::metadata::Document;
use crate::policy::parse::{Limits, documents};

pub(super) const ALIASES: [&str; 1] = ["old-td"];

/// `spec` of an AuthorizationPolicy called `name` in `namespace`.
fn policy(place: &str, spec: &str) -> String {
    with_annotation(place, spec, "")
}

fn with_annotation(place: &str, spec: &str, metadata: &str) -> String {
    let (namespace, name) = place.split_once('/').expect("namespace/name");
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: {namespace}{metadata}}}\nspec: {spec}\n"
    )
}

/// Everything in `yaml`, with what was refused and what was found.
fn read(yaml: &str) -> (Vec<AuthorizationPolicy>, Vec<RefusedPolicy>, Report) {
    let mut report = Report::new("f.yaml");
    let (mut objects, mut refused) = (Vec::new(), Vec::new());
    for node in documents(yaml.as_bytes(), &Limits::default(), &mut report).unwrap_or_default() {
        let Some(document) = Document::open(&node, &mut report) else { continue };
        match AuthorizationPolicy::read(&document, &mut report) {
            Some(object) => objects.push(object),
            None => refused.extend(RefusedPolicy::of(&document, "it is wrong")),
        }
    }
    (objects, refused, report)
}

fn compiled(objects: Vec<AuthorizationPolicy>, refused: Vec<RefusedPolicy>) -> Authorizations {
    let aliases = ALIASES.map(str::to_owned);
    let settings = AuthzSettings { root_namespace: "root", trust_domain: "td", aliases: &aliases };
    Authorizations::new(&settings, objects, refused)
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A connection from `td/ns/foo/sa/web` at 10.0.0.9 to port 80 of the workload `app: a` of namespace
/// `foo`, and what is different about it.
#[derive(Debug, Clone)]
struct Question {
    principal: Option<String>,
    source: IpAddr,
    remote: Option<IpAddr>,
    destination: SocketAddr,
    sni: Option<String>,
    /// None: not HTTP.
    http: Option<Http>,
}

/// Method, host, path, headers.
type Http = (String, String, String, Vec<(String, String)>);

struct Fields<'h>(&'h [(String, String)]);

impl Headers for Fields<'_> {
    fn any(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.0.iter().any(|(key, value)| key.eq_ignore_ascii_case(name) && test(value.as_bytes()))
    }
}

impl Default for Question {
    fn default() -> Self {
        Self {
            principal: Some("td/ns/foo/sa/web".to_owned()),
            source: [10, 0, 0, 9].into(),
            remote: None,
            destination: ([10, 0, 0, 1], 80).into(),
            sni: None,
            http: None,
        }
    }
}

/// A connection by `principal`; `-` is plaintext.
fn by(principal: &str) -> Question {
    let principal = (principal != "-").then(|| principal.to_owned());
    Question { principal, ..Question::default() }
}

fn from(source: &str) -> Question {
    Question { source: source.parse().unwrap(), ..Question::default() }
}

fn to(destination: &str) -> Question {
    Question { destination: destination.parse().unwrap(), ..Question::default() }
}

fn sni(name: &str) -> Question {
    Question { sni: Some(name.to_owned()), ..Question::default() }
}

/// A request: `METHOD host/path`, and headers.
fn http(line: &str, headers: &[(&str, &str)]) -> Question {
    let (method, rest) = line.split_once(' ').expect("METHOD host/path");
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let headers = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let http = Some((method.to_owned(), host.to_owned(), path.to_owned(), headers));
    Question { http, ..Question::default() }
}

impl Question {
    fn port(mut self, port: u16) -> Self {
        self.destination.set_port(port);
        self
    }

    fn connection(&self) -> Connection<'_> {
        Connection {
            principal: self.principal.as_deref(),
            source: self.source,
            remote: self.remote.unwrap_or(self.source),
            destination: self.destination,
            sni: self.sni.as_deref(),
        }
    }

    fn ask(&self, authorization: &WorkloadAuthorization) -> Verdict {
        let connection = self.connection();
        match &self.http {
            None => authorization.connection(&connection),
            Some((method, host, path, headers)) => {
                let headers = Fields(headers);
                let request = Request { method, path, host, headers: &headers };
                authorization.request(&connection, &request)
            }
        }
    }
}

/// The verdict on `question` for the workload `app: a` of namespace `foo`.
fn verdict(yaml: &str, question: &Question) -> Verdict {
    let (objects, refused, _) = read(yaml);
    let all = compiled(objects, refused);
    question.ask(&all.for_workload("foo", &labels(&[("app", "a"), ("version", "v1")])))
}

/// `allow` or `deny`, which policy and rule decided, and why.
#[track_caller]
fn check(yaml: &str, question: &Question, expected: &str) {
    let verdict = verdict(yaml, question);
    let word = if verdict.allowed { "allow" } else { "deny" };
    let mut found = word.to_owned();
    if let Some(policy) = &verdict.policy {
        found += " by ";
        found += policy.strip_prefix("AuthorizationPolicy ").expect("the kind");
    }
    if let Some(rule) = verdict.rule {
        found += &format!(" rule {rule}");
    }
    assert!(found.starts_with(expected), "{yaml}{question:?}\nexpected {expected}, got {found}");
}
