//! Who may reach whom: a photo service whose frontend must not reach the store behind its backend,
//! and teams whose policies end where their namespaces do.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use mtls_tests::bed::{PodSpec, Testbed};
use mtls_tests::client::{Conversation, End, converse};
use mtls_tests::curl::{Curl, get};
use mtls_tests::mesh::{Mesh, Service};
use mtls_tests::world::{SERVICE_PORT, TARGET_PORT, World, event};
use serde_json::{Value, json};

/// A port of the store that speaks no HTTP.
const TCP_PORT: u16 = 9000;
/// Pods by name: their namespace, their node, the last number of their service's address.
const PODS: [(&str, &str, usize, u8); 3] = [
    ("photo-frontend", "photo-ns", 0, 1),
    ("photo-backend", "photo-ns", 1, 2),
    ("datastore", "datastore-ns", 0, 3),
];

/// The example's town: three workloads in two namespaces, each with its own service account, STRICT
/// everywhere.
fn photo() -> Result<World> {
    let pods: Vec<PodSpec> =
        PODS.iter().map(|(name, _, node, number)| PodSpec::new(*node, name, 10 + number)).collect();
    let configure = |bed: &Testbed| {
        let mut mesh = Mesh::new(bed.config_directory());
        for (name, namespace, node, _) in PODS {
            mesh.enrol(&bed.nodes[node], bed.pod(name), namespace, name, name);
            mesh.service(&Service {
                namespace,
                name,
                addresses: vec![service(name, 0).ip()],
                ports: vec![
                    (SERVICE_PORT, "http", "HTTP", TARGET_PORT),
                    (TCP_PORT, "tcp", "TCP", TCP_PORT),
                ],
                selector: json!({"app": name}),
            });
        }
        mesh.namespace_mode("istio-system", "STRICT");
        mesh
    };
    let mut world = World::of(&pods, configure)?;
    for (name, ..) in PODS {
        world.serve(name, "http", TARGET_PORT)?;
    }
    world.serve("datastore", "echo", TCP_PORT)?;
    world.start(|spec| spec)?;
    Ok(world)
}

fn service(name: &str, port: u16) -> SocketAddr {
    let number = PODS.iter().find(|pod| pod.0 == name).map_or(0, |pod| pod.3);
    ([10, 96, 0, number], port).into()
}

fn namespace(name: &str) -> &'static str {
    PODS.iter().find(|pod| pod.0 == name).map_or("", |pod| pod.1)
}

fn ask(world: &World, from: &str, to: &str) -> Result<Curl> {
    let host = format!("{to}.{}", namespace(to));
    get(world.pod(from), &host, SERVICE_PORT, service(to, SERVICE_PORT), "/headers", "canary")
}

/// Who reaches whom over HTTP: 200 or 403, for all pairs that are asked about.
fn check(world: &World, expected: &[(&str, &str, u16)]) -> Result<()> {
    for (from, to, code) in expected {
        let got = ask(world, from, to)?;
        ensure!((got.exit, got.code) == (0, *code), "{from} to {to}, {code} expected: {got:?}");
        if *code == 403 {
            ensure!(got.body.trim() == "RBAC: access denied", "{from} to {to}: {got:?}");
        } else {
            let echo = got.echo()?;
            let header = echo["headers"]["X-Forwarded-Client-Cert"].as_str().unwrap_or_default();
            let uri = format!("URI=spiffe://cluster.local/ns/{}/sa/{from}", namespace(from));
            ensure!(header.ends_with(&uri), "{from} to {to}: {header:?}");
        }
    }
    Ok(())
}

fn policy(mesh: &mut Mesh, namespace: &str, name: &str, spec: Value) {
    mesh.put("security.istio.io/v1", "AuthorizationPolicy", namespace, name, spec);
}

fn principal(name: &str) -> Value {
    let principal = format!("cluster.local/ns/{}/sa/{name}", namespace(name));
    json!({"from": [{"source": {"principals": [principal]}}]})
}

