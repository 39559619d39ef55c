//! What a service's address stands for: its endpoints, its ports, and who may see it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use mtls_tests::client::{Conversation, End, converse};
use mtls_tests::curl::curl;
use mtls_tests::demo::SLEEP;
use mtls_tests::mesh::Service;
use mtls_tests::world::{SERVICE_PORT, TARGET_PORT, To, serve};
use mtls_tests::{Mesh, World};
use serde_json::json;

/// A virtual address that the shared topology does not use.
const fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 1, last)
}

/// A service `name` in `namespace`, with HTTP on 80 and TCP on 9000, whose endpoints are the
/// namespace's workloads with label `app`.
fn put(mesh: &mut Mesh, namespace: &str, name: &str, last: u8, app: &str) {
    mesh.service(&Service {
        namespace,
        name,
        addresses: vec![address(last).into()],
        ports: vec![(80, "http", "HTTP", TARGET_PORT), (9000, "tcp", "TCP", 9000)],
        selector: json!({"app": app}),
    });
}

/// What an enrolled client gets that cannot be served: 503 with HTTP, a reset without.
fn check_unavailable(world: &World, to: SocketAddr, outcome: &str, host: &str) -> Result<()> {
    let client = world.pod("sleep-full");
    for http in [true, false] {
        let mark = world.a().mark();
        if http {
            let got = curl(client, host, to, "/", "canary")?;
            ensure!((got.exit, got.code) == (0, 503), "{to}: {got:?}");
            ensure!(got.body.contains(outcome), "the answer names the reason: {got:?}");
        } else {
            let talk = client.inside(|| converse(to, "not HTTP"))?;
            ensure!(talk == Conversation::Ended(End::Broken), "{to}: {talk:?}");
        }
        let line = world.a().logged(mark, "outbound", |line| line["direction"] == "outbound")?;
        ensure!(line["outcome"] == outcome && line["fault"] == "server", "{line}");
        ensure!(line["destination"]["service"] == host, "{line}");
        ensure!(line["destination"]["endpoint"].is_null() && line["security"] == "none", "{line}");
    }
    let labels = ["direction=\"outbound\"", "fault=\"server\"", &format!("reason=\"{outcome}\"")];
    let failed = world.a().metric("mtls_connections_failed_total", &labels)?;
    ensure!(failed == 2.0, "{failed} with {labels:?}");
    Ok(())
}

#[test]
fn a_service_without_an_endpoint_is_unavailable() -> Result<()> {
    let world = World::with(&[], |mesh, _| put(mesh, "full", "empty", 1, "nobody"), |s| s)?;
    let to = (address(1), 80).into();
    check_unavailable(&world, to, "no_endpoint", "empty.full.svc.cluster.local")
}

#[test]
fn a_port_that_a_service_does_not_have_is_unavailable() -> Result<()> {
    let world = World::new()?;
    // The pods behind it listen there.
    let to = To::Full.v4(TARGET_PORT);
    check_unavailable(&world, to, "no_such_service_port", &To::Full.host())
}

#[test]
fn a_service_is_for_those_to_whom_it_is_exported() -> Result<()> {
    let mut world = World::with(
        &[],
        |mesh, _| {
            for (namespace, last, exported) in [
                ("partial", 1, json!(["."])),
                ("partial", 2, json!(["full"])),
                ("partial", 3, json!(["elsewhere", "full"])),
                ("full", 4, json!(["."])),
            ] {
                let spec = json!({
                    "hosts": [format!("exported-{last}.{namespace}.svc.cluster.local")],
                    "addresses": [address(last)],
                    "ports": [{"number": 9000, "name": "tcp", "protocol": "TCP"}],
                    "location": "MESH_INTERNAL",
                    "resolution": "STATIC",
                    "workloadSelector": {"labels": {"app": "httpbin"}},
                    "exportTo": exported,
                });
                let name = format!("exported-{last}");
                mesh.put("networking.istio.io/v1", "ServiceEntry", namespace, &name, spec);
            }
        },
        |spec| spec,
    )?;
    for pod in ["httpbin-full", "httpbin-partial", "plain-partial"] {
        world.serve(pod, "echo", 9000)?;
    }
    let client = world.pod("sleep-full");
    for (last, seen) in [(1, false), (2, true), (3, true), (4, true)] {
        let mark = world.a().mark();
        let to: SocketAddr = (address(last), 9000).into();
        let talk = client.inside(|| converse(to, "do I see you?"))?;
        ensure!(talk.worked() == seen, "{to}: {talk:?}");
        let line = world.a().logged(mark, "outbound", |line| line["direction"] == "outbound")?;
        let (outcome, fault) = if seen { ("ok", "none") } else { ("not_exported", "policy") };
        ensure!(line["outcome"] == outcome && line["fault"] == fault, "{line}");
    }
    Ok(())
}

