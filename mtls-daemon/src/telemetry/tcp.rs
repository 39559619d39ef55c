//! Istio's standard TCP metrics: four counters that share one label set, and so one lookup a connection.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel, EncodeLabelSet, EncodeLabelValue, EncodeMetric,
    LabelSetEncoder, LabelValueEncoder,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::flag::Flag;
use super::{Direction, FlowRecord, Security};
use crate::identity::SpiffeId;
use crate::mesh::{Service, Workload};

/// Label sets beyond this many are counted together, as unknown to unknown. Labels are names of the
/// mesh's own objects and authenticated identities, never addresses; what is left to bound is a mesh
/// that churns for months.
pub(super) const MAX_LABEL_SETS: usize = 10_000;

/// Istio's word for what a proxy cannot know.
const UNKNOWN: &str = "unknown";

/// A label's value, shared with the object that it names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Name {
    Static(&'static str),
    Shared(Arc<str>),
    Principal(SpiffeId),
}

impl Name {
    fn as_str(&self) -> &str {
        match self {
            Self::Static(name) => name,
            Self::Shared(name) => name,
            Self::Principal(id) => id.as_str(),
        }
    }

    fn shared(name: Option<&Arc<str>>) -> Self {
        name.map_or(Self::Static(UNKNOWN), |name| Self::Shared(name.clone()))
    }

    fn principal(id: Option<&SpiffeId>) -> Self {
        id.map_or(Self::Static(UNKNOWN), |id| Self::Principal(id.clone()))
    }
}

impl EncodeLabelValue for Name {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}

/// <https://istio.io/latest/docs/reference/config/metrics/>, the labels that apply to TCP: what is
/// known when a connection opens. How it ends ([`Flag`]) is the one label that is missing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Labels {
    reporter: &'static str,
    source_workload: Name,
    source_workload_namespace: Name,
    source_principal: Name,
    destination_workload: Name,
    destination_workload_namespace: Name,
    destination_principal: Name,
    destination_service: Name,
    destination_service_name: Name,
    destination_service_namespace: Name,
    request_protocol: &'static str,
    connection_security_policy: &'static str,
}

impl Labels {
    pub(super) fn of(flow: &FlowRecord) -> Self {
        // The enrolled workload is one of the two ends, whether or not the proxy repeats it there.
        let (source, destination) = match flow.direction {
            Direction::Outbound => (Some(&flow.workload), flow.destination_workload.as_ref()),
            Direction::Inbound => (flow.source_workload.as_ref(), Some(&flow.workload)),
        };
        let service = flow.service.as_deref();
        Self {
            reporter: reporter(flow.direction),
            source_workload: Name::shared(workload_name(source)),
            source_workload_namespace: Name::shared(workload_namespace(source)),
            source_principal: Name::principal(flow.source_id.as_ref()),
            destination_workload: Name::shared(workload_name(destination)),
            destination_workload_namespace: Name::shared(workload_namespace(destination)),
            destination_principal: Name::principal(flow.destination_id.as_ref()),
            destination_service: Name::shared(service.map(host)),
            destination_service_name: Name::shared(service.map(short_name)),
            destination_service_namespace: Name::shared(service.map(|service| &service.namespace)),
            request_protocol: "tcp",
            connection_security_policy: security_policy(flow),
        }
    }

    /// The same ends, for requests of `protocol`.
    pub(super) fn with_protocol(&self, protocol: &'static str) -> Self {
        Self { request_protocol: protocol, ..self.clone() }
    }

    /// What is left of a label set when there are too many of them.
    pub(super) fn overflow(&self) -> Self {
        let unknown = Name::Static(UNKNOWN);
        Self {
            source_workload: unknown.clone(),
            source_workload_namespace: unknown.clone(),
            source_principal: unknown.clone(),
            destination_workload: unknown.clone(),
            destination_workload_namespace: unknown.clone(),
            destination_principal: unknown.clone(),
            destination_service: unknown.clone(),
            destination_service_name: unknown.clone(),
            destination_service_namespace: unknown,
            ..*self
        }
    }
}

fn reporter(direction: Direction) -> &'static str {
    match direction {
        Direction::Outbound => "source",
        Direction::Inbound => "destination",
    }
}

fn workload_name(workload: Option<&Arc<Workload>>) -> Option<&Arc<str>> {
    workload.map(|workload| &workload.name)
}

fn workload_namespace(workload: Option<&Arc<Workload>>) -> Option<&Arc<str>> {
    workload.map(|workload| &workload.namespace)
}

fn host(service: &Service) -> &Arc<str> {
    service.hosts.first().unwrap_or(&service.name)
}

/// Istio names a service of a ServiceEntry by its host, and a cluster's own service by its short
/// name, which its host (`name.namespace.svc...`) begins with.
fn short_name(service: &Service) -> &Arc<str> {
    let host = host(service);
    let cluster_local = host
        .strip_prefix(&*service.name)
        .and_then(|rest| rest.strip_prefix('.'))
        .and_then(|rest| rest.strip_prefix(&*service.namespace))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(".svc"));
    if cluster_local { &service.name } else { host }
}

