//! Objects in, answers out: each test names the rule of the policy that it holds to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::plan::{InboundTable, OutboundRow};
use super::snapshot::Built;
use super::*;
use crate::identity::TrustDomain;
use crate::policy::Mode;
use crate::policy::PortProtocol;
use crate::policy::error::{Code, ConfigError};
use crate::policy::parse::Limits;

const MESH: &str = r#"
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: client, namespace: full}
spec: {address: 10.0.0.1, serviceAccount: client, labels: {app: client, security.istio.io/tlsMode: istio}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: server, namespace: full}
spec: {address: 10.0.0.2, serviceAccount: server, labels: {app: server, security.istio.io/tlsMode: istio}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: plain, namespace: full}
spec: {address: 10.0.0.3, serviceAccount: server, labels: {app: server}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: server, namespace: full}
spec:
  hosts: [server.full.svc.cluster.local]
  addresses: [10.96.0.1, "fd00:96::1"]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
  - {number: 8000, name: http, protocol: HTTP, targetPort: 80}
  - {number: 9000, name: tcp, protocol: TCP}
  workloadSelector: {labels: {app: server}}
---
apiVersion: mtls-ebpf.dev/v1alpha1
kind: NodeWorkload
metadata: {name: client, namespace: full}
spec: {node: a, networkNamespace: client, workloadEntries: [client]}
"#;

fn settings() -> MeshSettings {
    MeshSettings {
        trust_domain: TrustDomain::parse("cluster.local").unwrap(),
        trust_domain_aliases: vec![TrustDomain::parse("old.local").unwrap()],
        root_namespace: "istio-system".into(),
        enable_auto_mtls: true,
        mesh_ranges: vec!["10.0.0.0/8".parse().unwrap()],
    }
}

fn build_with(settings: MeshSettings, yaml: &[&str]) -> Result<Built, Vec<ConfigError>> {
    let mut objects = Objects::default();
    for (index, text) in yaml.iter().enumerate() {
        objects.add_file(&format!("{index}.yaml"), text.as_bytes(), &Limits::default());
    }
    Snapshot::build(objects, None, settings, "a", 1)
}

fn build(yaml: &[&str]) -> Snapshot {
    let built = build_with(settings(), yaml).unwrap();
    assert_eq!(built.errors, []);
    built.snapshot
}

fn refused(yaml: &[&str]) -> Vec<String> {
    let errors = match build_with(settings(), yaml) {
        Ok(built) => built.errors,
        Err(errors) => errors,
    };
    // What is in force instead is another matter.
    let wrong = errors.iter().filter(|error| error.code != Code::Refused);
    wrong.map(ToString::to_string).collect()
}

fn authn(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{name: default, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn rule(namespace: &str, host: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: rule, namespace: {namespace}}}\nspec: {{host: {host}, {spec}}}\n"
    )
}

/// `mtls:<expected>`, `plain`, `no-endpoint` or `no-port`, with the address connected to.
fn answer(snapshot: &Snapshot, destination: &str, choice: usize) -> String {
    answer_from(snapshot, "10.0.0.1", destination, choice)
}

fn answer_from(snapshot: &Snapshot, client: &str, destination: &str, choice: usize) -> String {
    let client = snapshot.workload_at(client.parse().unwrap()).unwrap();
    let destination: SocketAddr = destination.parse().unwrap();
    match snapshot.outbound(client, destination, &mut |n| choice.min(n - 1)) {
        OutboundPlan::RulesDisagree { .. } => "disagree".into(),
        OutboundPlan::NoEndpoint { .. } => "no-endpoint".into(),
        OutboundPlan::NoSuchPort { .. } => "no-port".into(),
        OutboundPlan::NotExported { .. } => "not-exported".into(),
        OutboundPlan::Connect { address, tls: ClientTls::Plaintext { .. }, .. } => {
            format!("plain {address}")
        }
        OutboundPlan::Connect { address, tls: ClientTls::IstioMutual { expected, .. }, .. } => {
            let ids: Vec<_> = expected.iter().map(|id| id.as_str()).collect();
            format!("mtls {address} {}", ids.join(" "))
        }
        OutboundPlan::Connect { tls: ClientTls::Refused { .. }, .. } => "refused".into(),
        OutboundPlan::Connect {
            address, tls: ClientTls::Originate { origination, .. }, ..
        } => {
            format!("tls {address} {:?}", origination.ask_for)
        }
    }
}

