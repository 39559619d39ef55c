//! Reading and resolving, rule by rule; hostile input.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::policy::metadata::Document;
use crate::policy::parse::{Limits, documents};

/// All objects of both kinds in `yaml`, and everything found on the way.
fn read(yaml: &str) -> (Vec<PeerAuthentication>, Vec<DestinationRule>, Report) {
    let mut report = Report::new("f.yaml");
    let (mut authentications, mut rules) = (Vec::new(), Vec::new());
    for node in documents(yaml.as_bytes(), &Limits::default(), &mut report).unwrap_or_default() {
        let Some(document) = Document::open(&node, &mut report) else { continue };
        match document.kind {
            "PeerAuthentication" => {
                authentications.extend(PeerAuthentication::read(&document, &mut report));
            }
            _ => rules.extend(DestinationRule::read(&document, &mut report)),
        }
    }
    (authentications, rules, report)
}

fn authn(name: &str, namespace: &str, extra: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{name: {name}, namespace: {namespace}{extra}}}\nspec: {spec}\n"
    )
}

fn rule(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// `MODE by object` for the workload `app: a` of namespace `foo` on `port`.
fn effective(yaml: &str, port: u16) -> String {
    let (objects, _, report) = read(yaml);
    assert_eq!(report.errors, [], "{yaml}");
    let all = PeerAuthentications::new("root", objects);
    let modes = all.workload_modes("foo", &labels(&[("app", "a")]));
    let effective = modes.at(port);
    format!("{} by {}", effective.mode, effective.because)
}

#[test]
fn rules_1_1_to_1_4_scopes_inherit_from_mesh_to_namespace_to_workload() {
    let mesh = authn("m", "root", "", "{mtls: {mode: STRICT}}");
    let unset = authn("n", "foo", "", "{}");
    let namespace = authn("n", "foo", "", "{mtls: {mode: DISABLE}}");
    let workload =
        authn("w", "foo", "", "{selector: {matchLabels: {app: a}}, mtls: {mode: PERMISSIVE}}");
    let others =
        authn("o", "foo", "", "{selector: {matchLabels: {app: b}}, mtls: {mode: DISABLE}}");
    let elsewhere = authn("e", "bar", "", "{mtls: {mode: DISABLE}}");
    let root_selector =
        authn("r", "root", "", "{selector: {matchLabels: {app: a}}, mtls: {mode: DISABLE}}");
    for (yaml, expected) in [
        (String::new(), "PERMISSIVE by default (no PeerAuthentication)"),
        (mesh.clone(), "STRICT by PeerAuthentication root/m"),
        (mesh.clone() + &unset, "STRICT by PeerAuthentication root/m"),
        (mesh.clone() + &namespace, "DISABLE by PeerAuthentication foo/n"),
        (mesh.clone() + &namespace + &workload, "PERMISSIVE by PeerAuthentication foo/w"),
        (mesh.clone() + &others + &elsewhere, "STRICT by PeerAuthentication root/m"),
        // 1.2: a selector in the root namespace is ignored.
        (mesh + &root_selector, "STRICT by PeerAuthentication root/m"),
        (root_selector, "PERMISSIVE by default (no PeerAuthentication)"),
    ] {
        assert_eq!(effective(&yaml, 80), expected, "{yaml}");
    }
}

#[test]
fn rule_1_3_the_oldest_object_wins_then_the_smaller_name() {
    let at = |name, time, mode| {
        let extra = format!(", creationTimestamp: \"2024-01-01T00:00:{time}Z\"");
        authn(name, "foo", &extra, &format!("{{mtls: {{mode: {mode}}}}}"))
    };
    let newer = at("a", "02", "STRICT");
    let older = at("b", "01", "DISABLE");
    let same = at("c", "01.9", "STRICT");
    assert_eq!(effective(&(newer + &older + &same), 80), "DISABLE by PeerAuthentication foo/b");
}

#[test]
fn rule_1_5_ports_come_from_the_winning_workload_object_only() {
    let yaml = authn("m", "root", "", "{mtls: {mode: STRICT}}")
        + &authn(
            "w1",
            "foo",
            ", creationTimestamp: 2024-01-01T00:00:00Z",
            "{selector: {matchLabels: {app: a}}, portLevelMtls: {80: {mode: DISABLE}, 81: {}, 82: {mode: UNSET}}}",
        )
        + &authn(
            "w2",
            "foo",
            ", creationTimestamp: 2024-01-02T00:00:00Z",
            "{selector: {matchLabels: {app: a}}, portLevelMtls: {83: {mode: DISABLE}}}",
        );
    for (port, expected) in [
        (80, "DISABLE by PeerAuthentication foo/w1 (port 80)"),
        (81, "STRICT by PeerAuthentication root/m"),
        (82, "STRICT by PeerAuthentication root/m"),
        (83, "STRICT by PeerAuthentication root/m"),
    ] {
        assert_eq!(effective(&yaml, port), expected);
    }
}

#[test]
fn rules_1_7_and_2_1_5_and_2_3_wrong_objects_are_refused_with_their_field() {
    let a = |spec: &str| authn("x", "foo", "", spec);
    let d = |spec: &str| rule("x", "foo", &format!("{{host: h, {spec}}}"));
    let tls = |spec: &str| d(&format!("trafficPolicy: {{tls: {spec}}}"));
    for (yaml, field, code) in [
        (a("{portLevelMtls: {80: {mode: STRICT}}}"), "spec.portLevelMtls", Code::FieldValue),
        (
            a("{selector: {matchLabels: {a: b}}, portLevelMtls: {}}"),
            "spec.portLevelMtls",
            Code::FieldValue,
        ),
        (
            a("{selector: {matchLabels: {a: b}}, portLevelMtls: {0: {}}}"),
            "spec.portLevelMtls[0]",
            Code::FieldValue,
        ),
        (
            a("{selector: {matchLabels: {a: b}}, portLevelMtls: {65536: {}}}"),
            "spec.portLevelMtls[65536]",
            Code::FieldValue,
        ),
        (a("{selector: {matchLabels: {a: 'b*'}}}"), "spec.selector.matchLabels", Code::FieldValue),
        (a("{selector: {matchLabels: {'': b}}}"), "spec.selector.matchLabels[]", Code::FieldValue),
        (a("{selector: {matchLabels: {a: 1}}}"), "spec.selector.matchLabels[a]", Code::FieldType),
        (a("{mtls: {mode: strict}}"), "spec.mtls.mode", Code::FieldValue),
        (a("{mtls: STRICT}"), "spec.mtls", Code::FieldType),
        (d("exportTo: ['.', '*']"), "spec.exportTo", Code::FieldValue),
        (d("exportTo: ['*', a]"), "spec.exportTo", Code::FieldValue),
        (d("exportTo: [a, a]"), "spec.exportTo", Code::FieldValue),
        (d("exportTo: ['.', foo]"), "spec.exportTo", Code::FieldValue),
        (
            d("exportTo: ['*'], workloadSelector: {matchLabels: {a: b}}"),
            "spec.exportTo",
            Code::FieldValue,
        ),
        (rule("x", "foo", "{host: ''}"), "spec.host", Code::FieldValue),
        (rule("x", "foo", "{host: 'a*b'}"), "spec.host", Code::FieldValue),
        (rule("x", "foo", "{}"), "spec.host", Code::FieldMissing),
        (d("subsets: [{name: ''}]"), "spec.subsets[0].name", Code::FieldValue),
        (tls("{}"), "spec.trafficPolicy.tls", Code::FieldMissing),
        (tls("{mode: NONE}"), "spec.trafficPolicy.tls.mode", Code::FieldValue),
        (tls("{mode: MUTUAL, privateKey: k}"), "spec.trafficPolicy.tls", Code::FieldValue),
        (tls("{mode: MUTUAL, clientCertificate: c}"), "spec.trafficPolicy.tls", Code::FieldValue),
        (
            tls("{mode: SIMPLE, credentialName: s, caCrl: c}"),
            "spec.trafficPolicy.tls",
            Code::FieldValue,
        ),
        (
            tls("{mode: SIMPLE, insecureSkipVerify: true, caCertificates: c}"),
            "spec.trafficPolicy.tls",
            Code::FieldValue,
        ),
        (
            tls("{mode: SIMPLE, insecureSkipVerify: true, credentialName: c}"),
            "spec.trafficPolicy.tls",
            Code::FieldValue,
        ),
        (
            tls(
                "{mode: MUTUAL, credentialName: c, insecureSkipVerify: true, subjectAltNames: [a]}",
            ),
            "spec.trafficPolicy.tls",
            Code::FieldValue,
        ),
        (tls("{mode: SIMPLE, sni: 'a b'}"), "spec.trafficPolicy.tls.sni", Code::FieldValue),
        (d("trafficPolicy: {}"), "spec.trafficPolicy", Code::FieldValue),
        (
            d("trafficPolicy: {connectionPool: {}}"),
            "spec.trafficPolicy.connectionPool",
            Code::FieldValue,
        ),
        (
            d("trafficPolicy: {outlierDetection: {minHealthPercent: 101}}"),
            "spec.trafficPolicy.outlierDetection.minHealthPercent",
            Code::FieldValue,
        ),
        (
            tls("{mode: ISTIO_MUTUAL, caCertificates: x}"),
            "spec.trafficPolicy.tls.caCertificates",
            Code::FieldValue,
        ),
        (
            tls("{mode: ISTIO_MUTUAL, insecureSkipVerify: true}"),
            "spec.trafficPolicy.tls.insecureSkipVerify",
            Code::FieldValue,
        ),
        (
            d("trafficPolicy: {portLevelSettings: [{port: {number: 0}}]}"),
            "spec.trafficPolicy.portLevelSettings[0].port.number",
            Code::FieldValue,
        ),
    ] {
        let (_, _, report) = read(&yaml);
        let found: Vec<_> = report.errors.iter().map(|e| (e.field.as_str(), e.code)).collect();
        assert_eq!(found, [(field, code)], "{yaml}");
    }
}

#[test]
fn findings_carry_the_line_of_the_value_in_any_document() {
    let yaml = "\
# a comment
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: one
spec:
  mtls:
    mode: STRICT
    moed: 1
  selector:
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: two
spec:
  mtls:
    mode: Nope
";
    let (_, _, report) = read(yaml);
    let text = |list: &[ConfigError]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        text(&report.errors),
        [
            "f.yaml:10: PeerAuthentication default/one: spec.selector: is empty: check the \
             indentation below it, or leave it out [E_FIELD_MISSING]",
            "f.yaml:18: PeerAuthentication default/two: spec.mtls.mode: \"Nope\" is not one of \
             UNSET, DISABLE, PERMISSIVE, STRICT [E_FIELD_VALUE]"
        ]
    );
    assert_eq!(
        text(&report.warnings),
        ["f.yaml:9: PeerAuthentication default/one: spec.mtls.moed: is not known here and is \
          ignored [W_FIELD_UNKNOWN]"]
    );
}