#[test]
fn the_frontend_reaches_the_backend_and_never_the_datastore() -> Result<()> {
    let mut world = photo()?;
    let all_open = [
        ("photo-frontend", "photo-backend", 200),
        ("photo-backend", "datastore", 200),
        ("photo-frontend", "datastore", 200),
    ];
    check(&world, &all_open)?;
    world.change(|mesh| {
        let spec = json!({
            "selector": {"matchLabels": {"app": "datastore"}},
            "action": "ALLOW",
            "rules": [principal("photo-backend")],
        });
        policy(mesh, "datastore-ns", "datastore", spec);
    })?;
    check(
        &world,
        &[
            ("photo-frontend", "photo-backend", 200),
            ("photo-backend", "datastore", 200),
            ("photo-frontend", "datastore", 403),
        ],
    )?;
    // The same without HTTP: the connection is closed, and the store hears nothing.
    let to = service("datastore", TCP_PORT);
    let talk = |from: &str| world.pod(from).inside(|| converse(to, "a photo"));
    ensure!(talk("photo-backend")?.worked(), "the backend");
    let store = world.servers.last().context("the store")?;
    event(store, 0, "closed")?;
    let (mark, heard) = (world.a().mark(), store.stdout.len());
    // A reset may come before connect() has looked.
    let denied = talk("photo-frontend")?;
    ensure!(!denied.worked() && denied != Conversation::Ended(End::Silent), "{denied:?}");
    let line = world.a().logged(mark, "the frontend's", |line| {
        let identity = line["source"]["identity"].as_str().unwrap_or_default();
        line["direction"] == "inbound" && identity.ends_with("/sa/photo-frontend")
    })?;
    ensure!(line["outcome"] == "authorization_denied" && line["fault"] == "policy", "{line}");
    let heard = store.stdout.json_after(heard);
    ensure!(heard.is_empty(), "the store heard {heard:?}");

    world.change(|mesh| {
        mesh.remove("AuthorizationPolicy", "datastore-ns", "datastore");
    })?;
    check(&world, &all_open)
}

#[test]
fn allow_and_deny_lists_speak_of_principals_namespaces_and_service_accounts() -> Result<()> {
    let mut world = photo()?;
    let sources = [
        json!({"principals": ["cluster.local/ns/photo-ns/sa/photo-frontend"]}),
        json!({"principals": ["*/sa/photo-frontend"]}),
        json!({"serviceAccounts": ["photo-ns/photo-frontend"]}),
        json!({"namespaces": ["photo-ns"], "notPrincipals": ["*/sa/photo-backend"]}),
    ];
    for source in sources {
        for (action, frontend, backend) in [("DENY", 403, 200), ("ALLOW", 200, 403)] {
            world.change(|mesh| {
                let spec = json!({"action": action, "rules": [{"from": [{"source": source}]}]});
                policy(mesh, "datastore-ns", "list", spec);
            })?;
            check(
                &world,
                &[
                    ("photo-frontend", "datastore", frontend),
                    ("photo-backend", "datastore", backend),
                ],
            )?;
        }
    }
    // DENY goes before ALLOW, whoever wrote it.
    world.change(|mesh| {
        policy(mesh, "datastore-ns", "list", json!({"rules": [principal("photo-backend")]}));
        let spec = json!({"action": "DENY", "rules": [principal("photo-backend")]});
        policy(mesh, "datastore-ns", "deny", spec);
    })?;
    check(&world, &[("photo-frontend", "datastore", 403), ("photo-backend", "datastore", 403)])
}

#[test]
fn what_one_team_says_ends_where_its_namespace_does() -> Result<()> {
    let mut world = photo()?;
    // Denies everybody, selects by labels that the others' workloads have, or selects nobody.
    let selectors = [
        json!({}),
        json!({"selector": {"matchLabels": {"app": "datastore"}}}),
        json!({"selector": {"matchLabels": {"app": "nobody"}}}),
    ];
    for mut spec in selectors {
        world.change(|mesh| {
            spec["action"] = json!("DENY");
            spec["rules"] = json!([{}]);
            policy(mesh, "photo-ns", "team", spec.clone());
        })?;
        let own = if spec.get("selector").is_none() { 403 } else { 200 };
        check(
            &world,
            &[
                ("photo-frontend", "datastore", 200),
                ("photo-backend", "datastore", 200),
                ("photo-frontend", "photo-backend", own),
            ],
        )?;
    }
    // The root namespace speaks for all.
    world.change(|mesh| {
        mesh.remove("AuthorizationPolicy", "photo-ns", "team");
        let spec = json!({"action": "DENY", "rules": [principal("photo-frontend")]});
        policy(mesh, "istio-system", "all", spec);
    })?;
    check(
        &world,
        &[
            ("photo-frontend", "datastore", 403),
            ("photo-frontend", "photo-backend", 403),
            ("photo-backend", "datastore", 200),
        ],
    )
}