const SERVER: &str =
    "spiffe://cluster.local/ns/full/sa/server spiffe://old.local/ns/full/sa/server";

#[test]
fn rule_2_4_auto_mtls_decides_for_each_endpoint() {
    let snapshot = build(&[MESH]);
    assert_eq!(answer(&snapshot, "10.96.0.1:8000", 0), format!("mtls 10.0.0.2:80 {SERVER}"));
    assert_eq!(answer(&snapshot, "10.96.0.1:8000", 1), "plain 10.0.0.3:80");
    // A target port is the service port where none is given; v6 falls back to v4 endpoints.
    assert_eq!(answer(&snapshot, "[fd00:96::1]:9000", 1), "plain 10.0.0.3:9000");
    assert_eq!(answer(&snapshot, "[::ffff:10.96.0.1]:9000", 1), "plain 10.0.0.3:9000");
    assert_eq!(answer(&snapshot, "10.96.0.1:81", 0), "no-port");
    // Straight to the workload.
    assert_eq!(answer(&snapshot, "10.0.0.2:1234", 0), format!("mtls 10.0.0.2:1234 {SERVER}"));
    assert_eq!(answer(&snapshot, "10.0.0.3:1234", 0), "plain 10.0.0.3:1234");
}

#[test]
fn unknown_destinations_say_whether_they_are_inside_the_mesh_ranges() {
    let snapshot = build(&[MESH]);
    let client = snapshot.workload_at("10.0.0.1".parse().unwrap()).unwrap();
    for (destination, expected) in [
        ("10.1.1.1:80", "unknown destination inside the mesh ranges"),
        ("192.0.2.1:80", "unknown destination"),
    ] {
        match snapshot.outbound(client, destination.parse().unwrap(), &mut |_| 0) {
            OutboundPlan::Connect {
                tls: ClientTls::Plaintext { because },
                service: None,
                workload: None,
                ..
            } => assert_eq!(&*because, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn rule_2_4_1_auto_mtls_is_off_for_disabled_services_and_when_switched_off() {
    let ns = authn("full", "{mtls: {mode: DISABLE}}");
    assert_eq!(answer(&build(&[MESH, &ns]), "10.96.0.1:8000", 0), "plain 10.0.0.2:80");
    let mesh = authn("istio-system", "{mtls: {mode: DISABLE}}");
    assert_eq!(answer(&build(&[MESH, &mesh]), "10.96.0.1:8000", 0), "plain 10.0.0.2:80");
    let off = MeshSettings { enable_auto_mtls: false, ..settings() };
    let snapshot = build_with(off.clone(), &[MESH]).unwrap().snapshot;
    assert_eq!(answer(&snapshot, "10.96.0.1:8000", 0), "plain 10.0.0.2:80");
    // A rule still forces it.
    let forced = rule("full", "server", "trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}");
    let snapshot = build_with(off, &[MESH, &forced]).unwrap().snapshot;
    assert_eq!(answer(&snapshot, "10.96.0.1:8000", 0), format!("mtls 10.0.0.2:80 {SERVER}"));
    let external = MESH.replace("MESH_INTERNAL", "MESH_EXTERNAL");
    assert_eq!(answer(&build(&[&external]), "10.96.0.1:8000", 0), "plain 10.0.0.2:80");
}

#[test]
fn rule_2_4_3_the_endpoints_port_mode_counts() {
    let policy = authn(
        "full",
        "{selector: {matchLabels: {app: server}}, portLevelMtls: {80: {mode: DISABLE}}}",
    );
    let snapshot = build(&[MESH, &policy]);
    assert_eq!(answer(&snapshot, "10.96.0.1:8000", 0), "plain 10.0.0.2:80");
    assert_eq!(answer(&snapshot, "10.96.0.1:9000", 0), format!("mtls 10.0.0.2:9000 {SERVER}"));
    assert_eq!(answer(&snapshot, "10.0.0.2:80", 0), "plain 10.0.0.2:80");
}

#[test]
fn rule_2_3_a_destination_rule_overrides_auto_mtls() {
    let disable = rule("full", "server", "trafficPolicy: {tls: {mode: DISABLE}}");
    let snapshot = build(&[MESH, &disable]);
    assert_eq!(answer(&snapshot, "10.96.0.1:8000", 0), "plain 10.0.0.2:80");
    // It is for the service; the workload's own address is auto mTLS.
    assert_eq!(answer(&snapshot, "10.0.0.2:80", 0), format!("mtls 10.0.0.2:80 {SERVER}"));
    // Forced towards a server without a proxy: never plaintext.
    let forced = rule("full", "server", "trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}");
    let snapshot = build(&[MESH, &forced]);
    assert_eq!(answer(&snapshot, "10.96.0.1:8000", 1), format!("mtls 10.0.0.3:80 {SERVER}"));
}

#[test]
fn rule_2_2_a_port_entry_replaces_the_top_level() {
    let policy = rule(
        "full",
        "server",
        "trafficPolicy: {tls: {mode: DISABLE}, portLevelSettings: [{port: {number: 9000}}]}",
    );
    let snapshot = build(&[MESH, &policy]);
    assert_eq!(answer(&snapshot, "10.96.0.1:8000", 0), "plain 10.0.0.2:80");
    assert_eq!(answer(&snapshot, "10.96.0.1:9000", 0), format!("mtls 10.0.0.2:9000 {SERVER}"));
}

#[test]
fn rule_2_5_subject_alt_names_replace_the_endpoints_identity() {
    let sans = "trafficPolicy: {tls: {mode: ISTIO_MUTUAL, subjectAltNames: [SAN]}}";
    for (san, expected) in [
        ("spiffe://cluster.local/ns/x/sa/y", "spiffe://cluster.local/ns/x/sa/y"),
        ("server.full", "spiffe://cluster.local/unknown-service-account"),
    ] {
        let policy = rule("full", "server", &sans.replace("SAN", san));
        let built = build_with(settings(), &[MESH, &policy]).unwrap();
        let found = answer(&built.snapshot, "10.96.0.1:8000", 0);
        assert_eq!(found, format!("mtls 10.0.0.2:80 {expected}"));
        assert_eq!(built.warnings.is_empty(), san.starts_with("spiffe"));
    }
}

#[test]
fn an_unknown_service_account_is_expected_to_be_nobody() {
    let plain = MESH.replace("address: 10.0.0.3, serviceAccount: server", "address: 10.0.0.3");
    let forced = rule("full", "server", "trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}");
    assert_eq!(
        answer(&build(&[&plain, &forced]), "10.96.0.1:8000", 1),
        "mtls 10.0.0.3:80 spiffe://cluster.local/unknown-service-account"
    );
}

#[test]
fn rule_2_1_6_a_rule_with_a_selector_is_for_the_clients_that_it_selects() {
    let policy = rule(
        "full",
        "server",
        "workloadSelector: {matchLabels: {app: client}}, trafficPolicy: {tls: {mode: DISABLE}}",
    );
    let snapshot = build(&[MESH, &policy]);
    assert_eq!(answer(&snapshot, "10.96.0.1:8000", 0), "plain 10.0.0.2:80");
    assert_eq!(
        answer_from(&snapshot, "10.0.0.3", "10.96.0.1:8000", 0),
        format!("mtls 10.0.0.2:80 {SERVER}")
    );
}

#[test]
fn headless_services_carry_rules_to_their_endpoints_own_addresses() {
    let headless = MESH.replace("addresses: [10.96.0.1, \"fd00:96::1\"]", "addresses: []");
    let forced = rule("full", "server", "trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}");
    let snapshot = build(&[&headless, &forced]);
    assert_eq!(answer(&snapshot, "10.0.0.3:80", 0), format!("mtls 10.0.0.3:80 {SERVER}"));
    assert_eq!(answer(&snapshot, "10.0.0.3:81", 0), "plain 10.0.0.3:81");
    let client = snapshot.workload_at("10.0.0.1".parse().unwrap()).unwrap();
    let address: IpAddr = "10.0.0.3".parse().unwrap();
    let row = |port, untouched| OutboundRow { address, port, untouched };
    assert_eq!(snapshot.outbound_rows(client), [row(0, true), row(80, false), row(9000, false)]);
}

#[test]
fn outbound_rows_leave_in_the_clear_what_policy_leaves_in_the_clear() {
    let client =
        |snapshot: &Snapshot| snapshot.workload_at("10.0.0.1".parse().unwrap()).unwrap().clone();
    let row = |address: &str, port, untouched| OutboundRow {
        address: address.parse().unwrap(),
        port,
        untouched,
    };
    let snapshot = build(&[MESH]);
    assert_eq!(snapshot.outbound_rows(&client(&snapshot)), [row("10.0.0.3", 0, true)]);
    let policy = authn(
        "full",
        "{selector: {matchLabels: {app: server}}, mtls: {mode: DISABLE}, portLevelMtls: {9: {mode: STRICT}}}",
    );
    let snapshot = build(&[MESH, &policy]);
    assert_eq!(
        snapshot.outbound_rows(&client(&snapshot)),
        [row("10.0.0.2", 0, true), row("10.0.0.2", 9, false), row("10.0.0.3", 0, true)]
    );
    let policy = authn(
        "full",
        "{selector: {matchLabels: {app: server}}, portLevelMtls: {9: {mode: DISABLE}}}",
    );
    let snapshot = build(&[MESH, &policy]);
    assert_eq!(
        snapshot.outbound_rows(&client(&snapshot)),
        [row("10.0.0.2", 9, true), row("10.0.0.3", 0, true)]
    );
}

#[test]
fn inbound_tables_bypass_only_disabled_ports_that_are_not_http() {
    let server: IpAddr = "10.0.0.2".parse().unwrap();
    let table =
        |untouched_by_default, exceptions| InboundTable { untouched_by_default, exceptions };
    let some = "{selector: {matchLabels: {app: server}}, \
                portLevelMtls: {80: {mode: DISABLE}, 7000: {mode: DISABLE}, 9000: {mode: DISABLE}}}";
    // 80 is declared HTTP, 9000 TCP, and nobody declared 7000 or any other.
    for (spec, told, not_told) in [
        ("{mtls: {mode: STRICT}}", InboundTable::default(), InboundTable::default()),
        ("{mtls: {mode: DISABLE}}", table(false, vec![9000]), table(true, vec![80])),
        (some, table(false, vec![9000]), table(false, vec![7000, 9000])),
    ] {
        let snapshot = build(&[MESH, &authn("full", spec)]);
        let workload = snapshot.workload_at(server).unwrap();
        // The application reads X-Forwarded-Client-Cert, or does not.
        assert_eq!(snapshot.inbound_table(workload, true), told, "{spec}");
        assert_eq!(snapshot.inbound_table(workload, false), not_told, "{spec}");
        assert_eq!(snapshot.inbound(workload, 80).protocol, PortProtocol::Http);
        assert_eq!(snapshot.inbound(workload, 9000).protocol, PortProtocol::Tcp);
    }
}

#[test]
fn an_older_snapshots_workload_gets_the_current_policy() {
    let old = build(&[MESH]);
    let server = old.workload_at("10.0.0.2".parse().unwrap()).unwrap().clone();
    let strict = authn("full", "{mtls: {mode: STRICT}}");
    let moved = MESH.replace("10.0.0.2", "10.0.0.9");
    for snapshot in [build(&[MESH, &strict]), build(&[&moved, &strict])] {
        let plan = snapshot.inbound(&server, 80);
        assert_eq!(plan.mode.mode, Mode::Strict);
        assert_eq!(&*plan.mode.because, "PeerAuthentication full/default");
    }
}

#[test]
fn peers_are_known_by_address_and_unknown_otherwise() {
    let snapshot = build(&[MESH]);
    for (address, expected) in [
        ("10.0.0.2", PeerKnowledge::SpeaksMtls),
        ("::ffff:10.0.0.2", PeerKnowledge::SpeaksMtls),
        ("10.0.0.3", PeerKnowledge::Plaintext),
        ("10.0.0.4", PeerKnowledge::Unknown),
    ] {
        assert_eq!(snapshot.peer_knowledge(address.parse().unwrap()), expected, "{address}");
    }
}

#[test]
fn node_workloads_are_filtered_by_node_and_merged() {
    let second = r#"
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: client-v6, namespace: full}
spec: {address: "fd00::1", serviceAccount: client, labels: {app: client, security.istio.io/tlsMode: istio}}
"#;
    let both = MESH.replace("workloadEntries: [client]", "workloadEntries: [client, client-v6]");
    let snapshot = build(&[&both, second]);
    let [only] = snapshot.node_workloads() else { panic!("one workload") };
    assert_eq!(only.place, crate::mesh::Place::Namespace("/run/netns/client".into()));
    assert_eq!(only.workload.addresses.len(), 2);
    let at = |text: &str| snapshot.workload_at(text.parse().unwrap()).unwrap().clone();
    assert!(Arc::ptr_eq(&at("10.0.0.1"), &at("fd00::1")));
    let elsewhere = both.replace("node: a", "node: b");
    assert!(build(&[&elsewhere, second]).node_workloads().is_empty());
    let other_account = second.replace("serviceAccount: client", "serviceAccount: other");
    let errors = refused(&[&both, &other_account]);
    assert!(errors[0].contains("another serviceAccount"), "{errors:?}");
}

#[test]
fn conflicts_name_both_sides() {
    let copy = |from: &str, to: &str| {
        let document = MESH.split("---").find(|d| d.contains(from)).unwrap();
        document.replacen(from, to, 1)
    };
    for (extra, code, places) in [
        (
            copy(
                "name: server, namespace: full}\nspec: {address",
                "name: again, namespace: full}\nspec: {address",
            ),
            "E_CONFLICT",
            vec![
                "1.yaml:2: WorkloadEntry full/again: spec.address",
                "WorkloadEntry full/server (0.yaml:",
            ],
        ),
        (
            copy(
                "name: server, namespace: full}\nspec:\n",
                "name: again, namespace: full}\nspec:\n",
            ),
            "E_CONFLICT",
            vec![
                "0.yaml:22: ServiceEntry full/server: spec.addresses[0]: 10.96.0.1:8000",
                "ServiceEntry full/again (1.yaml:2)",
            ],
        ),
        (
            copy(
                "metadata: {name: client, namespace: full}\nspec: {node: a",
                "metadata: {name: again, namespace: full}\nspec: {node: a",
            ),
            "E_CONFLICT",
            vec![
                "spec.networkNamespace: /run/netns/client",
                "spec.workloadEntries: WorkloadEntry full/client",
            ],
        ),
        (
            copy("name: plain, namespace: full", "name: server, namespace: full"),
            "E_OBJECT_DUPLICATE",
            vec!["1.yaml:2: WorkloadEntry full/server: metadata.name", "also at 0.yaml:"],
        ),
        (
            copy("workloadEntries: [client]", "workloadEntries: [nobody]")
                .replace("name: client,", "name: x,")
                .replace("networkNamespace: client", "networkNamespace: x"),
            "E_REFERENCE",
            vec!["spec.workloadEntries[0]: there is no WorkloadEntry full/nobody"],
        ),
    ] {
        let errors = refused(&[MESH, &extra]).join("\n");
        assert!(errors.contains(code), "{errors}");
        for place in places {
            assert!(errors.contains(place), "{place} is not in {errors}");
        }
    }
}

#[test]
fn a_virtual_address_that_is_not_exported_is_refused_and_not_passed_on() {
    let own = MESH.replace("resolution: STATIC", "resolution: STATIC\n  exportTo: ['.']");
    let outsider = r#"
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: client, namespace: other}
spec: {address: 10.0.1.1, serviceAccount: client}
"#;
    let snapshot = build(&[&own, outsider]);
    assert_eq!(answer_from(&snapshot, "10.0.1.1", "10.96.0.1:8000", 0), "not-exported");
    assert_eq!(answer_from(&snapshot, "10.0.1.1", "10.96.0.1:81", 0), "not-exported");
    assert_eq!(answer(&snapshot, "10.96.0.1:8000", 1), "plain 10.0.0.3:80");
}

#[test]
fn of_several_headless_services_the_first_that_the_client_sees_counts() {
    let service = |namespace: &str, export: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: db, namespace: {namespace}}}\n\
             spec: {{hosts: [db.{namespace}.test], location: MESH_INTERNAL, exportTo: [{export}], \
             ports: [{{number: 5432, name: tcp}}], endpoints: [{{address: 10.0.0.3}}]}}\n"
        )
    };
    let forced = rule("other", "db.other.test", "trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}");
    let hidden = service("a", "'.'");
    let seen = service("other", "'*'");
    let snapshot = build(&[MESH, &hidden, &seen, &forced]);
    let found = answer(&snapshot, "10.0.0.3:5432", 0);
    assert_eq!(found, format!("mtls 10.0.0.3:5432 {SERVER}"));
    // Seen as well, it takes back no mTLS that the other one wants (policy.md 2.6).
    let snapshot = build(&[MESH, &service("a", "'*'"), &seen, &forced]);
    assert_eq!(answer(&snapshot, "10.0.0.3:5432", 0), found);
}