#[test]
fn each_endpoint_of_a_mixed_service_has_its_own_answer() -> Result<()> {
    let mut world = World::new()?;
    for pod in ["httpbin-partial", "plain-partial"] {
        world.serve(pod, "echo", 9000)?;
    }
    let (client, mut kinds) = (world.pod("sleep-full"), BTreeSet::new());
    // Either endpoint may be chosen: all of 24 on one side happens once in eight million runs.
    for _ in 0..24 {
        let mark = world.a().mark();
        ensure!(client.inside(|| converse(To::Partial.v4(9000), "who?"))?.worked());
        let line = world.a().logged(mark, "outbound", |line| line["direction"] == "outbound")?;
        let endpoint = &line["destination"]["endpoint"];
        let mutual = endpoint == &json!(world.pod("httpbin-partial").v4(9000));
        ensure!(mutual || endpoint == &json!(world.pod("plain-partial").v4(9000)), "{line}");
        let security = if mutual { "mutual_tls" } else { "plaintext" };
        ensure!(line["security"] == security, "{line}");
        ensure!(line["destination"]["identity"].is_null() != mutual, "{line}");
        ensure!(line["destination"]["service"] == To::Partial.host(), "{line}");
        kinds.insert(mutual);
    }
    ensure!(kinds.len() == 2, "only one endpoint was chosen in 24 connections");
    Ok(())
}