#[test]
fn rule_2_1_6_rules_of_one_host_are_merged_and_2_2_levels_are_chosen() {
    let (_, rules, report) = read(
        &(rule(
            "a",
            "foo",
            "{host: h, subsets: [{name: s, trafficPolicy: {tls: {mode: DISABLE}}}]}",
        ) + &rule(
            "b",
            "foo",
            "{host: h, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}, portLevelSettings: [{port: {number: 81}, tls: {mode: DISABLE}}, {port: {number: 82}}]}, subsets: [{name: s}, {name: t}]}",
        ) + &rule("c", "foo", "{host: h, trafficPolicy: {tls: {mode: DISABLE}}}")),
    );
    assert_eq!(report.errors, []);
    let all = DestinationRules::new("root", rules);
    let found = all.find("foo", "foo", &["h.foo.svc.cluster.local"]).unwrap();
    let rule = found.for_client(&BTreeMap::new()).unwrap();
    assert_eq!(&*rule.because, "DestinationRule foo/b");
    let mode = |port, subset| rule.tls(port, subset).map(|tls| tls.mode);
    assert_eq!(mode(80, None), Some(TlsMode::IstioMutual));
    assert_eq!(mode(81, None), Some(TlsMode::Disable));
    assert_eq!(mode(82, None), None, "a port entry without tls sets nothing");
    assert_eq!(mode(80, Some("s")), Some(TlsMode::Disable));
    assert_eq!(mode(80, Some("t")), Some(TlsMode::IstioMutual));
    assert!(all.find("bar", "bar", &["h.foo.svc.cluster.local"]).is_none());
}

