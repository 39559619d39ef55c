use super::*;
use crate::policy::authz::{Reason, Verdict};
use crate::proxy::failure::Failure;
use crate::telemetry::access::Sink;
use crate::telemetry::testing::{flow, id};
use crate::telemetry::{Direction, Security, Telemetry};

fn finished(code: u16, grpc: bool, milliseconds: u64) -> Finished {
    let elapsed = Duration::from_millis(milliseconds);
    Finished { code, grpc, grpc_status: grpc.then_some(7), flag: "-", elapsed }
}

#[test]
fn requests_are_counted_under_istios_names() {
    let telemetry = Telemetry::new("node", &Sink::Off).expect("telemetry");
    let mut flow = flow(Direction::Inbound);
    flow.security = Security::MutualTls;
    flow.source_id = Some(id("full", "client"));
    let requests = telemetry.requests(&flow);
    requests.finished(&finished(200, false, 3));
    requests.finished(&finished(200, false, 70));
    telemetry.requests(&flow).finished(&finished(403, false, 0));
    requests.finished(&finished(200, true, 7_200_000));
    let text = telemetry.metrics.encode();
    let series = |name: &str, parts: &[&str]| {
        let mut lines = text
            .lines()
            .filter(|line| line.starts_with(name) && parts.iter().all(|part| line.contains(part)));
        let line = lines.next().unwrap_or_else(|| panic!("{name} {parts:?} in {text}"));
        assert_eq!(lines.next(), None, "{name} {parts:?}");
        line.rsplit(' ').next().expect("a value").to_owned()
    };
    let (http, grpc) = ("request_protocol=\"http\"", "request_protocol=\"grpc\"");
    let (ok, denied) = ("response_code=\"200\"", "response_code=\"403\"");
    let total = "istio_requests_total{";
    assert_eq!(series(total, &[http, ok, "response_flags=\"-\""]), "2");
    assert_eq!(series(total, &[http, denied, "reporter=\"destination\""]), "1");
    let identity = "source_principal=\"spiffe://cluster.local/ns/full/sa/client\"";
    let refused = "grpc_response_status=\"7\"";
    assert_eq!(series(total, &[grpc, ok, refused, "mutual_tls", identity]), "1");
    assert_eq!(series(total, &[http, denied, "grpc_response_status=\"\""]), "1");
    let duration = "istio_request_duration_milliseconds";
    assert_eq!(series(&format!("{duration}_sum{{"), &[http, ok]), "73.0");
    assert_eq!(series(&format!("{duration}_bucket{{"), &[http, ok, "le=\"50.0\""]), "1");
    assert_eq!(series(&format!("{duration}_bucket{{"), &[http, ok, "le=\"100.0\""]), "2");
    assert_eq!(series(&format!("{duration}_bucket{{"), &[grpc, "le=\"3600000.0\""]), "0");
    assert_eq!(series(&format!("{duration}_bucket{{"), &[grpc, "le=\"+Inf\""]), "1");
}

#[test]
fn an_application_that_makes_up_codes_makes_no_endless_series() {
    let telemetry = Telemetry::new("node", &Sink::Off).expect("telemetry");
    let requests = telemetry.requests(&flow(Direction::Inbound));
    for _ in 0..2 {
        for code in 100..=999 {
            requests.finished(&finished(code, false, 1));
        }
    }
    let text = telemetry.metrics.encode();
    let total = text.lines().filter(|line| line.starts_with("istio_requests_total{"));
    let counts: Vec<u64> = total
        .map(|line| line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number"))
        .collect();
    assert!(counts.len() <= MAX_OUTCOMES + 9, "{}", counts.len());
    assert_eq!(counts.iter().sum::<u64>(), 1800, "each is counted");
}

#[test]
fn a_denied_request_is_one_line_that_names_policy_and_rule() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("access.log");
    let telemetry = Telemetry::new("node", &Sink::File(file.clone())).expect("telemetry");
    let mut flow = flow(Direction::Inbound);
    flow.source_id = Some(id("full", "client"));
    let verdict = Verdict {
        allowed: false,
        policy: Some("AuthorizationPolicy full/deny".into()),
        rule: Some(2),
        reason: Reason::DenyRule,
        audit: None,
        dry_run: None,
    };
    let denied = Judged { method: "GET", path: "/a\"b", host: "svc", verdict: &verdict };
    telemetry.requests(&flow).judged(&denied);
    assert!(telemetry.access.flush(Duration::from_secs(5)));
    let text = std::fs::read_to_string(&file).expect("the log");
    let line: serde_json::Value = serde_json::from_str(text.trim()).expect("one JSON line");
    assert_eq!(line["event"], "request_denied");
    assert_eq!(line["workload"], "full/server");
    assert_eq!(line["identity"], "spiffe://cluster.local/ns/full/sa/client");
    assert_eq!((&line["method"], &line["path"]), (&"GET".into(), &"/a\"b".into()));
    assert_eq!(line["policy"], "AuthorizationPolicy full/deny");
    assert_eq!(line["rule"], 2);
    assert_eq!(line["reason"], "a rule of a DENY policy matches");
}

#[test]
fn a_request_that_the_application_did_not_answer_is_a_line_and_a_failure() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("access.log");
    let telemetry = Telemetry::new("node", &Sink::File(file.clone())).expect("telemetry");
    let mut flow = flow(Direction::Inbound);
    flow.source_id = Some(id("full", "client"));
    let failure = Failure::BadAnswer("no version".into());
    let failed = Failed { method: "PUT", path: "/a", host: "svc", failure: &failure };
    telemetry.requests(&flow).failed(&failed);
    assert!(telemetry.access.flush(Duration::from_secs(5)));
    let text = std::fs::read_to_string(&file).expect("the log");
    let line: serde_json::Value = serde_json::from_str(text.trim()).expect("one JSON line");
    for (field, expected) in [
        ("event", "request_failed"),
        ("node", "node"),
        ("workload", "full/server"),
        ("source", "10.0.0.1:40000"),
        ("identity", "spiffe://cluster.local/ns/full/sa/client"),
        ("method", "PUT"),
        ("host", "svc"),
        ("path", "/a"),
        ("outcome", "bad_answer"),
        ("fault", "server"),
        ("detail", &*failure.to_string()),
    ] {
        assert_eq!(line[field], expected, "{field} of {line}");
    }
    assert_eq!(line.get("policy"), None, "{line}");
    let counted = "mtls_connections_failed_total{direction=\"inbound\",reason=\"bad_answer\",\
                   fault=\"server\"} 1";
    let metrics = telemetry.metrics.encode();
    assert!(metrics.lines().any(|line| line == counted), "{metrics}");
}
