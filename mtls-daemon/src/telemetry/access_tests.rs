use std::collections::BTreeSet;
use std::sync::mpsc;

use serde_json::{Value, json};

use super::*;
use crate::policy::Mode;
use crate::policy::authz::{Hit, Reason, Verdict};
use crate::proxy::failure::Failure;
use crate::telemetry::testing::{documented_codes, failures, flow, id, service, workload};
use crate::telemetry::{Direction, Security};
use crate::tls::verify::TlsSummary;

fn line(flow: &FlowRecord) -> Value {
    let mut line = Line::of("node-1", flow);
    line.time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_045);
    line.duration_ms = 12;
    let bytes = line.to_json();
    assert_eq!(bytes.last(), Some(&b'\n'));
    serde_json::from_slice(&bytes).expect("one JSON object a line")
}

use std::time::SystemTime;

#[test]
fn an_outbound_mtls_connection_shows_both_identities_and_why() {
    let mut flow = flow(Direction::Outbound);
    flow.source_workload = Some(workload("full", "client"));
    flow.source_id = Some(id("full", "client"));
    flow.endpoint = Some("[fd00::2]:8080".parse().expect("an address"));
    flow.destination_workload = Some(workload("partial", "server"));
    flow.destination_id = Some(id("partial", "server"));
    flow.service = Some(service("partial", "web", "web.test"));
    flow.security = Security::MutualTls;
    flow.because = Some("auto mTLS: the endpoint speaks mTLS".into());
    flow.tls = Some(TlsSummary {
        version: "TLSv1.3",
        cipher: "TLS13_AES_256_GCM_SHA384",
        group: "X25519MLKEM768",
        resumed: false,
    });
    (flow.sent, flow.received) = (80, 1024);
    assert_eq!(
        line(&flow),
        json!({
            "time": "2023-11-14T22:13:20.045Z",
            "direction": "outbound",
            "node": "node-1",
            "workload": "full/client",
            "source": {
                "address": "10.0.0.1:40000",
                "workload": "full/client",
                "identity": "spiffe://cluster.local/ns/full/sa/client",
            },
            "destination": {
                "address": "10.0.0.2:80",
                "endpoint": "[fd00::2]:8080",
                "workload": "partial/server",
                "identity": "spiffe://cluster.local/ns/partial/sa/server",
                "service": "web.test",
            },
            "mode": null,
            "security": "mutual_tls",
            "policy": "auto mTLS: the endpoint speaks mTLS",
            "authorization": null,
            "tls": {
                "version": "TLSv1.3",
                "cipher": "TLS13_AES_256_GCM_SHA384",
                "group": "X25519MLKEM768", "resumed": false,
            },
            "bytes_sent": 80,
            "bytes_received": 1024,
            "duration_ms": 12,
            "outcome": "ok",
            "fault": "none",
            "detail": null,
        })
    );
}

#[test]
fn a_denied_connection_shows_the_policy_and_rule_that_denied_it() {
    let mut flow = flow(Direction::Inbound);
    let verdict = Verdict {
        allowed: false,
        policy: Some("AuthorizationPolicy full/deny".into()),
        rule: Some(1),
        reason: Reason::DenyRule,
        audit: None,
        dry_run: Some(Hit {
            policy: "AuthorizationPolicy full/try".into(),
            rule: Some(0),
            allowed: true,
        }),
    };
    flow.failure = Some(Failure::AuthorizationDenied { verdict, client: "x".into() });
    let line = line(&flow);
    assert_eq!(
        line["authorization"],
        json!({
            "allowed": false,
            "policy": "AuthorizationPolicy full/deny",
            "rule": 1,
            "reason": "a rule of a DENY policy matches",
            "dry_run": { "allowed": true, "policy": "AuthorizationPolicy full/try", "rule": 0 },
        })
    );
    assert_eq!(
        (&line["outcome"], &line["fault"]),
        (&json!("authorization_denied"), &json!("policy"))
    );
}

#[test]
fn a_refused_plaintext_client_shows_the_policy_that_refused_it() {
    let mut flow = flow(Direction::Inbound);
    flow.mode = Some(Mode::Strict);
    flow.because = Some("PeerAuthentication istio-system/default".into());
    flow.failure = Some(Failure::PlaintextRefused {
        because: "PeerAuthentication istio-system/default".into(),
    });
    assert_eq!(
        line(&flow),
        json!({
            "time": "2023-11-14T22:13:20.045Z",
            "direction": "inbound",
            "node": "node-1",
            "workload": "full/server",
            "source": { "address": "10.0.0.1:40000", "workload": null, "identity": null },
            "destination": {
                "address": "10.0.0.2:80",
                "endpoint": null,
                "workload": null,
                "identity": null,
                "service": null,
            },
            "mode": "STRICT",
            "security": "none",
            "policy": "PeerAuthentication istio-system/default",
            "authorization": null,
            "tls": null,
            "bytes_sent": 0,
            "bytes_received": 0,
            "duration_ms": 12,
            "outcome": "plaintext_refused",
            "fault": "policy",
            "detail": "plaintext on a STRICT port (PeerAuthentication istio-system/default); \
                       enrol the client, or set PERMISSIVE for this port",
        })
    );
}

