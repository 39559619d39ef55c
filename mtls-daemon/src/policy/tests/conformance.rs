//! Rows that other projects' tests assert, read from the directory that `MTLS_CONFORMANCE` names.

use std::path::PathBuf;

use serde_json::Value;

use super::*;

/// The rows of one file; None when the directory is not given.
fn file(name: &str) -> Option<Value> {
    let dir = PathBuf::from(std::env::var_os("MTLS_CONFORMANCE")?);
    let text = std::fs::read_to_string(dir.join(name)).expect("a conformance file");
    Some(serde_json::from_str(&text).expect("a conformance file is JSON"))
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} in {value}"))
}

/// JSON is YAML: objects go through the same reader as files.
fn objects(list: &Value) -> (Vec<PeerAuthentication>, Vec<DestinationRule>) {
    let mut yaml = String::new();
    for object in list.as_array().expect("a list of objects") {
        let mut object = object.clone();
        // Some rows carry names with spaces, which no API server accepts.
        let name = text(&object["metadata"], "name").replace(' ', "-");
        object["metadata"]["name"] = name.into();
        yaml += &format!("---\n{object}\n");
    }
    let (authentications, rules, report) = read(&yaml);
    assert_eq!(report.errors, [], "{yaml}");
    (authentications, rules)
}

fn label_map(value: &Value) -> BTreeMap<String, String> {
    serde_json::from_value(value.clone()).unwrap_or_default()
}

fn rows(file: &Value) -> &Vec<Value> {
    file["cases"].as_array().expect("cases")
}

#[test]
fn peer_authentication_composition() {
    let Some(file) = file("authn-compose.json") else { return };
    for row in rows(&file) {
        let (list, _) = objects(&row["policies"]);
        let all = PeerAuthentications::new(text(row, "root_namespace"), list);
        let workload = &row["workload"];
        let modes =
            all.workload_modes(text(workload, "namespace"), &label_map(&workload["labels"]));
        let expected = &row["expected"];
        assert_eq!(modes.default.mode.to_string(), text(expected, "mode"), "{}", row["name"]);
        for (port, mode) in expected["ports"].as_object().expect("ports") {
            let port = port.parse().expect("a port");
            assert_eq!(modes.at(port).mode.to_string(), mode.as_str().unwrap(), "{}", row["name"]);
        }
    }
}

#[test]
fn namespace_and_service_modes() {
    if let Some(file) = file("authn-selection.json") {
        for row in rows(&file) {
            let (list, _) = objects(&row["policies"]);
            let all = PeerAuthentications::new(text(row, "root_namespace"), list);
            let mode = all.namespace_mode(text(&row["workload"], "namespace")).mode.to_string();
            // UNKNOWN: nothing is set anywhere, which counts as PERMISSIVE.
            let expected = text(row, "expected_namespace_mode").replace("UNKNOWN", "PERMISSIVE");
            assert_eq!(mode, expected, "{}", row["name"]);
        }
    }
    let Some(file) = file("client-service-mode.json") else { return };
    for row in rows(&file) {
        // A headless service is decided for each endpoint, not as a whole; an external one never
        // gets as far as its mode.
        if text(&row["service"], "resolution") == "headless" {
            continue;
        }
        let (list, _) = objects(&row["objects"]);
        let all = PeerAuthentications::new(text(row, "root_namespace"), list);
        let mode = all.namespace_mode(text(&row["service"], "namespace")).mode;
        assert_eq!(mode.to_string(), text(row, "expected"), "{}", row["name"]);
    }
}

#[test]
fn destination_rule_look_up() {
    let Some(file) = file("destinationrule-lookup.json") else { return };
    let mut list = file["objects"].clone();
    for object in list.as_array_mut().expect("a list") {
        let export = &mut object["spec"]["exportTo"];
        // "*" beside names is refused when read; the rows mean every namespace by it.
        if export.as_array().is_some_and(|values| values.iter().any(|value| value == "*")) {
            *export = serde_json::json!(["*"]);
        }
    }
    let (_, rules) = objects(&list);
    let all = DestinationRules::new(text(&file, "root_namespace"), rules);
    for row in rows(&file) {
        let found = all.find(
            text(row, "proxy_namespace"),
            text(row, "service_namespace"),
            &[text(row, "host")],
        );
        let subsets = found.and_then(|found| found.otherwise).map(|rule| {
            rule.subsets.iter().map(|subset| subset.name.to_string()).collect::<Vec<_>>()
        });
        let expected: Option<Vec<String>> =
            serde_json::from_value(row["expected_subsets"].clone()).expect("a list or null");
        assert_eq!(subsets, expected, "{}", row["name"]);
    }
}

#[test]
fn host_relations() {
    let Some(file) = file("host-match.json") else { return };
    for row in rows(&file) {
        let (a, b) = (text(row, "a"), text(row, "b"));
        let found = match text(row, "op") {
            "matches" => host::matches(a, b),
            _ => host::subset_of(a, b),
        };
        assert_eq!(Some(found), row["expected"].as_bool(), "{}", row["name"]);
    }
}

#[test]
fn client_tls_for_endpoints() {
    let Some(file) = file("client-tls-endpoint.json") else { return };
    for row in rows(&file) {
        let (authentications, rules) = objects(&row["objects"]);
        let root = text(row, "root_namespace");
        let authentications = PeerAuthentications::new(root, authentications);
        let rules = DestinationRules::new(root, rules);
        let (service, endpoint) = (&row["service"], &row["endpoint"]);
        let namespace = text(endpoint, "namespace");
        let found =
            rules.find(text(&row["client"], "namespace"), namespace, &[text(service, "host")]);
        let rule = found.and_then(|found| found.otherwise);
        let port = u16::try_from(service["port"].as_u64().unwrap()).unwrap();
        let setting = rule.as_ref().and_then(|rule| rule.tls(port, service["subset"].as_str()));
        let mtls = match setting {
            Some(tls) => tls.mode == TlsMode::IstioMutual,
            None => {
                let port = u16::try_from(endpoint["port"].as_u64().unwrap()).unwrap();
                let modes =
                    authentications.workload_modes(namespace, &label_map(&endpoint["labels"]));
                endpoint["tls_mode_label"] == "istio" && modes.at(port).mode != Mode::Disable
            }
        };
        assert_eq!(
            if mtls { "mtls" } else { "plaintext" },
            text(row, "expected"),
            "{}",
            row["name"]
        );
    }
}

/// Whole objects accepted and refused.
#[test]
fn validation() {
    let Some(file) = file("validation.json") else { return };
    let mut ran = 0;
    for row in rows(&file) {
        let kind = row["object"]["kind"].as_str().unwrap_or_default();
        let ours = matches!(kind, "PeerAuthentication" | "DestinationRule");
        let other_area = row["area"].as_str().is_some_and(|area| area.starts_with("not-tls"));
        let yaml = row["object"].to_string();
        // Refused here whatever they say, until they are supported.
        let unsupported = yaml.contains("\"SIMPLE\"") || yaml.contains("\"MUTUAL\"");
        if !ours || other_area || unsupported {
            continue;
        }
        let (_, _, report) = read(&yaml);
        let errors = &report.errors;
        assert_eq!(Some(errors.is_empty()), row["valid"].as_bool(), "{} {errors:?}", row["name"]);
        ran += 1;
    }
    assert!(ran > 10, "only {ran} rows ran");
}
