//! Prometheus metrics, under Istio's standard TCP names where there is one.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

use super::federation::FederationMetrics;
use super::requests::{RequestCollector, RequestMetrics};
use super::tcp::{TcpCollector, TcpMetrics};
use super::{Direction, FlowRecord};
use crate::identity::SpiffeId;
use crate::proxy::failure::Failure;

/// What [`Metrics::encode`] returns, for an HTTP answer's `Content-Type`.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds. A handshake on one node takes under a millisecond of CPU; the upper end is the bound on
/// waiting for a client.
const HANDSHAKE_BUCKETS: [f64; 11] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    direction: &'static str,
    reason: &'static str,
    fault: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IdentityLabel {
    identity: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListLabel {
    list: String,
}

/// A revocation list: `ca`, or the file that it is in. Times in seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListMetrics {
    pub list: String,
    pub age: i64,
    pub entries: usize,
    /// None: it does not say when the next one comes.
    pub left: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabel {
    decision: String,
}

type Hook = dyn Fn(&Metrics) + Send + Sync;

/// What the connections of one direction share, found beforehand.
struct Connections {
    open: Gauge,
    handshake: Histogram,
}

impl Connections {
    fn shaken(&self, flow: &FlowRecord) {
        if let Some(handshake) = flow.handshake {
            self.handshake.observe(handshake.as_secs_f64());
        }
    }
}

/// Every metric of the daemon. Shared by all threads; a connection costs one lookup at its open, its
/// orderly close and a byte cost none.
pub struct Metrics {
    tcp: Arc<TcpMetrics>,
    pub(super) requests: Arc<RequestMetrics>,
    failed: Family<FailureLabels, Counter>,
    inbound: Connections,
    outbound: Connections,
    workloads_enrolled: Gauge,
    config_generation: Gauge,
    config_refused_objects: Gauge,
    reloads: Family<ResultLabel, Counter>,
    svid_expiry: Family<IdentityLabel, Gauge>,
    svids_issued: Family<ResultLabel, Counter>,
    svid_failures: Family<ReasonLabel, Counter>,
    revocation_age: Family<ListLabel, Gauge>,
    revocation_entries: Family<ListLabel, Gauge>,
    crl_expiry: Family<ListLabel, Gauge>,
    bpf_decisions: Family<DecisionLabel, Counter<u64, AtomicU64>>,
    /// Lines that the access log dropped because its sink was slow or broken.
    pub access_log_dropped: Counter,
    pub federation: FederationMetrics,
    registry: Registry,
    hooks: Mutex<Vec<Arc<Hook>>>,
    /// One scrape at a time: hooks replace whole families of values.
    scrape: Mutex<()>,
}

impl Metrics {
    /// All counters at zero; `node` labels `mtls_build_info`.
    pub fn new(node: &str) -> Self {
        let mut registry = Registry::default();
        let tcp = Arc::new(TcpMetrics::default());
        registry.register_collector(Box::new(TcpCollector(tcp.clone())));
        let requests = Arc::new(RequestMetrics::default());
        registry.register_collector(Box::new(RequestCollector(requests.clone())));
        let version = env!("CARGO_PKG_VERSION").to_owned();
        registry.register(
            "mtls_build",
            "The daemon's version and node",
            Info::new(vec![("version".to_owned(), version), ("node".to_owned(), node.to_owned())]),
        );
        let federation = FederationMetrics::new(&mut registry);
        let mut add = Adder(&mut registry);
        let histogram = Family::new_with_constructor(
            (|| Histogram::new(HANDSHAKE_BUCKETS)) as fn() -> Histogram,
        );
        let handshake = add.register("mtls_handshake_seconds", "mTLS handshake time", histogram);
        let open: Family<DirectionLabel, Gauge> =
            add.add("mtls_open_connections", "Connections open now");
        let connections = |direction| Connections {
            open: open.get_or_create_owned(&label(direction)),
            handshake: handshake.get_or_create_owned(&label(direction)),
        };
        let metrics = Self {
            inbound: connections(Direction::Inbound),
            outbound: connections(Direction::Outbound),
            failed: add.add(
                "mtls_connections_failed",
                "Connections without an orderly end, and requests without an application's answer",
            ),
            workloads_enrolled: add.add("mtls_workloads_enrolled", "Workloads intercepted now"),
            config_refused_objects: add.add(
                "mtls_config_refused_objects",
                "Objects that were refused in the newest configuration, and files nobody could read",
            ),
            config_generation: add.add("mtls_config_generation", "Configuration in force"),
            reloads: add.add("mtls_config_reloads", "Configurations read, by what became of them"),
            svid_expiry: add
                .add("mtls_svid_expiry_seconds", "Seconds until an identity's SVID expires"),
            svids_issued: add.add("mtls_svids_issued", "SVIDs asked of the issuer"),
            svid_failures: add.add("mtls_svid_failures", "SVIDs that could not be had, by reason"),
            revocation_age: add.add(
                "mtls_revocation_list_age_seconds",
                "Seconds since a revocation list was signed",
            ),
            revocation_entries: add
                .add("mtls_revocation_list_entries", "What a revocation list names"),
            crl_expiry: add.add(
                "mtls_crl_expiry_seconds",
                "Seconds until a list in a file has to be replaced",
            ),
            bpf_decisions: add
                .add("mtls_bpf_decisions", "Connections by what the kernel programs decided"),
            access_log_dropped: add
                .add("mtls_access_log_dropped", "Access log lines dropped: slow or broken sink"),
            federation,
            tcp,
            requests,
            hooks: Mutex::default(),
            scrape: Mutex::default(),
            registry,
        };
        metrics.start_at_zero();
        metrics
    }

    /// Series whose label values are known beforehand exist from the start, so that `rate()` sees
    /// their first increment.
    fn start_at_zero(&self) {
        for result in ["accepted", "refused"] {
            drop(self.reloads.get_or_create(&ResultLabel { result }));
        }
        for result in ["ok", "failed"] {
            drop(self.svids_issued.get_or_create(&ResultLabel { result }));
        }
    }

    pub(super) fn opened(&self, flow: &mut FlowRecord) {
        let counters = self.tcp.counters(flow);
        counters.opened();
        flow.counters = Some(counters);
        let connections = self.connections(flow.direction);
        connections.open.inc();
        connections.shaken(flow);
    }

    pub(super) fn closed(&self, flow: &FlowRecord) {
        let connections = self.connections(flow.direction);
        if let Some(counters) = &flow.counters {
            counters.closed(flow);
            connections.open.dec();
        } else {
            // Refused for something else.
            connections.shaken(flow);
        }
        if let Some(failure) = &flow.failure {
            self.failed(flow.direction, failure);
        }
    }

    fn connections(&self, direction: Direction) -> &Connections {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }

    pub(super) fn failed(&self, direction: Direction, failure: &Failure) {
        let labels = FailureLabels {
            direction: direction.as_str(),
            reason: failure.code(),
            fault: failure.fault().as_str(),
        };
        self.failed.get_or_create(&labels).inc();
    }

    /// Connections open now, as `status` shows them.
    pub fn open_connections(&self, direction: Direction) -> u64 {
        self.connections(direction).open.get().max(0).unsigned_abs()
    }

    pub fn set_workloads_enrolled(&self, workloads: usize) {
        self.workloads_enrolled.set(i64::try_from(workloads).unwrap_or(i64::MAX));
    }

    /// How many objects of the newest configuration are not in force as they were written.
    pub fn set_config_refused_objects(&self, refused: usize) {
        self.config_refused_objects.set(i64::try_from(refused).unwrap_or(i64::MAX));
    }

    pub fn set_config_generation(&self, generation: u64) {
        self.config_generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
    }

    /// A configuration was read and is in force; not `whole`: apart from what was refused of it.
    pub fn config_in_force(&self, generation: u64, whole: bool) {
        self.set_config_generation(generation);
        let result = if whole { "accepted" } else { "refused" };
        self.reloads.get_or_create(&ResultLabel { result }).inc();
    }

    /// A configuration could not be read at all, and the one before it stays in force; or not be applied
    /// whole yet.
    pub fn config_refused(&self) {
        self.reloads.get_or_create(&ResultLabel { result: "refused" }).inc();
    }

    /// Totals of what the issuer answered and could not. For a [`Metrics::on_scrape`] hook.
    pub fn set_svids_issued(&self, ok: u64, failed: u64) {
        for (result, total) in [("ok", ok), ("failed", failed)] {
            let counter = self.svids_issued.get_or_create(&ResultLabel { result });
            counter.inner().store(total, Ordering::Relaxed);
        }
    }

    /// Totals of what could not be issued, by reason. For a [`Metrics::on_scrape`] hook.
    pub fn set_svid_failures(&self, failures: impl IntoIterator<Item = (&'static str, u64)>) {
        for (reason, total) in failures {
            let counter = self.svid_failures.get_or_create(&ReasonLabel { reason });
            counter.inner().store(total, Ordering::Relaxed);
        }
    }

    /// Replaces the expiry times: identities that are no longer held disappear. For an
    /// [`Metrics::on_scrape`] hook, so that the seconds left are current. Negative once expired.
    pub fn set_svid_expiries<'a>(
        &self,
        svids: impl IntoIterator<Item = (&'a SpiffeId, SystemTime)>,
    ) {
        self.svid_expiry.clear();
        let now = SystemTime::now();
        for (id, not_after) in svids {
            let left = match not_after.duration_since(now) {
                Ok(left) => i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                Err(past) => -i64::try_from(past.duration().as_secs()).unwrap_or(i64::MAX),
            };
            let identity = id.as_str().to_owned();
            self.svid_expiry.get_or_create(&IdentityLabel { identity }).set(left);
        }
    }

    /// Replaces all of them. For a [`Metrics::on_scrape`] hook, as [`Metrics::set_svid_expiries`].
    pub fn set_revocation_lists(&self, lists: impl IntoIterator<Item = ListMetrics>) {
        self.revocation_age.clear();
        self.revocation_entries.clear();
        self.crl_expiry.clear();
        for ListMetrics { list, age, entries, left } in lists {
            let label = ListLabel { list };
            let entries = i64::try_from(entries).unwrap_or(i64::MAX);
            self.revocation_age.get_or_create(&label).set(age);
            self.revocation_entries.get_or_create(&label).set(entries);
            if let Some(left) = left {
                self.crl_expiry.get_or_create(&label).set(left);
            }
        }
    }

    /// Totals as the kernel's own counters have them, by the decision's name.
    pub fn set_bpf_decisions<'a>(&self, totals: impl IntoIterator<Item = (&'a str, u64)>) {
        for (decision, total) in totals {
            let labels = DecisionLabel { decision: decision.to_owned() };
            let counter = self.bpf_decisions.get_or_create(&labels);
            counter.inner().store(total, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Runs `hook` before every scrape: for values that live elsewhere, as the kernel's counters do.
    /// It may block, and must not call [`Metrics::encode`].
    pub fn on_scrape(&self, hook: Box<dyn Fn(&Metrics) + Send + Sync>) {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::from(hook));
    }

    /// OpenMetrics text of everything, see [`CONTENT_TYPE`]. Blocking, as the hooks are.
    pub fn encode(&self) -> String {
        let _alone = self.scrape.lock().unwrap_or_else(PoisonError::into_inner);
        // Cloned, so that a hook may add another without a deadlock.
        let hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for hook in hooks {
            hook(self);
        }
        let mut out = String::new();
        text::encode(&mut out, &self.registry).expect("writing to a String does not fail");
        out
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Registers a metric and hands it back.
struct Adder<'a>(&'a mut Registry);

impl Adder<'_> {
    fn add<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        self.register(name, help, M::default())
    }

    fn register<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }
}

fn label(direction: Direction) -> DirectionLabel {
    DirectionLabel { direction: direction.as_str() }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
