use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::*;
use crate::policy::Mode;
use crate::proxy::failure::Failure;
use crate::telemetry::testing::{flow, id, service, workload};
use crate::telemetry::{Security, Telemetry, access};

fn telemetry() -> Telemetry {
    Telemetry::new("node-1", &access::Sink::Off).expect("no sink to open")
}

/// Both ends of one mTLS connection from full/client to full/server behind web.test.
fn settled(direction: Direction) -> FlowRecord {
    let mut flow = flow(direction);
    flow.source_workload = Some(workload("full", "client"));
    flow.source_id = Some(id("full", "client"));
    flow.destination_workload = Some(workload("full", "server"));
    flow.destination_id = Some(id("full", "server"));
    flow.security = Security::MutualTls;
    flow.mode = Some(Mode::Strict);
    if direction == Direction::Outbound {
        flow.service = Some(service("full", "web", "web.test"));
    }
    flow
}

fn live(telemetry: &Telemetry, mut flow: FlowRecord, sent: u64, received: u64) {
    flow.handshake = Some(Duration::from_micros(700));
    telemetry.opened(&mut flow);
    (flow.sent, flow.received) = (sent, received);
    telemetry.closed(&flow);
}

fn has(text: &str, line: &str) {
    assert!(text.lines().any(|found| found == line), "no line\n{line}\nin\n{text}");
}

#[test]
fn a_flow_is_counted_by_both_reporters_with_istios_labels() {
    let telemetry = telemetry();
    live(&telemetry, settled(Direction::Outbound), 100, 2000);
    live(&telemetry, settled(Direction::Inbound), 100, 2000);
    let text = telemetry.metrics.encode();
    let ends = "source_workload=\"client\",source_workload_namespace=\"full\",\
        source_principal=\"spiffe://cluster.local/ns/full/sa/client\",\
        destination_workload=\"server\",destination_workload_namespace=\"full\",\
        destination_principal=\"spiffe://cluster.local/ns/full/sa/server\"";
    let source = format!(
        "{{reporter=\"source\",{ends},destination_service=\"web.test\",\
        destination_service_name=\"web.test\",destination_service_namespace=\"full\",\
        request_protocol=\"tcp\",connection_security_policy=\"unknown\",response_flags=\"-\"}}"
    );
    let destination = format!(
        "{{reporter=\"destination\",{ends},destination_service=\"unknown\",\
        destination_service_name=\"unknown\",destination_service_namespace=\"unknown\",\
        request_protocol=\"tcp\",connection_security_policy=\"mutual_tls\",response_flags=\"-\"}}"
    );
    for labels in [source, destination] {
        has(&text, &format!("istio_tcp_connections_opened_total{labels} 1"));
        has(&text, &format!("istio_tcp_connections_closed_total{labels} 1"));
        // A hundred bytes asked for two thousand.
        has(&text, &format!("istio_tcp_sent_bytes_total{labels} 2000"));
        has(&text, &format!("istio_tcp_received_bytes_total{labels} 100"));
    }
    for direction in ["inbound", "outbound"] {
        has(&text, &format!("mtls_handshake_seconds_count{{direction=\"{direction}\"}} 1"));
        has(&text, &format!("mtls_open_connections{{direction=\"{direction}\"}} 0"));
    }
    assert!(text.ends_with("# EOF\n"));
    assert!(!text.contains("10.0.0."), "an address became a label:\n{text}");
}

#[test]
fn a_plaintext_client_is_unknown_and_none() {
    let telemetry = telemetry();
    let mut flow = flow(Direction::Inbound);
    flow.security = Security::Plaintext;
    live(&telemetry, flow, 1, 1);
    let text = telemetry.metrics.encode();
    let line = text
        .lines()
        .find(|line| line.starts_with("istio_tcp_connections_opened_total{"))
        .expect("one series");
    assert!(line.contains("source_workload=\"unknown\""), "{line}");
    assert!(line.contains("source_principal=\"unknown\""), "{line}");
    assert!(line.contains("destination_workload=\"server\""), "{line}");
    assert!(line.contains("connection_security_policy=\"none\""), "{line}");
}

#[test]
fn a_refused_connection_is_a_failure_with_its_fault_and_no_open_one() {
    let telemetry = telemetry();
    let mut refused = flow(Direction::Inbound);
    refused.failure = Some(Failure::PlaintextRefused { because: "PeerAuthentication a/b".into() });
    telemetry.closed(&refused);
    let text = telemetry.metrics.encode();
    has(
        &text,
        "mtls_connections_failed_total{direction=\"inbound\",reason=\"plaintext_refused\",\
         fault=\"policy\"} 1",
    );
    has(&text, "mtls_open_connections{direction=\"inbound\"} 0");
    assert!(!text.contains("istio_tcp_connections_closed_total{"), "{text}");
}

