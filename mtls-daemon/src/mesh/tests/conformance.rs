//! Tables of rows through a whole snapshot.

use serde_json::{Value, json};

use super::*;
use crate::policy::tests::rows::{rows, tables, text, yaml};

/// The row's service, its endpoint and a client, as an operator would write them.
fn world(row: &Value) -> String {
    let (service, endpoint) = (&row["service"], &row["endpoint"]);
    let mut labels = endpoint["labels"].clone();
    labels["security.istio.io/tlsMode"] = endpoint["tls_mode_label"].clone();
    let object = |kind: &str, name: &str, namespace: &str, spec: Value| {
        json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": kind,
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        })
    };
    let namespace = text(endpoint, "namespace");
    yaml(&json!([
        object(
            "WorkloadEntry",
            "conformance-client",
            text(&row["client"], "namespace"),
            json!({"address": "10.0.0.1", "serviceAccount": "client"}),
        ),
        object(
            "WorkloadEntry",
            "conformance-server",
            namespace,
            json!({"address": "10.0.0.2", "serviceAccount": "server", "labels": labels}),
        ),
        object(
            "ServiceEntry",
            "conformance",
            namespace,
            json!({
                "hosts": [service["host"]],
                "addresses": ["10.96.0.1"],
                "location": "MESH_INTERNAL",
                "ports": [{
                    "number": service["port"],
                    "name": "tcp",
                    "targetPort": endpoint["port"],
                }],
                "workloadSelector": {"labels": endpoint["labels"]},
            }),
        ),
    ]))
}

#[test]
fn client_tls_for_endpoints() {
    for table in tables("client-tls-endpoint") {
        let mut ran = 0;
        for row in rows(&table) {
            // No route selects subsets: their settings are asked of the rule, in `policy`.
            if row["service"]["subset"].is_string() {
                continue;
            }
            let settings =
                MeshSettings { root_namespace: text(row, "root_namespace").into(), ..settings() };
            let built = build_with(settings, &[&(world(row) + &yaml(&row["objects"]))]);
            let snapshot = built.unwrap_or_else(|e| panic!("{}: {e:?}", row["name"])).snapshot;
            let found = answer(&snapshot, &format!("10.96.0.1:{}", row["service"]["port"]), 0);
            let target = format!("10.0.0.2:{}", row["endpoint"]["port"]);
            let expected = match text(row, "expected") {
                "mtls" => format!("mtls {target} "),
                _ => format!("plain {target}"),
            };
            assert!(found.starts_with(&expected), "{}: {found}", row["name"]);
            ran += 1;
        }
        assert!(ran > 3, "only {ran} rows ran");
    }
}