#[test]
fn rule_2_1_2_the_first_namespace_with_a_match_wins_whole() {
    let (_, rules, _) = read(
        &(rule("a", "client", "{host: '*.svc.cluster.local'}")
            + &rule("b", "server", "{host: h, exportTo: [other]}")
            + &rule("c", "server", "{host: '*.server.svc.cluster.local'}")
            + &rule("d", "root", "{host: '*'}")),
    );
    let all = DestinationRules::new("root", rules);
    let find = |client| {
        let found = all.find(client, "server", &["h.server.svc.cluster.local"]).unwrap();
        found.otherwise.unwrap().because.to_string()
    };
    assert_eq!(find("client"), "DestinationRule client/a");
    assert_eq!(find("other"), "DestinationRule server/b");
    // 2.1.4: the best host is not visible, so the search goes to the next namespace.
    assert_eq!(find("third"), "DestinationRule root/d");
}

/// As Istio's index has it: an object exported to others alone is none for its own namespace, and its own
/// name says what `.` says.
#[test]
fn rule_2_1_5_an_export_counts_in_its_own_namespace_too() {
    let found = |rules: &str, client: &str| {
        let (_, rules, report) = read(rules);
        assert_eq!(report.errors, []);
        let all = DestinationRules::new("root", rules);
        let found = all.find(client, "foo", &["web.foo.svc.cluster.local"]);
        found.map(|found| found.otherwise.unwrap().because.to_string())
    };
    let elsewhere = rule("d", "foo", "{host: web, exportTo: [bar]}");
    assert_eq!(found(&elsewhere, "foo"), None);
    assert_eq!(found(&elsewhere, "bar").as_deref(), Some("DestinationRule foo/d"));
    let beside = rule("d", "foo", "{host: web, exportTo: [bar, foo]}");
    assert_eq!(found(&beside, "foo").as_deref(), Some("DestinationRule foo/d"));
    // What is private hides nothing that is exported.
    for own in [".", "foo"] {
        let both = rule("a", "foo", &format!("{{host: web, exportTo: ['{own}']}}"))
            + &rule("b", "foo", "{host: '*.foo.svc.cluster.local'}");
        assert_eq!(found(&both, "foo").as_deref(), Some("DestinationRule foo/a"), "{own}");
        assert_eq!(found(&both, "bar").as_deref(), Some("DestinationRule foo/b"), "{own}");
        // The root namespace's own goes first for its clients.
        let root = rule("a", "root", &format!("{{host: '*', exportTo: ['{own}']}}"))
            .replace("'foo'", "'root'")
            + &rule("b", "foo", "{host: web}");
        assert_eq!(found(&root, "root").as_deref(), Some("DestinationRule root/a"), "{own}");
    }
    // Also with a selector that selects everybody.
    let selects = rule("d", "foo", "{host: web, workloadSelector: {}}");
    assert_eq!(found(&selects, "foo").as_deref(), Some("DestinationRule foo/d"));
    assert_eq!(found(&selects, "bar"), None);
}