#[test]
fn a_port_declared_http_on_one_address_is_http_on_all_of_the_workloads() {
    let second = r#"
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: server-v6, namespace: full}
spec: {address: "fd00::2", serviceAccount: server, labels: {security.istio.io/tlsMode: istio}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: v6, namespace: full}
spec:
  hosts: [v6.full.svc.cluster.local]
  location: MESH_INTERNAL
  ports: [{number: 7000, name: http}]
  endpoints: [{address: "fd00::2"}]
---
apiVersion: mtls-ebpf.dev/v1alpha1
kind: NodeWorkload
metadata: {name: server, namespace: full}
spec: {networkNamespace: /var/run/netns/server, workloadEntries: [server, server-v6]}
"#;
    let disable = authn("full", "{mtls: {mode: DISABLE}}");
    let snapshot = build(&[MESH, second, &disable]);
    for address in ["10.0.0.2", "fd00::2"] {
        let server = snapshot.workload_at(address.parse().unwrap()).unwrap();
        let protocol = snapshot.inbound(server, 7000).protocol;
        assert_eq!(protocol, PortProtocol::Http, "{address}");
        assert_eq!(snapshot.inbound_table(server, false).exceptions, [80, 7000], "{address}");
    }
    // /var/run is /run: two claims on one namespace are seen as such.
    let again = "apiVersion: mtls-ebpf.dev/v1alpha1\nkind: NodeWorkload\n\
                 metadata: {name: z, namespace: full}\n\
                 spec: {networkNamespace: /run/netns/server, workloadEntries: [plain]}\n";
    let errors = refused(&[MESH, second, again]);
    assert!(
        errors[0].contains("/run/netns/server is also of NodeWorkload full/server"),
        "{errors:?}"
    );
}

