//! Requests of inbound connections, as they are counted and, where policy denied them or took a note of
//! them, or the application did not answer, logged.
//!
//! Istio's standard HTTP metrics: a connection looks its labels up once, a request only its outcome.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel, EncodeLabelSet, EncodeMetric, LabelSetEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use serde::Serialize;

use super::access::AccessLog;
use super::line::Authorization;
use super::metrics::Metrics;
use super::tcp::{Labels, MAX_LABEL_SETS};
use super::{Direction, FlowRecord, line};
use crate::identity::SpiffeId;
use crate::mesh::Workload;
use crate::proxy::http::{Failed, Finished, Judged, Report};

/// Milliseconds; Envoy's own, which dashboards for Istio expect.
const BUCKETS: [f64; 20] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
    f64::INFINITY,
];

/// Hears of the requests of one connection.
pub struct Requests {
    workload: Arc<Workload>,
    source: SocketAddr,
    client: Option<SpiffeId>,
    outcomes: Arc<Outcomes>,
    metrics: Arc<Metrics>,
    access: AccessLog,
}

impl super::Telemetry {
    /// Whoever reports the requests of `flow`, whose peer and policy are settled.
    pub fn requests(&self, flow: &FlowRecord) -> Requests {
        Requests {
            workload: flow.workload.clone(),
            source: flow.source,
            client: flow.source_id.clone(),
            outcomes: self.metrics.requests.outcomes(flow),
            metrics: self.metrics.clone(),
            access: self.access.clone(),
        }
    }
}

impl Report for Requests {
    fn finished(&self, finished: &Finished) {
        self.outcomes.count(finished);
    }

    fn failed(&self, failed: &Failed<'_>) {
        // Requests are handled on the server's side alone.
        self.metrics.failed(Direction::Inbound, failed.failure);
        let Failed { method, host, path, failure } = *failed;
        let about = Unanswered {
            outcome: failure.code(),
            fault: failure.fault().as_str(),
            detail: failure.to_string(),
        };
        self.line("request_failed", [method, host, path], About::Unanswered(about));
    }

    fn judged(&self, judged: &Judged<'_>) {
        let Judged { method, host, path, verdict } = *judged;
        let event = if verdict.allowed { "request_noted" } else { "request_denied" };
        self.line(event, [method, host, path], About::Policy(Authorization::of(verdict)));
    }
}

impl Requests {
    fn line(&self, event: &'static str, [method, host, path]: [&str; 3], about: About<'_>) {
        self.access.write_request(|node| RequestLine {
            time: SystemTime::now(),
            event,
            node,
            workload: &self.workload,
            source: self.source,
            identity: self.client.as_ref().map(SpiffeId::as_str),
            method,
            host,
            path,
            about,
        });
    }
}

/// One request, as the access log has it.
#[derive(Serialize)]
pub(super) struct RequestLine<'a> {
    #[serde(serialize_with = "line::rfc3339")]
    time: SystemTime,
    event: &'static str,
    node: &'a str,
    #[serde(serialize_with = "line::key")]
    workload: &'a Workload,
    source: SocketAddr,
    identity: Option<&'a str>,
    method: &'a str,
    host: &'a str,
    path: &'a str,
    #[serde(flatten)]
    about: About<'a>,
}

/// Why it has a line.
#[derive(Serialize)]
#[serde(untagged)]
enum About<'a> {
    Policy(Authorization<'a>),
    Unanswered(Unanswered),
}

/// What went wrong, as a connection's line says it.
#[derive(Serialize)]
struct Unanswered {
    outcome: &'static str,
    fault: &'static str,
    detail: String,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Outcome {
    code: u16,
    grpc: bool,
    grpc_status: Option<u8>,
    flag: &'static str,
}

/// How many ended so, and how long they took.
#[derive(Debug, Default)]
struct Timed {
    buckets: [AtomicU64; BUCKETS.len()],
    microseconds: AtomicU64,
}

impl Timed {
    fn count(&self, elapsed: Duration) {
        let milliseconds = elapsed.as_secs_f64() * 1000.0;
        let place = BUCKETS.partition_point(|bound| *bound < milliseconds);
        self.buckets[place.min(BUCKETS.len() - 1)].fetch_add(1, Relaxed);
        let microseconds = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        self.microseconds.fetch_add(microseconds, Relaxed);
    }