#[test]
fn a_slip_of_the_pen_is_told_with_what_was_meant() {
    let a = |spec: &str| authn("x", "foo", "", spec);
    let d = |spec: &str| rule("x", "foo", &format!("{{host: h, {spec}}}"));
    let missing = |field| (field, Code::FieldMissing, "");
    let unknown = |field, hint| (field, Code::WarnUnknown, hint);
    for (yaml, (field, code, hint)) in [
        (a("{mTLS: {mode: STRICT}}"), unknown("spec.mTLS", "did you mean mtls?")),
        (a("{mtls: {modes: STRICT}}"), unknown("spec.mtls.modes", "did you mean mode?")),
        (a("{mode: STRICT}"), unknown("spec.mode", "")),
        (
            a("{selector: {matchlabels: {a: b}}}"),
            unknown("spec.selector.matchlabels", "mean match"),
        ),
        (a("{mtls: }"), missing("spec.mtls")),
        (a("{mtls: {mode: }}"), missing("spec.mtls.mode")),
        (a("{selector: , mtls: {mode: STRICT}}"), missing("spec.selector")),
        (a(""), missing("spec")),
        (a("{}").replace("spec:", "spce:"), missing("spec")),
        (d("trafficPolcy: {}"), unknown("spec.trafficPolcy", "did you mean trafficPolicy?")),
        (d("trafficPolicy: {tsl: {}}"), unknown("spec.trafficPolicy.tsl", "did you mean tls?")),
        (d("trafficPolicy: {tls: }"), missing("spec.trafficPolicy.tls")),
        (
            d("trafficPolicy: {tls: {mode: ISTIO_MUTUAL, subjectAltName: [x]}}"),
            unknown("spec.trafficPolicy.tls.subjectAltName", "did you mean subjectAltNames?"),
        ),
        (
            d("trafficPolicy: {portLevelSettings: [{port: {number: 1}, TLS: {}}]}"),
            unknown("spec.trafficPolicy.portLevelSettings[0].TLS", "did you mean tls?"),
        ),
        (
            d("subsets: [{name: s, traficPolicy: {}}]"),
            unknown("spec.subsets[0].traficPolicy", "did you mean trafficPolicy?"),
        ),
    ] {
        let (_, _, report) = read(&yaml);
        let mut findings = report.errors.iter().chain(&report.warnings);
        let first = findings.find(|finding| finding.code != Code::WarnSuspicious).unwrap();
        assert_eq!((first.field.as_str(), first.code), (field, code), "{yaml}");
        assert!(first.reason.contains(hint), "{first}");
    }
}