#[test]
fn every_kind_of_security_and_mode_has_its_word() {
    let words = [
        (Security::MutualTls, "mutual_tls"),
        (Security::OriginatedTls, "originated_tls"),
        (Security::Plaintext, "plaintext"),
        (Security::TlsPassthrough, "tls_passthrough"),
        (Security::None, "none"),
    ];
    for direction in [Direction::Inbound, Direction::Outbound] {
        for (security, word) in words {
            for mode in [Mode::Disable, Mode::Permissive, Mode::Strict] {
                let mut flow = flow(direction);
                (flow.security, flow.mode) = (security, Some(mode));
                let line = line(&flow);
                assert_eq!(line["security"], word);
                assert_eq!(line["mode"], mode.to_string());
                assert_eq!(line["direction"], direction.as_str());
            }
        }
    }
}

#[test]
fn every_failure_has_its_code_and_its_fault() {
    for (failure, code, fault) in failures() {
        let text = failure.to_string();
        let mut flow = flow(Direction::Outbound);
        flow.failure = Some(failure);
        let line = line(&flow);
        assert_eq!(line["outcome"], code);
        assert_eq!(line["fault"], fault, "{code}");
        assert_eq!(line["detail"], text, "{code}");
    }
    let codes: BTreeSet<_> = failures().iter().map(|(failure, ..)| failure.code()).collect();
    assert_eq!(codes, documented_codes(), "what happens, and docs/observability.md");
}

/// A sink that blocks until it is given permission for one write, and says when it is asked.
struct Gate {
    asked: mpsc::Sender<()>,
    permits: mpsc::Receiver<()>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.asked.send(()).ok();
        self.permits.recv().ok();
        self.written.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_slow_sink_drops_and_counts_and_never_blocks() {
    let (asked, asks) = mpsc::channel();
    let (permit, permits) = mpsc::channel();
    let written = Arc::new(Mutex::new(Vec::new()));
    let dropped = Counter::default();
    let gate = Gate { asked, permits, written: written.clone() };
    let log = AccessLog::start(Box::new(gate), None, "node-1", dropped.clone(), 4)
        .expect("a thread starts");
    let flow = flow(Direction::Outbound);
    log.write(&flow);
    asks.recv_timeout(Duration::from_secs(5)).expect("the writer is at the sink");
    for _ in 0..10 {
        log.write(&flow);
    }
    assert_eq!(dropped.get(), 6, "four wait, the rest is dropped");
    assert!(!log.flush(Duration::from_millis(20)), "a stuck sink does not hold up the end");
    drop(permit);
    assert!(log.flush(Duration::from_secs(5)), "the sink works again");
    let text = String::from_utf8(written.lock().expect("not poisoned").clone()).expect("UTF-8");
    assert_eq!(text.lines().count(), 5);
    assert_eq!(dropped.get(), 6);
}

struct Broken;

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(28))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn lines_that_a_broken_sink_refuses_are_counted() {
    let dropped = Counter::default();
    let log = AccessLog::start(Box::new(Broken), None, "node-1", dropped.clone(), 64)
        .expect("a thread starts");
    for _ in 0..3 {
        log.write(&flow(Direction::Inbound));
    }
    assert!(log.flush(Duration::from_secs(5)));
    assert_eq!(dropped.get(), 3);
}

#[test]
fn a_rotated_file_is_opened_anew() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("access.log");
    let rotated = dir.path().join("access.log.1");
    let sink: Sink = path.to_str().expect("UTF-8").parse().expect("a path");
    let log = AccessLog::open(&sink, "node-1", Counter::default()).expect("it opens");
    log.write(&flow(Direction::Inbound));
    assert!(log.flush(Duration::from_secs(5)));
    std::fs::rename(&path, &rotated).expect("renamed");
    log.reopen();
    log.write(&flow(Direction::Outbound));
    assert!(log.flush(Duration::from_secs(5)));
    let read = |path: &Path| std::fs::read_to_string(path).expect("it is there");
    assert!(read(&rotated).contains("\"inbound\"") && !read(&rotated).contains("\"outbound\""));
    assert!(read(&path).contains("\"outbound\"") && !read(&path).contains("\"inbound\""));
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let sink = Sink::File("/nonexistent/access.log".into());
    let error = AccessLog::open(&sink, "node-1", Counter::default()).err().expect("no directory");
    assert!(error.to_string().contains("/nonexistent/access.log"), "{error}");
}

#[test]
fn sinks_are_spelled_stdout_off_or_a_path() {
    assert_eq!("stdout".parse(), Ok(Sink::Stdout));
    assert_eq!("off".parse(), Ok(Sink::Off));
    assert_eq!("/var/log/x".parse(), Ok(Sink::File("/var/log/x".into())));
    assert!("".parse::<Sink>().is_err());
}