/// One that refuses and one whose host is gone: who cannot be reached has heard nothing.
#[test]
fn an_endpoint_that_cannot_be_reached_costs_no_connection() -> Result<()> {
    const PORT: u16 = 9100;
    let mut world = World::with(
        &[],
        |mesh, bed| {
            let nobody = json!({"address": "10.244.2.250"});
            let of = |pod: &str| json!({"address": bed.pod(pod).v4(0).ip()});
            let spec = json!({
                "hosts": ["halved.full.svc.cluster.local"],
                "addresses": [address(9)],
                "ports": [{"number": PORT, "name": "tcp", "protocol": "TCP"}],
                "location": "MESH_INTERNAL",
                "resolution": "STATIC",
                "endpoints": [of("plain-partial"), nobody, of("sleep-legacy")],
            });
            mesh.put("networking.istio.io/v1", "ServiceEntry", "full", "halved", spec);
        },
        |spec| spec,
    )?;
    world.serve("plain-partial", "echo", PORT)?;
    let client = world.pod("sleep-full");
    let to: SocketAddr = (address(9), PORT).into();
    let talks = std::thread::scope(|scope| -> Vec<_> {
        let talk = || client.inside(|| converse(to, "is anybody there?"));
        let all: Vec<_> = (0..24).map(|_| scope.spawn(talk)).collect();
        all.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    for talk in talks {
        let talk = talk?;
        ensure!(talk.worked(), "{talk:?}");
    }
    Ok(())
}

#[test]
fn without_auto_mtls_traffic_is_plaintext_and_strict_refuses_it() -> Result<()> {
    let mut world = World::with(&[], |_, _| {}, |spec| spec.with("--enable-auto-mtls", "false"))?;
    world
        .a()
        .said(0, "a warning", |line| line.contains("WARN") && line.contains("auto mTLS is off"))?;
    let client = world.pod("sleep-full").clone();
    let get = || curl(&client, &To::Full.host(), To::Full.v4(SERVICE_PORT), "/headers", "canary");
    let mark = world.b().mark();
    let got = get()?;
    ensure!(got.code == 200, "{got:?}");
    let line = world.b().logged(mark, "inbound", |line| line["direction"] == "inbound")?;
    ensure!(line["security"] == "plaintext" && line["source"]["identity"].is_null(), "{line}");

    world.change(|mesh| {
        mesh.mode("full", "httpbin", "STRICT");
    })?;
    let (a, b) = (world.a().mark(), world.b().mark());
    let got = get()?;
    // The server closes without a word; the client's own daemon says so.
    ensure!(got.code == 503 && got.body.contains("upstream_reset"), "{got:?}");
    let line = world.a().logged(a, "outbound", |line| line["direction"] == "outbound")?;
    ensure!(line["outcome"] == "upstream_reset" && line["security"] == "plaintext", "{line}");
    let line = world.b().logged(b, "inbound", |line| line["direction"] == "inbound")?;
    ensure!(line["outcome"] == "plaintext_refused" && line["fault"] == "policy", "{line}");

    // A rule still asks for it.
    world.change(|mesh| {
        mesh.destination_rule("full", "httpbin", &To::Full.host(), "ISTIO_MUTUAL");
    })?;
    let mark = world.b().mark();
    let got = get()?;
    ensure!(got.code == 200, "{got:?}");
    let line = world.b().logged(mark, "inbound", |line| line["direction"] == "inbound")?;
    ensure!(line["security"] == "mutual_tls" && line["source"]["identity"] == SLEEP, "{line}");
    Ok(())
}

#[test]
fn an_endpoints_own_port_goes_before_the_services_target_port() -> Result<()> {
    let world = World::with(
        &[],
        |mesh, bed| {
            put(mesh, "full", "target", 1, "httpbin");
            let labels = json!({"app": "httpbin", "security.istio.io/tlsMode": "istio"});
            let spec = json!({
                "address": bed.pod("httpbin-full").v4,
                "labels": labels,
                "serviceAccount": "httpbin",
                // By the port's name in the service.
                "ports": {"tcp": 9100},
            });
            mesh.put("networking.istio.io/v1", "WorkloadEntry", "full", "httpbin-full-v4", spec);
            // Policies speak of the port in the pod.
            mesh.mode_by_port("full", "httpbin", "PERMISSIVE", &[(9100, "STRICT")]);
        },
        |spec| spec,
    )?;
    let server = world.pod("httpbin-full");
    let _echo = serve(server, "echo", 9100)?;
    let client = world.pod("sleep-full");
    let mark = world.b().mark();
    let talk = client.inside(|| converse((address(1), 9000).into(), "which port?"))?;
    ensure!(talk.worked(), "{talk:?}");
    let line = world.b().logged(mark, "inbound", |line| line["direction"] == "inbound")?;
    ensure!(line["destination"]["address"] == json!(server.v4(9100)), "{line}");
    ensure!(line["mode"] == "STRICT", "{line}");
    let got = curl(client, "target", (address(1), 80).into(), "/headers", "canary")?;
    ensure!(got.code == 200, "the target port of the other: {got:?}");

    // A plaintext client: refused at the one port, served at the other.
    let legacy = world.pod("sleep-legacy");
    let talk = legacy.inside(|| converse(server.v4(9100), "plaintext"))?;
    ensure!(talk == Conversation::Ended(End::Broken), "{talk:?}");
    let got = curl(legacy, "target", server.v4(TARGET_PORT), "/headers", "canary")?;
    ensure!(got.code == 200, "{got:?}");
    Ok(())
}

#[test]
fn a_policy_holds_in_its_own_namespace_only() -> Result<()> {
    let mut world = World::new()?;
    let reach = |world: &World, server: &str| -> Result<u16> {
        let to = world.pod(server).v4(TARGET_PORT);
        Ok(curl(world.pod("sleep-legacy"), server, to, "/headers", "canary")?.code)
    };
    // The labels are the same in both namespaces; first with a selector, then without.
    world.change(|mesh| {
        mesh.mode("partial", "httpbin", "STRICT");
    })?;
    ensure!((reach(&world, "httpbin-partial")?, reach(&world, "httpbin-full")?) == (0, 200));
    world.change(|mesh| {
        mesh.remove("PeerAuthentication", "partial", "httpbin").namespace_mode("full", "STRICT");
    })?;
    ensure!((reach(&world, "httpbin-partial")?, reach(&world, "httpbin-full")?) == (200, 0));

    // A rule that its namespace keeps to itself does not bind clients of others.
    world.change(|mesh| {
        let spec = json!({
            "host": To::Full.host(),
            "exportTo": ["."],
            "trafficPolicy": {"tls": {"mode": "DISABLE"}},
        });
        mesh.put("networking.istio.io/v1", "DestinationRule", "legacy", "mine", spec);
    })?;
    let to = To::Full.v4(SERVICE_PORT);
    let got = curl(world.pod("sleep-full"), &To::Full.host(), to, "/headers", "canary")?;
    ensure!(got.code == 200, "mTLS, as STRICT wants it: {got:?}");
    Ok(())
}