#[test]
fn what_istio_knows_and_concerns_no_tls_is_a_warning() {
    for (yaml, warnings) in [
        (authn("x", "foo", "", "{}"), 0),
        (authn("x", "foo", "", "{selector: {}}"), 1),
        (authn("x", "foo", ", finalizer: a", "{}"), 1),
        (
            rule(
                "x",
                "foo",
                "{host: h, trafficPolicy: {loadBalancer: {warmup: {duration: 9s}}, \
                 connectionPool: {tcp: {}}, outlierDetection: , tunnel: {}, proxyProtocol: {}, retryBudget: {}}}",
            ),
            6,
        ),
        (
            rule(
                "x",
                "foo",
                "{host: h, trafficPolicy: {tls: {mode: DISABLE, credentialName: a, caCrl: b}}}",
            ),
            2,
        ),
    ] {
        let (_, _, report) = read(&yaml);
        assert_eq!(report.errors, [], "{yaml}");
        assert_eq!(report.warnings.len(), warnings, "{yaml} {:?}", report.warnings);
    }
}

#[test]
fn port_keys_have_one_writing() {
    let with = |ports: &str| {
        let spec = format!("{{selector: {{matchLabels: {{a: b}}}}, portLevelMtls: {{{ports}}}}}");
        read(&authn("x", "foo", "", &spec)).2.errors
    };
    assert_eq!(with("80: {mode: STRICT}, '81': {}"), []);
    for ports in ["'080': {}", "+80: {}", "80: {}, '80': {}", "80: {}, 80: {}", "' 80': {}"] {
        let errors = with(ports);
        assert_eq!(errors.len(), 1, "{ports} {errors:?}");
    }
}

#[test]
fn keys_that_are_there_twice_are_named() {
    let mut report = Report::new("f.yaml");
    assert!(documents(b"a: 1\nb:\n  c: 1\n  c: 2\n", &Limits::default(), &mut report).is_none());
    let expected = "f.yaml:4: key \"c\" is there twice in one mapping [E_YAML_SYNTAX]";
    assert_eq!(report.errors[0].to_string(), expected);
}

#[test]
fn a_list_that_is_no_list_of_objects_is_refused() {
    let (.., report) = read("apiVersion: v1\nkind: List\nmetadata: {}\nitems: {}\n");
    let [error] = &report.errors[..] else { panic!("{:?}", report.errors) };
    assert_eq!((error.field.as_str(), error.code), ("kind", Code::ObjectKind));
    assert!(error.reason.contains("sequence of objects"), "{error}");
}

#[test]
fn rule_2_1_3_the_best_match_over_all_names_of_a_service_wins() {
    let (_, rules, _) = read(
        &(rule("a", "foo", "{host: '*.example'}")
            + &rule("b", "foo", "{host: Api.Foo.Example}")
            + &rule("c", "foo", "{host: '*.long.example'}")),
    );
    let all = DestinationRules::new("root", rules);
    let find = |hosts: &[&str]| {
        let found = all.find("foo", "foo", hosts).unwrap();
        found.otherwise.unwrap().because.to_string()
    };
    assert_eq!(find(&["x.example", "api.foo.example"]), "DestinationRule foo/b");
    assert_eq!(find(&["x.example", "y.long.example"]), "DestinationRule foo/c");
    assert_eq!(find(&["y.long.example", "x.example"]), "DestinationRule foo/c");
    assert_eq!(find(&["x.example"]), "DestinationRule foo/a");
}

