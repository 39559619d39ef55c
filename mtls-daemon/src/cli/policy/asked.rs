//! A connection, and the request on it, as a row describes them; and the engine's answer to it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::policies::{labels, text};
use crate::cli::cases::Answer;
use crate::policy::authz::{Connection, Headers, Hit, Request, Verdict, WorkloadAuthorization};
use crate::policy::path::{Normalisation, normalise};
use crate::policy::{EffectiveMode, Mode};

/// `connection` and `enforcement` of a row.
pub(super) struct Asked<'v> {
    pub namespace: &'v str,
    pub labels: BTreeMap<String, String>,
    pub destination: SocketAddr,
    principal: Option<&'v str>,
    source: IpAddr,
    remote: IpAddr,
    sni: Option<&'v str>,
    /// None: judged as a connection, be there a request or not.
    http: Option<Http<'v>>,
}

struct Http<'v> {
    method: &'v str,
    path: &'v str,
    host: &'v str,
    headers: RowHeaders<'v>,
}

/// `{"name": "value"}`, or a list of values for a header that is there several times.
struct RowHeaders<'v>(Option<&'v Map<String, Value>>);

impl Headers for RowHeaders<'_> {
    fn any(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.0
            .into_iter()
            .flatten()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .flat_map(|(_, value)| match value {
                Value::Array(list) => list.as_slice(),
                one => std::slice::from_ref(one),
            })
            .filter_map(Value::as_str)
            .any(|value| test(value.as_bytes()))
    }
}

impl<'v> Asked<'v> {
    pub fn read(row: &'v Value) -> Result<Self> {
        let connection = &row["connection"];
        let (src, dst) = (&connection["src"], &connection["dst"]);
        let source = address(&src["ip"]).context("connection.src.ip")?;
        let remote = match &connection["remote_ip"] {
            Value::Null => source,
            value => address(value).context("connection.remote_ip")?,
        };
        let port = dst["port"].as_u64().and_then(|port| u16::try_from(port).ok());
        let port = port.context("connection.dst.port is not there, or no port")?;
        let http = match row["enforcement"].as_str() {
            None | Some("l4" | "tcp") => None,
            Some("http" | "grpc") => Some(Http::read(&connection["http"])?),
            Some(other) => bail!("enforcement {other:?} is not one of http, grpc, tcp, l4"),
        };
        Ok(Self {
            namespace: text(dst, "namespace").context("connection.dst")?,
            labels: labels(&dst["labels"])?,
            destination: SocketAddr::new(address(&dst["ip"]).context("connection.dst.ip")?, port),
            principal: optional(&src["principal"]).context("connection.src.principal")?,
            source,
            remote,
            sni: optional(&connection["sni"]).context("connection.sni")?,
            http,
        })
    }

    /// PeerAuthentication first, then AuthorizationPolicy, as a connection meets them.
    pub fn judge(
        &self,
        mode: &EffectiveMode,
        authorization: &WorkloadAuthorization,
        how: Normalisation,
    ) -> Answer {
        let principal = match (mode.mode, self.principal) {
            (Mode::Strict, None) => {
                return denied(&mode.because, "STRICT refuses plaintext".to_owned());
            }
            // Nothing is terminated, so nobody knows who it is (policy.md 1.8).
            (Mode::Disable, _) => None,
            (_, principal) => principal,
        };
        let connection = Connection {
            principal,
            source: self.source,
            remote: self.remote,
            destination: self.destination,
            sni: self.sni,
        };
        let Some(http) = &self.http else {
            return answer(&authorization.connection(&connection));
        };
        let path: Cow<'_, str> = match normalise(http.path, how) {
            Ok(path) => path,
            Err(error) => return denied("", format!("400: {error}")),
        };
        answer(&authorization.request(
            &connection,
            &Request { method: http.method, path: &path, host: http.host, headers: &http.headers },
        ))
    }
}

impl<'v> Http<'v> {
    fn read(http: &'v Value) -> Result<Self> {
        let headers = match &http["headers"] {
            Value::Null => None,
            value => Some(value.as_object().context("http.headers is not a mapping")?),
        };
        Ok(Self {
            method: text(http, "method").context("http")?,
            path: text(http, "path").context("http")?,
            host: text(http, "host").context("http")?,
            headers: RowHeaders(headers),
        })
    }
}

fn address(value: &Value) -> Result<IpAddr> {
    let text = value.as_str().with_context(|| format!("{value} is not an address"))?;
    text.parse().with_context(|| format!("{text:?} is not an address"))
}

fn optional(value: &Value) -> Result<Option<&str>> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        _ => bail!("{value} is not a string"),
    }
}

fn denied(policy: &str, reason: String) -> Answer {
    let mut answer = Answer::from(json!("deny"));
    let policy = (!policy.is_empty()).then_some(policy);
    answer.more.insert("policy".to_owned(), json!(policy));
    answer.more.insert("rule".to_owned(), Value::Null);
    answer.more.insert("reason".to_owned(), json!(reason));
    answer
}

fn answer(verdict: &Verdict) -> Answer {
    let mut answer = Answer::from(json!(word(verdict.allowed)));
    let more = &mut answer.more;
    more.insert("policy".to_owned(), json!(verdict.policy.as_deref()));
    more.insert("rule".to_owned(), json!(verdict.rule));
    more.insert("reason".to_owned(), json!(verdict.reason.to_string()));
    if let Some(Hit { policy, rule, .. }) = &verdict.audit {
        more.insert("audit".to_owned(), json!({"policy": &**policy, "rule": rule}));
    }
    if let Some(Hit { policy, rule, allowed }) = &verdict.dry_run {
        let hit = json!({"result": word(*allowed), "policy": &**policy, "rule": rule});
        more.insert("dry_run".to_owned(), hit);
    }
    answer
}

fn word(allowed: bool) -> &'static str {
    if allowed { "allow" } else { "deny" }
}
