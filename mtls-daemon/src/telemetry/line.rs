//! The access log line: which fields, and how each is spelled.

use std::net::SocketAddr;
use std::time::SystemTime;

use serde::{Serialize, Serializer};

use super::FlowRecord;
use crate::identity::SpiffeId;
use crate::mesh::Workload;
use crate::policy::Mode;
use crate::policy::authz::{Hit, Verdict};
use crate::proxy::failure::{Failure, Fault};

/// One finished connection. Field order is part of what people read.
#[derive(Serialize)]
pub(super) struct Line<'a> {
    /// When the connection ended.
    #[serde(serialize_with = "rfc3339")]
    pub(super) time: SystemTime,
    direction: &'static str,
    node: &'a str,
    #[serde(serialize_with = "key")]
    workload: &'a Workload,
    source: Source<'a>,
    destination: Destination<'a>,
    #[serde(serialize_with = "mode")]
    mode: Option<Mode>,
    security: &'static str,
    policy: Option<&'a str>,
    authorization: Option<Authorization<'a>>,
    tls: Option<Tls>,
    bytes_sent: u64,
    bytes_received: u64,
    pub(super) duration_ms: u64,
    outcome: &'static str,
    fault: &'static str,
    detail: Option<String>,
}

#[derive(Serialize)]
struct Source<'a> {
    address: SocketAddr,
    #[serde(serialize_with = "optional_key")]
    workload: Option<&'a Workload>,
    identity: Option<&'a str>,
}

#[derive(Serialize)]
struct Destination<'a> {
    /// The original one, as the client asked for it.
    address: SocketAddr,
    endpoint: Option<SocketAddr>,
    #[serde(serialize_with = "optional_key")]
    workload: Option<&'a Workload>,
    identity: Option<&'a str>,
    service: Option<&'a str>,
}

/// What AuthorizationPolicy said.
#[derive(Serialize)]
pub(super) struct Authorization<'a> {
    allowed: bool,
    policy: Option<&'a str>,
    rule: Option<u32>,
    reason: String,
    /// The AUDIT rule that matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    audit: Option<Noted<'a>>,
    /// What policies that only try would have decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    dry_run: Option<Noted<'a>>,
}

/// A match that decided nothing.
#[derive(Serialize)]
struct Noted<'a> {
    allowed: bool,
    policy: &'a str,
    rule: Option<u32>,
}

impl<'a> Noted<'a> {
    fn of(hit: &'a Hit) -> Self {
        Self { allowed: hit.allowed, policy: &hit.policy, rule: hit.rule }
    }
}

/// None: no policy has anything to do with the connection.
fn verdict(flow: &FlowRecord) -> Option<&Verdict> {
    let verdict = match &flow.failure {
        Some(Failure::AuthorizationDenied { verdict, .. }) => verdict,
        _ => flow.verdict.as_ref()?,
    };
    let silent = verdict.allowed && verdict.policy.is_none();
    (!silent || verdict.audit.is_some() || verdict.dry_run.is_some()).then_some(verdict)
}

impl<'a> Authorization<'a> {
    pub(super) fn of(verdict: &'a Verdict) -> Self {
        Self {
            allowed: verdict.allowed,
            policy: verdict.policy.as_deref(),
            rule: verdict.rule,
            reason: verdict.reason.to_string(),
            audit: verdict.audit.as_ref().map(Noted::of),
            dry_run: verdict.dry_run.as_ref().map(Noted::of),
        }
    }
}

#[derive(Serialize)]
struct Tls {
    version: &'static str,
    cipher: &'static str,
    group: &'static str,
    resumed: bool,
}

impl<'a> Line<'a> {
    /// The line of a connection that ends now.
    pub(super) fn of(node: &'a str, flow: &'a FlowRecord) -> Self {
        let service = flow.service.as_deref();
        Self {
            time: SystemTime::now(),
            direction: flow.direction.as_str(),
            node,
            workload: &flow.workload,
            source: Source {
                address: flow.source,
                workload: flow.source_workload.as_deref(),
                identity: flow.source_id.as_ref().map(SpiffeId::as_str),
            },
            destination: Destination {
                address: flow.destination,
                endpoint: flow.endpoint,
                workload: flow.destination_workload.as_deref(),
                identity: flow.destination_id.as_ref().map(SpiffeId::as_str),
                service: service.map(|service| service.hosts.first().unwrap_or(&service.name) as _),
            },
            mode: flow.mode,
            security: flow.security.as_str(),
            policy: flow.because.as_deref(),
            authorization: verdict(flow).map(Authorization::of),
            tls: flow.tls.as_ref().map(|tls| Tls {
                version: tls.version,
                cipher: tls.cipher,
                group: tls.group,
                resumed: tls.resumed,
            }),
            bytes_sent: flow.sent,
            bytes_received: flow.received,
            duration_ms: u64::try_from(flow.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            outcome: flow.failure.as_ref().map_or("ok", |failure| failure.code()),
            fault: flow.failure.as_ref().map_or(Fault::None, |failure| failure.fault()).as_str(),
            detail: flow.failure.as_ref().map(ToString::to_string),
        }
    }

    /// With its newline.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let mut line = Vec::with_capacity(768);
        serde_json::to_writer(&mut line, self).expect("strings and numbers into memory");
        line.push(b'\n');
        line
    }
}

pub(super) fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*time))
}

pub(super) fn key<S: Serializer>(workload: &&Workload, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{}/{}", workload.namespace, workload.name))
}

fn optional_key<S: Serializer>(
    workload: &Option<&Workload>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match workload {
        Some(workload) => key(workload, serializer),
        None => serializer.serialize_none(),
    }
}

fn mode<S: Serializer>(mode: &Option<Mode>, serializer: S) -> Result<S::Ok, S::Error> {
    match mode {
        Some(mode) => serializer.collect_str(mode),
        None => serializer.serialize_none(),
    }
}