#[test]
fn rule_2_1_3_any_name_of_a_service_may_carry_its_rule_and_names_have_no_case() {
    let named = MESH.replace(
        "hosts: [server.full.svc.cluster.local]",
        "hosts: [alias.example, Server.Full.svc.cluster.local]",
    );
    let wide = rule("full", "'*.example'", "trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}");
    let exact = rule("full", "server", "trafficPolicy: {tls: {mode: DISABLE}}")
        .replace("name: rule", "name: exact");
    let snapshot = build(&[&named, &wide, &exact]);
    assert_eq!(answer(&snapshot, "10.96.0.1:8000", 0), "plain 10.0.0.2:80");
    let twice = named.replace("alias.example", "SERVER.full.svc.cluster.local");
    assert!(refused(&[&twice])[0].contains("is there twice"));
}

#[test]
fn wrong_objects_are_refused_with_line_field_and_code() {
    for (from, to, expected) in [
        ("10.96.0.1,", "10.96.0.0/24,", "spec.addresses[0]: \"10.96.0.0/24\" is a range"),
        (
            "address: 10.0.0.3",
            "address: host.example",
            "spec.address: \"host.example\" is not an IP",
        ),
        ("networkNamespace: client", "networkNamespace: ../x", "is neither an absolute path"),
        (
            "networkNamespace: client",
            "networkNameSpace: client",
            "spec.networkNamespace: is required",
        ),
        ("node: a", "node: ", "spec.node: is empty"),
        ("address: 10.0.0.3", "address: 127.0.0.3", "127.0.0.3 is a loopback address"),
        ("address: 10.0.0.3", "address: '::ffff:127.0.0.3'", "is a loopback address"),
        ("address: 10.0.0.3", "address: 169.254.0.3", "is a link-local address"),
        ("address: 10.0.0.3", "address: 'fe80::3'", "is a link-local address"),
        ("address: 10.0.0.3", "address: 224.0.0.3", "is a multicast address"),
        ("address: 10.0.0.3", "address: '::'", "is the unspecified address"),
        ("10.96.0.1,", "255.255.255.255,", "spec.addresses[0]: 255.255.255.255 is the broadcast"),
        ("number: 8000", "number: 0", "spec.ports[0].number: 0 is not a port"),
        (
            "resolution: STATIC",
            "resolution: DYNAMIC_DNS",
            "spec.resolution: DYNAMIC_DNS is not supported",
        ),
        (
            "address: 10.0.0.2, serviceAccount: server,",
            "address: 10.0.0.2,",
            "spec.serviceAccount: is required",
        ),
        ("kind: NodeWorkload", "kind: NodeWorkloads", "NodeWorkloads is not supported"),
        ("networking.istio.io/v1\n", "networking.istio.io/v2\n", "has no version \"v2\""),
    ] {
        assert!(MESH.contains(from), "{from}");
        let errors = refused(&[&MESH.replacen(from, to, 1)]);
        assert!(errors[0].contains(expected), "{expected} is not in {errors:?}");
    }
    let errors = refused(&[&MESH.replacen("number: 8000", "number: zwei", 1)]);
    assert_eq!(
        errors,
        ["0.yaml:26: ServiceEntry full/server: spec.ports[0].number: a port number, 1-65535, \
          is expected, this is a string [E_FIELD_TYPE]"]
    );
}

#[test]
fn server_names_are_valid_dns_names() {
    for (host, expected) in [
        ("b.ns1.svc.cluster.local", "outbound_.80_._.b.ns1.svc.cluster.local"),
        ("*.example.com", "outbound_.80_._.name.ns"),
    ] {
        assert_eq!(&*naming::service_sni(80, host, "name", "ns"), expected);
    }
    let long = "a".repeat(64);
    assert_eq!(&*naming::service_sni(80, &long, &long, "ns"), "outbound_.80_._.unnamed");
    assert_eq!(&*naming::direct_sni(&long, "ns"), "workload.unnamed");
}

mod acceptance;
mod hosts;
mod origination;
mod owners;
mod unmatched;