    fn buckets(&self) -> Vec<(f64, u64)> {
        BUCKETS.iter().zip(&self.buckets).map(|(bound, n)| (*bound, n.load(Relaxed))).collect()
    }
}

/// Outcomes of one label set that are told apart. An application chooses its codes, and what is beyond
/// is counted as the first of its hundred.
const MAX_OUTCOMES: usize = 100;

/// The requests of one label set. There are few outcomes, so that a list finds them.
#[derive(Debug, Default)]
struct Outcomes(RwLock<Vec<(Outcome, Arc<Timed>)>>);

impl Outcomes {
    fn count(&self, finished: &Finished) {
        let Finished { code, grpc, grpc_status, flag, elapsed } = *finished;
        self.timed(Outcome { code, grpc, grpc_status, flag }).count(elapsed);
    }

    fn timed(&self, outcome: Outcome) -> Arc<Timed> {
        let find = |list: &[(Outcome, Arc<Timed>)], outcome: Outcome| {
            list.iter().find(|(other, _)| *other == outcome).map(|(_, timed)| timed.clone())
        };
        let known = find(&self.0.read().unwrap_or_else(PoisonError::into_inner), outcome);
        if let Some(found) = known {
            return found;
        }
        let mut list = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let outcome = match list.len() {
            0..MAX_OUTCOMES => outcome,
            _ => Outcome { code: outcome.code / 100 * 100, ..outcome },
        };
        if let Some(found) = find(&list, outcome) {
            return found;
        }
        let timed = Arc::<Timed>::default();
        list.push((outcome, timed.clone()));
        timed
    }

    fn list(&self) -> Vec<(Outcome, Arc<Timed>)> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Every label set seen, as [`super::tcp`] keeps them.
#[derive(Debug, Default)]
pub(super) struct RequestMetrics(RwLock<HashMap<Arc<Labels>, Arc<Outcomes>>>);

impl RequestMetrics {
    fn outcomes(&self, flow: &FlowRecord) -> Arc<Outcomes> {
        let labels = Labels::of(flow);
        let found = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&labels).cloned();
        if let Some(found) = found {
            return found;
        }
        let mut sets = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let full = sets.len() >= MAX_LABEL_SETS && !sets.contains_key(&labels);
        let labels = if full { labels.overflow() } else { labels };
        sets.entry(Arc::new(labels)).or_default().clone()
    }

    fn list(&self) -> Vec<(Arc<Labels>, Arc<Outcomes>)> {
        let sets = self.0.read().unwrap_or_else(PoisonError::into_inner);
        sets.iter().map(|(labels, outcomes)| (labels.clone(), outcomes.clone())).collect()
    }
}

/// The labels of one series.
#[derive(Debug)]
struct Series(Labels, Outcome);

impl EncodeLabelSet for Series {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)?;
        ("response_code", self.1.code.to_string()).encode(encoder.encode_label())?;
        ("response_flags", self.1.flag).encode(encoder.encode_label())?;
        let grpc = self.1.grpc_status.map(|status| status.to_string()).unwrap_or_default();
        ("grpc_response_status", grpc).encode(encoder.encode_label())
    }
}

/// [`RequestMetrics`] as the registry reads them.
#[derive(Debug)]
pub(super) struct RequestCollector(pub(super) Arc<RequestMetrics>);

impl Collector for RequestCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut all = Vec::new();
        for (labels, outcomes) in self.0.list() {
            for (outcome, timed) in outcomes.list() {
                let protocol = if outcome.grpc { "grpc" } else { "http" };
                let buckets = timed.buckets();
                let count: u64 = buckets.iter().map(|(_, count)| count).sum();
                let sum = timed.microseconds.load(Relaxed) as f64 / 1000.0;
                all.push((Series(labels.with_protocol(protocol), outcome), buckets, count, sum));
            }
        }
        let (name, help) = ("istio_requests", "Requests answered");
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (series, _, count, _) in &all {
            ConstCounter::new(*count).encode(metric.encode_family(series)?)?;
        }
        let (name, help) = ("istio_request_duration_milliseconds", "From a request to its end");
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (series, buckets, count, sum) in &all {
            let mut series = metric.encode_family(series)?;
            series.encode_histogram::<NoLabelSet>(*sum, *count, buckets, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "requests_tests.rs"]
mod tests;