/// Only the server's side can vouch for how a connection arrived: Istio says unknown at the source.
fn security_policy(flow: &FlowRecord) -> &'static str {
    match (flow.direction, flow.security) {
        (Direction::Outbound, _) => UNKNOWN,
        (Direction::Inbound, Security::MutualTls) => "mutual_tls",
        (Direction::Inbound, _) => "none",
    }
}

/// The counters of one label set. Held by each of its connections, so that their end needs no lookup.
#[derive(Debug, Default)]
pub(super) struct Counters {
    opened: AtomicU64,
    /// By [`Flag`].
    ended: [Ended; Flag::ALL.len()],
}

/// Connections that ended in one way.
#[derive(Debug, Default)]
struct Ended {
    closed: AtomicU64,
    /// Towards the server: what Istio calls received.
    from_client: AtomicU64,
    /// Back to the client: what Istio calls sent.
    to_client: AtomicU64,
}

impl Counters {
    pub(super) fn opened(&self) {
        self.opened.fetch_add(1, Relaxed);
    }

    pub(super) fn closed(&self, flow: &FlowRecord) {
        let ended = &self.ended[Flag::of(flow.failure.as_ref()) as usize];
        ended.from_client.fetch_add(flow.sent, Relaxed);
        ended.to_client.fetch_add(flow.received, Relaxed);
        ended.closed.fetch_add(1, Relaxed);
    }
}

type Sets = HashMap<Arc<Labels>, Arc<Counters>>;

/// Every label set seen: one hash under a read lock when a connection opens; the byte path and the
/// close do not come here.
#[derive(Debug)]
pub(super) struct TcpMetrics {
    sets: RwLock<Sets>,
    max: usize,
}

impl Default for TcpMetrics {
    fn default() -> Self {
        Self { sets: RwLock::default(), max: MAX_LABEL_SETS }
    }
}

impl TcpMetrics {
    /// Those of a connection that is about to open.
    pub(super) fn counters(&self, flow: &FlowRecord) -> Arc<Counters> {
        let labels = Labels::of(flow);
        if let Some(found) = self.read().get(&labels) {
            return found.clone();
        }
        let mut sets = self.sets.write().unwrap_or_else(PoisonError::into_inner);
        let full = sets.len() >= self.max && !sets.contains_key(&labels);
        let labels = if full { labels.overflow() } else { labels };
        sets.entry(Arc::new(labels)).or_default().clone()
    }

    /// All of them as they are now. The lock is held for the copy of the pointers alone: text is made
    /// without it, however long that takes.
    fn list(&self) -> Vec<(Arc<Labels>, Arc<Counters>)> {
        self.read().iter().map(|(labels, counters)| (labels.clone(), counters.clone())).collect()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Sets> {
        self.sets.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The labels of one series.
#[derive(Debug)]
struct WithFlag<'a>(&'a Labels, Flag);

impl EncodeLabelSet for WithFlag<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)?;
        ("response_flags", self.1.as_str()).encode(encoder.encode_label())
    }
}

type Column = (&'static str, &'static str, fn(&Counters, Flag) -> Option<&AtomicU64>);

/// An ending that never was has no series, but for the orderly one: `rate()` then sees its first
/// increment.
fn ended(counters: &Counters, flag: Flag) -> Option<&Ended> {
    let ended = &counters.ended[flag as usize];
    (flag == Flag::Orderly || ended.closed.load(Relaxed) > 0).then_some(ended)
}

const COLUMNS: [Column; 4] = [
    // How it will end is not known when a connection opens.
    ("istio_tcp_connections_opened", "TCP connections opened", |counters, flag| {
        (flag == Flag::Orderly).then_some(&counters.opened)
    }),
    ("istio_tcp_connections_closed", "TCP connections closed", |counters, flag| {
        Some(&ended(counters, flag)?.closed)
    }),
    // As the answering side sees it, whoever reports.
    ("istio_tcp_sent_bytes", "Bytes sent to clients, during response", |counters, flag| {
        Some(&ended(counters, flag)?.to_client)
    }),
    (
        "istio_tcp_received_bytes",
        "Bytes received from clients, during request",
        |counters, flag| Some(&ended(counters, flag)?.from_client),
    ),
];

/// [`TcpMetrics`] as the registry reads them.
#[derive(Debug)]
pub(super) struct TcpCollector(pub(super) Arc<TcpMetrics>);

impl Collector for TcpCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let sets = self.0.list();
        for (name, help, value) in COLUMNS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, counters) in &sets {
                for flag in Flag::ALL {
                    let Some(total) = value(counters, flag) else { continue };
                    let labels = WithFlag(labels, flag);
                    let counter = ConstCounter::new(total.load(Relaxed));
                    counter.encode(metric.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "tcp_tests.rs"]
mod tests;
