//! What an operator sees of a connection: access log, metrics, readiness, status.
#![forbid(unsafe_code)]

use std::process::Command;

use anyhow::{Context, Result, ensure};
use mtls_tests::World;
use mtls_tests::client::{Conversation, connect, converse, download, ping};
use mtls_tests::demo::SLEEP;
use mtls_tests::process::{output, sibling};
use mtls_tests::wait::until;
use mtls_tests::world::{To, serve};
use serde_json::{Value, json};

const PORT: u16 = 9000;
const HTTPBIN: &str = "spiffe://cluster.local/ns/full/sa/httpbin";

/// What a client of the `source` server says, and how many bytes it gets for it.
const ASKED: u64 = 2000;
const ASKING: u64 = "2000\n".len() as u64;

/// A world in which `sleep-full` has said eleven bytes to the echo server of `full`.
fn stand() -> Result<World> {
    let mut world = World::new()?;
    world.serve("httpbin-full", "echo", PORT)?;
    let talk = world.pod("sleep-full").inside(|| converse(To::Full.v4(PORT), "eleven byte"))?;
    ensure!(talk.worked(), "{talk:?}");
    Ok(world)
}

fn check_fields(line: &Value, fields: &[(&str, Value)]) {
    for (pointer, expected) in fields {
        assert_eq!(line.pointer(pointer), Some(expected), "{pointer} of {line}");
    }
}

#[test]
fn the_access_log_has_both_sides_of_a_connection() -> Result<()> {
    let world = stand()?;
    let out = world.a().logged(0, "outbound", |line| line["direction"] == "outbound")?;
    let inn = world.b().logged(0, "inbound", |line| line["direction"] == "inbound")?;
    let endpoint = world.pod("httpbin-full").v4(PORT).to_string();
    for (line, node) in [(&out, world.node(0)), (&inn, world.node(1))] {
        check_fields(
            line,
            &[
                ("/node", json!(node.name)),
                ("/source/identity", json!(SLEEP)),
                ("/destination/identity", json!(HTTPBIN)),
                ("/security", json!("mutual_tls")),
                ("/tls/version", json!("TLSv1.3")),
                ("/bytes_sent", json!(11)),
                ("/bytes_received", json!(11)),
                ("/outcome", json!("ok")),
                ("/fault", json!("none")),
                ("/detail", Value::Null),
            ],
        );
        for name in ["cipher", "group"] {
            let value = line["tls"][name].as_str().unwrap_or_default();
            ensure!(!value.is_empty() && value != "unknown", "{name} of {line}");
        }
        ensure!(line["duration_ms"].is_number(), "{line}");
        let time = line["time"].as_str().unwrap_or_default();
        ensure!(time.len() >= 20 && time.contains('T') && time.ends_with('Z'), "{line}");
    }
    check_fields(
        &out,
        &[
            ("/workload", json!("full/sleep-full")),
            ("/destination/address", json!(To::Full.v4(PORT).to_string())),
            ("/destination/endpoint", json!(endpoint)),
            ("/destination/service", json!(To::Full.host())),
        ],
    );
    check_fields(
        &inn,
        &[
            ("/workload", json!("full/httpbin-full")),
            ("/destination/address", json!(endpoint)),
            ("/mode", json!("PERMISSIVE")),
        ],
    );
    Ok(())
}

#[test]
fn metrics_have_istios_names_and_labels() -> Result<()> {
    let mut world = World::new()?;
    world.serve("httpbin-full", "source", PORT)?;
    let got = world.pod("sleep-full").inside(|| download(To::Full.v4(PORT), ASKED))?;
    ensure!(got["bytes"] == ASKED, "{got}");
    let labels = [
        "source_workload=\"sleep-full\"",
        "source_workload_namespace=\"full\"",
        &format!("source_principal=\"{SLEEP}\""),
        "destination_workload=\"httpbin-full\"",
        "destination_workload_namespace=\"full\"",
        &format!("destination_principal=\"{HTTPBIN}\""),
        "request_protocol=\"tcp\"",
    ];
    let mut source = labels.to_vec();
    source.extend(["reporter=\"source\"", "connection_security_policy=\"unknown\""]);
    let service = format!("destination_service=\"{}\"", To::Full.host());
    source.extend([service.as_str(), "destination_service_name=\"httpbin\""]);
    let mut destination = labels.to_vec();
    destination.extend(["reporter=\"destination\"", "connection_security_policy=\"mutual_tls\""]);
    for (daemon, labels) in [(world.a(), source), (world.b(), destination)] {
        for (name, value) in [
            ("istio_tcp_connections_opened_total", 1.0),
            ("istio_tcp_connections_closed_total", 1.0),
            ("istio_tcp_sent_bytes_total", ASKED as f64),
            ("istio_tcp_received_bytes_total", ASKING as f64),
        ] {
            until(mtls_tests::daemon::LOG, name, || match daemon.metric(name, &labels) {
                Ok(now) if now == value => Ok(()),
                Ok(now) => Err(format!("{now} with {labels:?}")),
                Err(error) => Err(format!("{error:#}")),
            })?;
        }
    }
    ensure!(world.b().metric("mtls_workloads_enrolled", &[])? == 2.0);
    ensure!(world.b().metric("mtls_config_generation", &[])? >= 1.0);
    // One identity on node a, two on node b, each issued once.
    for (daemon, identities) in [(world.a(), 1.0), (world.b(), 2.0)] {
        let issued = |result: &str| {
            daemon.metric("mtls_svids_issued_total", &[&format!("result=\"{result}\"")])
        };
        ensure!((issued("ok")?, issued("failed")?) == (identities, 0.0), "SVIDs issued");
        let reloads = |result: &str| {
            daemon.metric("mtls_config_reloads_total", &[&format!("result=\"{result}\"")])
        };
        ensure!((reloads("accepted")?, reloads("refused")?) == (1.0, 0.0), "reloads");
    }
    ensure!(world.a().decided("outbound_redirected")? == 1.0);
    ensure!(world.b().decided("inbound_taken")? == 1.0);
    for (daemon, direction) in [(world.a(), "outbound"), (world.b(), "inbound")] {
        let label = format!("direction=\"{direction}\"");
        ensure!(daemon.metric("mtls_handshake_seconds_count", &[&label])? == 1.0, "{direction}");
    }
    let expiry = world.b().metric("mtls_svid_expiry_seconds", &[HTTPBIN])?;
    ensure!(expiry > 43_000.0 && expiry <= 87_000.0, "a day's certificate: {expiry} s left");
    Ok(())
}