#[test]
fn hostile_yaml_is_refused_clearly() {
    let laughs = (1..10).fold("a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, i| {
        let before = format!("*a{}", i - 1);
        text + &format!("a{i}: &a{i} [{}]\n", [before.as_str(); 9].join(", "))
    });
    for (yaml, code) in [
        (laughs, Code::YamlLimit),
        ("a: ".to_owned() + &"[".repeat(5000), Code::YamlLimit),
        ((0..200).map(|i| format!("{}a:\n", " ".repeat(i))).collect(), Code::YamlLimit),
        ("a: 1\na: 2\n".to_owned(), Code::YamlSyntax),
        ("a: *nothing\n".to_owned(), Code::YamlSyntax),
        ("#".repeat(5 << 20), Code::FileSize),
        ("- 1\n".repeat(300_000), Code::YamlLimit),
    ] {
        let mut report = Report::new("f.yaml");
        let found = documents(yaml.as_bytes(), &Limits::default(), &mut report);
        assert!(found.is_none());
        let start: String = yaml.chars().take(40).collect();
        assert_eq!(report.errors[0].code, code, "{start}: {}", report.errors[0]);
        assert!(report.errors[0].reason.len() < 500);
    }
    let mut report = Report::new("f.yaml");
    assert!(documents(b"a: 1\nb: \xff\n", &Limits::default(), &mut report).is_none());
    assert_eq!(report.errors[0].line, 2);
}

const SAMPLE: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\n\
spec:\n  host: h\n  exportTo: ['.']\n  trafficPolicy:\n    tls: {mode: ISTIO_MUTUAL, sni: x.y}\n\
    portLevelSettings:\n    - port: {number: 80}\n  subsets: [{name: s, labels: {a: b}}]\n";

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut report = Report::new("f.yaml");
        let found = documents(&bytes, &Limits::default(), &mut report);
        prop_assert_eq!(found.is_none(), !report.errors.is_empty());
    }

    #[test]
    fn mutated_objects_never_panic(at in 0..SAMPLE.len(), len in 0..12usize, with in "[ -~\n]{0,6}") {
        let mut text = SAMPLE.to_owned();
        text.replace_range(at..(at + len).min(SAMPLE.len()), &with);
        let (_, rules, report) = read(&text);
        // A rule that came out is whole, or what is wrong with it was said.
        prop_assert!(rules.iter().all(|rule| !rule.host.is_empty()) || !report.errors.is_empty());
    }
}

#[test]
fn rule_2_3_simple_and_mutual_keep_what_they_say() {
    let read_one = |tls: &str| {
        let spec = format!("{{host: h, trafficPolicy: {{tls: {tls}}}}}");
        let (_, rules, report) = read(&rule("x", "foo", &spec));
        assert_eq!(report.errors, [], "{tls}");
        let settings = rules[0].traffic.clone().unwrap().tls.unwrap();
        (settings, report.warnings)
    };
    let (mutual, warnings) = read_one(
        "{mode: MUTUAL, clientCertificate: /c, privateKey: /k, caCertificates: /a, caCrl: /r, \
         sni: db.test, subjectAltNames: [a.test, 'spiffe://x/y'], credentialName: ''}",
    );
    assert_eq!(warnings, []);
    let file = |text: &str| Some(text.into());
    assert_eq!(mutual.mode, TlsMode::Mutual);
    assert_eq!(mutual.client_certificate, file("/c"));
    assert_eq!(mutual.private_key, file("/k"));
    assert_eq!(mutual.ca_certificates, file("/a"));
    assert_eq!(mutual.ca_crl, file("/r"));
    assert_eq!(mutual.credential_name, None, "empty is absent");
    assert_eq!(mutual.sni, file("db.test"));
    assert_eq!(mutual.subject_alt_names, ["a.test".into(), "spiffe://x/y".into()]);
    let (simple, warnings) = read_one("{mode: SIMPLE, clientCertificate: /c, privateKey: /k}");
    assert_eq!((&simple.client_certificate, &simple.private_key), (&None, &None));
    let found: Vec<_> = warnings.iter().map(|w| w.code).collect();
    assert_eq!(found, [Code::WarnIgnored; 2], "SIMPLE shows no certificate");
    let (named, _) = read_one("{mode: SIMPLE, credentialName: secret, insecureSkipVerify: false}");
    assert_eq!(named.credential_name, file("secret"));
}