#[test]
fn a_connection_closes_where_it_opened_under_the_flag_of_its_end() {
    let telemetry = telemetry();
    let mut flow = settled(Direction::Outbound);
    telemetry.opened(&mut flow);
    // Learned too late to open a second series.
    flow.destination_workload = None;
    (flow.sent, flow.received) = (5, 7);
    flow.failure = Some(Failure::ClientReset(std::io::ErrorKind::ConnectionReset.into()));
    telemetry.closed(&flow);
    let text = telemetry.metrics.encode();
    let value = |name: &str, flag: &str| {
        let flag = format!("response_flags=\"{flag}\"}} ");
        let mut lines = text.lines().filter_map(|line| {
            let (labels, value) = line.strip_prefix(name)?.split_once(&flag)?;
            labels.contains("destination_workload=\"server\"").then_some(value)
        });
        let value = lines.next().map(str::to_owned);
        assert_eq!(lines.next(), None, "one series of {name}");
        value
    };
    let value = |name: &str, flag: &str| value(name, flag).unwrap_or_else(|| "none".to_owned());
    assert_eq!(value("istio_tcp_connections_opened_total", "-"), "1");
    assert_eq!(value("istio_tcp_connections_opened_total", "DC"), "none");
    assert_eq!(value("istio_tcp_connections_closed_total", "-"), "0");
    assert_eq!(value("istio_tcp_connections_closed_total", "DC"), "1");
    assert_eq!(value("istio_tcp_sent_bytes_total", "DC"), "7");
    assert_eq!(value("istio_tcp_received_bytes_total", "DC"), "5");
    assert_eq!(value("istio_tcp_connections_closed_total", "UC"), "none");
    assert!(!text.contains("destination_workload=\"unknown\""), "{text}");
}

#[test]
fn a_handshake_is_seen_once_and_while_its_connection_is_open() {
    let telemetry = telemetry();
    let count = |expected: u64| {
        let line = format!("mtls_handshake_seconds_count{{direction=\"inbound\"}} {expected}");
        has(&telemetry.metrics.encode(), &line);
    };
    let mut open = settled(Direction::Inbound);
    open.handshake = Some(Duration::from_micros(700));
    telemetry.opened(&mut open);
    count(1);
    telemetry.closed(&open);
    count(1);
    let mut refused = settled(Direction::Inbound);
    refused.handshake = Some(Duration::from_micros(700));
    refused.failure = Some(Failure::DetectTimeout);
    telemetry.closed(&refused);
    count(2);
}

#[test]
fn open_connections_are_those_not_closed() {
    let telemetry = telemetry();
    let mut flow = flow(Direction::Outbound);
    telemetry.opened(&mut flow);
    assert_eq!(telemetry.metrics.open_connections(Direction::Outbound), 1);
    assert_eq!(telemetry.metrics.open_connections(Direction::Inbound), 0);
    telemetry.closed(&flow);
    assert_eq!(telemetry.metrics.open_connections(Direction::Outbound), 0);
}

#[test]
fn values_that_live_elsewhere_are_asked_for_at_every_scrape() {
    let metrics = Metrics::new("node-1");
    let kernel = Arc::new(AtomicU64::new(7));
    let shared = kernel.clone();
    metrics.on_scrape(Box::new(move |metrics| {
        let redirected = shared.load(std::sync::atomic::Ordering::Relaxed);
        metrics.set_bpf_decisions([("redirected", redirected)]);
    }));
    has(&metrics.encode(), "mtls_bpf_decisions_total{decision=\"redirected\"} 7");
    kernel.store(9, std::sync::atomic::Ordering::Relaxed);
    has(&metrics.encode(), "mtls_bpf_decisions_total{decision=\"redirected\"} 9");
}

#[test]
fn the_state_of_configuration_and_svids_is_shown() {
    let metrics = Metrics::new("node-1");
    let text = metrics.encode();
    has(&text, "mtls_config_reloads_total{result=\"refused\"} 0");
    metrics.config_in_force(3, true);
    metrics.set_config_refused_objects(2);
    metrics.config_refused();
    metrics.set_workloads_enrolled(2);
    metrics.set_svids_issued(1, 1);
    metrics.set_svid_failures([("refused", 1), ("timeout", 0)]);
    let (web, old) = (id("full", "web"), id("full", "old"));
    let now = SystemTime::now();
    metrics.set_svid_expiries([
        (&web, now + Duration::from_secs(3600)),
        (&old, now - Duration::from_secs(60)),
    ]);
    let text = metrics.encode();
    has(&text, "mtls_config_generation 3");
    has(&text, "mtls_config_refused_objects 2");
    has(&text, "mtls_config_reloads_total{result=\"accepted\"} 1");
    has(&text, "mtls_config_reloads_total{result=\"refused\"} 1");
    has(&text, "mtls_workloads_enrolled 2");
    has(&text, "mtls_svids_issued_total{result=\"ok\"} 1");
    has(&text, "mtls_svids_issued_total{result=\"failed\"} 1");
    has(&text, "mtls_svid_failures_total{reason=\"refused\"} 1");
    has(&text, "mtls_svid_failures_total{reason=\"timeout\"} 0");
    has(&text, "mtls_access_log_dropped_total 0");
    let left = |name: &str| -> i64 {
        let start = format!("mtls_svid_expiry_seconds{{identity=\"{}\"}} ", id("full", name));
        let line = text.lines().find_map(|line| line.strip_prefix(start.as_str()));
        line.expect("the identity's gauge").parse().expect("a number")
    };
    assert!((3590..=3600).contains(&left("web")), "{text}");
    assert!((-70..=-60).contains(&left("old")), "{text}");
    metrics.set_svid_expiries([(&web, now)]);
    assert!(!metrics.encode().contains("sa/old"), "an identity no longer held disappears");
}