#[test]
fn a_handshake_is_counted_while_its_connection_is_open() -> Result<()> {
    let mut world = World::new()?;
    world.serve("httpbin-full", "echo", PORT)?;
    let _open = world.pod("sleep-full").inside(|| {
        let mut stream = connect(To::Full.v4(PORT))?;
        ping(&mut stream, "eleven byte")?;
        Ok(stream)
    })?;
    for (daemon, direction) in [(world.a(), "outbound"), (world.b(), "inbound")] {
        let label = format!("direction=\"{direction}\"");
        ensure!(daemon.metric("mtls_open_connections", &[&label])? == 1.0, "{direction}");
        ensure!(daemon.metric("mtls_handshake_seconds_count", &[&label])? == 1.0, "{direction}");
    }
    Ok(())
}

#[test]
fn readiness_liveness_and_status() -> Result<()> {
    let world = World::new()?;
    for path in ["/healthz/ready", "/healthz/live"] {
        let (code, body) = world.a().http(path)?;
        ensure!(code == 200, "{path}: {code} {body}");
    }
    let status = world.b().status()?;
    ensure!(status["ready"] == true, "{status}");
    let text = status.to_string();
    for name in ["full/httpbin-full", "partial/httpbin-partial", HTTPBIN] {
        ensure!(text.contains(name), "{name} in {status}");
    }
    let mut command = Command::new(sibling("mtls-daemon", "MTLS_DAEMON_BIN")?);
    let spec = &world.b().spec;
    command.args(["status", "--node", &spec.name, "--run-dir"]).arg(&spec.run);
    let output = output(command)?;
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && words.contains("httpbin-full"), "{output:?}");
    ensure!(!format!("{text}{words}").contains("PRIVATE KEY"), "a private key in the status");
    Ok(())
}

#[test]
fn certs_shows_each_certificate_and_never_a_key() -> Result<()> {
    let world = World::new()?;
    let status = world.b().status()?;
    let svids = status["svids"].as_array().context("svids")?;
    ensure!(svids.len() == 2, "a certificate for each identity of the node: {status}");
    let certs = |more: &[&str]| -> Result<String> {
        let mut command = Command::new(sibling("mtls-daemon", "MTLS_DAEMON_BIN")?);
        let spec = &world.b().spec;
        command.args(["certs", "--node", &spec.name, "--run-dir"]).arg(&spec.run).args(more);
        let output = output(command)?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let json = certs(&["-o", "json"])?;
    ensure!(serde_json::from_str::<Value>(&json)? == status["svids"], "{json} {status}");
    let text = certs(&[])?;
    for svid in svids {
        let row = svid["identity"].as_str().and_then(|id| text.lines().find(|it| it.contains(id)));
        let row = row.with_context(|| format!("{svid} in {text}"))?;
        for field in ["serial", "issuer", "not_before", "not_after", "source"] {
            let value = svid[field].as_str().with_context(|| format!("{field} of {svid}"))?;
            ensure!(!value.is_empty() && row.contains(value), "{field} of {svid} in {row}");
        }
        ensure!(svid["last_error"].is_null() && svid["next_renewal"].is_string(), "{svid}");
    }
    ensure!(!format!("{text}{json}").contains("PRIVATE KEY"), "a private key in an answer");
    Ok(())
}

#[test]
fn a_failure_says_whose_fault_it_is() -> Result<()> {
    let world = World::with(
        &[],
        |mesh, _| {
            mesh.destination_rule("full", "httpbin", &To::Legacy.host(), "ISTIO_MUTUAL");
        },
        |spec| spec,
    )?;
    let _echo = serve(world.pod("httpbin-legacy"), "echo", PORT)?;
    let talk = world.pod("sleep-full").inside(|| converse(To::Legacy.v4(PORT), "not HTTP"))?;
    ensure!(matches!(talk, Conversation::Ended(mtls_tests::client::End::Broken)), "{talk:?}");
    let line = world.a().logged(0, "a failure", |line| line["outcome"] != "ok")?;
    check_fields(
        &line,
        &[
            ("/outcome", json!("upstream_tls_failed")),
            ("/fault", json!("server")),
            ("/security", json!("none")),
        ],
    );
    ensure!(line["detail"].is_string(), "{line}");
    let labels = ["direction=\"outbound\"", "reason=\"upstream_tls_failed\"", "fault=\"server\""];
    let failed = world.a().metric("mtls_connections_failed_total", &labels)?;
    ensure!(failed == 1.0, "{failed}");
    Ok(())
}
