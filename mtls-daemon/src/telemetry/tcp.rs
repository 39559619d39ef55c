//! Istio's standard TCP metrics: four counters that share one label set, and so one lookup.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::{Direction, FlowRecord, Security};
use crate::identity::SpiffeId;
use crate::mesh::{Service, Workload};

/// Label sets beyond this many are counted together, as unknown to unknown. Labels are names of the
/// mesh's own objects and authenticated identities, never addresses; what is left to bound is a mesh
/// that churns for months.
const MAX_LABEL_SETS: usize = 10_000;

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

/// <https://istio.io/latest/docs/reference/config/metrics/>, the labels that apply to TCP.
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
    response_flags: &'static str,
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
            response_flags: response_flags(flow),
            connection_security_policy: security_policy(flow),
        }
    }

    /// What is left of a label set when there are too many of them.
    fn overflow(&self) -> Self {
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

/// Envoy's response flags, as dashboards made for Istio know them.
fn response_flags(flow: &FlowRecord) -> &'static str {
    let Some(failure) = &flow.failure else { return "-" };
    match failure.code() {
        "plaintext_refused"
        | "no_such_service_port"
        | "no_original_destination"
        | "loop_refused" => "NR",
        "no_endpoint" => "UH",
        "tls_handshake_failed" | "peer_identity_refused" | "detect_timeout" => "DPE",
        "upstream_tls_failed"
        | "upstream_identity_refused"
        | "upstream_connect_failed"
        | "no_identity"
        | "source_bind_failed" => "UF",
        "client_reset" => "DC",
        "upstream_reset" | "truncated" => "UC",
        // Ended by this daemon itself.
        _ => "LR",
    }
}

/// The four counters of one label set.
#[derive(Debug, Default)]
pub(super) struct Counters {
    opened: AtomicU64,
    closed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

/// Every label set seen. A read lock and one hash a connection's open, and one at its close; the
/// byte path does not come here.
#[derive(Debug)]
pub(super) struct TcpMetrics {
    sets: RwLock<HashMap<Labels, Arc<Counters>>>,
    max: usize,
}

impl Default for TcpMetrics {
    fn default() -> Self {
        Self { sets: RwLock::default(), max: MAX_LABEL_SETS }
    }
}

impl TcpMetrics {
    pub(super) fn opened(&self, flow: &FlowRecord) {
        self.counters(Labels::of(flow)).opened.fetch_add(1, Relaxed);
    }

    pub(super) fn closed(&self, flow: &FlowRecord) {
        let counters = self.counters(Labels::of(flow));
        counters.closed.fetch_add(1, Relaxed);
        counters.sent.fetch_add(flow.sent, Relaxed);
        counters.received.fetch_add(flow.received, Relaxed);
    }

    fn counters(&self, labels: Labels) -> Arc<Counters> {
        if let Some(found) = self.read().get(&labels) {
            return found.clone();
        }
        let mut sets = self.sets.write().unwrap_or_else(PoisonError::into_inner);
        let labels = if sets.len() < self.max { labels } else { labels.overflow() };
        sets.entry(labels).or_default().clone()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<Labels, Arc<Counters>>> {
        self.sets.read().unwrap_or_else(PoisonError::into_inner)
    }
}

type Column = (&'static str, &'static str, fn(&Counters) -> &AtomicU64);

const COLUMNS: [Column; 4] = [
    ("istio_tcp_connections_opened", "TCP connections opened", |c| &c.opened),
    ("istio_tcp_connections_closed", "TCP connections closed", |c| &c.closed),
    ("istio_tcp_sent_bytes", "Bytes sent towards the server", |c| &c.sent),
    ("istio_tcp_received_bytes", "Bytes received back from the server", |c| &c.received),
];

/// [`TcpMetrics`] as the registry reads them.
#[derive(Debug)]
pub(super) struct TcpCollector(pub(super) Arc<TcpMetrics>);

impl Collector for TcpCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let sets = self.0.read();
        for (name, help, value) in COLUMNS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, counters) in sets.iter() {
                let counter = ConstCounter::new(value(counters).load(Relaxed));
                counter.encode(metric.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::testing::{flow, service};

    #[test]
    fn label_sets_are_bounded_and_the_rest_is_counted_together() {
        let metrics = TcpMetrics { max: 2, ..TcpMetrics::default() };
        for host in ["a.test", "b.test", "c.test", "d.test"] {
            let mut flow = flow(Direction::Outbound);
            flow.service = Some(service("team", "any", host));
            metrics.opened(&flow);
        }
        let sets = metrics.read();
        assert_eq!(sets.len(), 3, "two of their own and one for all others");
        let overflow = sets
            .iter()
            .find(|(labels, _)| labels.destination_service == Name::Static(UNKNOWN))
            .expect("the common label set");
        assert_eq!(overflow.1.opened.load(Relaxed), 2);
        assert_eq!(overflow.0.reporter, "source");
    }

    #[test]
    fn a_cluster_service_has_a_short_name_and_a_service_entry_its_host() {
        let cases = [
            ("team", "web", "web.team.svc.cluster.local", "web"),
            ("team", "web", "web.example.com", "web.example.com"),
            ("team", "web", "web.teammates.example.com", "web.teammates.example.com"),
        ];
        for (namespace, name, host, expected) in cases {
            assert_eq!(&**short_name(&service(namespace, name, host)), expected, "{host}");
        }
    }
}
