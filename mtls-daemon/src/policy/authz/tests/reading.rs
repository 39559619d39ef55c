//! What is accepted, refused, and warned about.

use proptest::prelude::*;

use super::*;
use crate::policy::error::{Code, ConfigError};

/// Errors of `foo/p` as `field [CODE]`, and whether the object is in force.
fn errors(yaml: &str) -> (Vec<String>, bool) {
    let (objects, _, report) = read(yaml);
    let list = report.errors.iter().map(|e| format!("{} [{}]", e.field, e.code.as_str()));
    (list.collect(), !objects.is_empty())
}

#[test]
fn rule_4_3_wrong_values_refuse_the_object_and_say_where() {
    let source = |fields: &str| format!("{{rules: [{{from: [{{source: {{{fields}}}}}]}}]}}");
    let operation = |fields: &str| format!("{{rules: [{{to: [{{operation: {{{fields}}}}}]}}]}}");
    let when = |fields: &str| format!("{{rules: [{{when: [{{{fields}}}]}}]}}");
    let in_source = |field: &str| format!("spec.rules[0].from[0].source{field} [E_FIELD_VALUE]");
    let in_operation =
        |field: &str| format!("spec.rules[0].to[0].operation{field} [E_FIELD_VALUE]");
    let accounts = |count: usize| {
        let list: Vec<String> = (0..count).map(|i| format!("a{i}")).collect();
        source(&format!("serviceAccounts: [{}]", list.join(", ")))
    };
    for (spec, expected) in [
        ("{action: deny, rules: [{}]}".to_owned(), "spec.action [E_FIELD_VALUE]".to_owned()),
        ("{action: DENY}".to_owned(), "spec.rules [E_FIELD_MISSING]".to_owned()),
        ("{action: DENY, rules: []}".to_owned(), "spec.rules [E_FIELD_MISSING]".to_owned()),
        ("{action: DENY, rules: }".to_owned(), "spec.rules [E_FIELD_MISSING]".to_owned()),
        ("{rules: [null]}".to_owned(), "spec.rules[0] [E_FIELD_TYPE]".to_owned()),
        (
            "{provider: {name: x}, rules: [{}]}".to_owned(),
            "spec.provider [E_FIELD_VALUE]".to_owned(),
        ),
        ("{rules: [{from: []}]}".to_owned(), "spec.rules[0].from [E_FIELD_VALUE]".to_owned()),
        ("{rules: [{to: []}]}".to_owned(), "spec.rules[0].to [E_FIELD_VALUE]".to_owned()),
        (
            "{rules: [{from: [{}]}]}".to_owned(),
            "spec.rules[0].from[0].source [E_FIELD_MISSING]".to_owned(),
        ),
        (source(""), in_source("")),
        (source("principals: []"), in_source("")),
        (source("principals: ['']"), in_source(".principals[0]")),
        (source("ipBlocks: [10.0.0.0/33]"), in_source(".ipBlocks[0]")),
        (source("notRemoteIpBlocks: [host.example]"), in_source(".notRemoteIpBlocks[0]")),
        (source("serviceAccounts: ['a*']"), in_source(".serviceAccounts[0]")),
        (source("serviceAccounts: [a/b/c]"), in_source(".serviceAccounts[0]")),
        (source("serviceAccounts: [/b]"), in_source(".serviceAccounts[0]")),
        (
            source(&format!("serviceAccounts: [{}]", "a".repeat(321))),
            in_source(".serviceAccounts[0]"),
        ),
        (accounts(17), in_source(".serviceAccounts")),
        (source("serviceAccounts: [a], namespaces: [b]"), in_source("")),
        (source("notServiceAccounts: [a], notPrincipals: [b]"), in_source("")),
        (source("trustDomains: ['a*b']"), in_source(".trustDomains[0]")),
        (source("notTrustDomains: [a/b]"), in_source(".notTrustDomains[0]")),
        (operation(""), in_operation("")),
        (operation("ports: [http]"), in_operation(".ports[0]")),
        (operation("ports: ['+80']"), in_operation(".ports[0]")),
        (operation("notPorts: ['65536']"), in_operation(".notPorts[0]")),
        (
            operation("ports: [80]"),
            "spec.rules[0].to[0].operation.ports[0] [E_FIELD_TYPE]".to_owned(),
        ),
        (operation("paths: ['/{name}']"), in_operation(".paths[0]")),
        (operation("notPaths: ['/{**}/{*}']"), in_operation(".notPaths[0]")),
        (operation("paths: ['/{*}/a*']"), in_operation(".paths[0]")),
        (operation("paths: ['{*}']"), in_operation(".paths[0]")),
        (when("key: source.ip"), "spec.rules[0].when[0] [E_FIELD_MISSING]".to_owned()),
        (
            when("key: source.ip, values: [x]"),
            "spec.rules[0].when[0].values[0] [E_FIELD_VALUE]".to_owned(),
        ),
        (
            when("key: destination.port, notValues: [x]"),
            "spec.rules[0].when[0].notValues[0] [E_FIELD_VALUE]".to_owned(),
        ),
        (when("key: '', values: [x]"), "spec.rules[0].when[0].key [E_FIELD_VALUE]".to_owned()),
        (
            "{selector: {matchLabels: {'a*': b}}}".to_owned(),
            "spec.selector.matchLabels [E_FIELD_VALUE]".to_owned(),
        ),
        (
            "{selector: {matchLabels: {a: b}}, targetRef: {kind: Service, name: x}}".to_owned(),
            "spec.targetRef [E_FIELD_VALUE]".to_owned(),
        ),
        (
            "{targetRefs: [{kind: Pod, name: x}]}".to_owned(),
            "spec.targetRefs[0] [E_FIELD_VALUE]".to_owned(),
        ),
        (
            "{targetRef: {kind: Service, name: x, namespace: y}}".to_owned(),
            "spec.targetRef.namespace [E_FIELD_VALUE]".to_owned(),
        ),
    ] {
        let (found, in_force) = errors(&policy("foo/p", &spec));
        // What is empty for an error in it is named as well.
        assert_eq!((found.first(), in_force), (Some(&expected), false), "{spec}");
    }
    assert_eq!(errors(&policy("foo/p", &accounts(16))), (vec![], true));
}

/// An empty reference names no gateway: the object denies what it selects, or could have selected.
#[test]
fn rule_4_3_only_a_gateways_policy_that_is_refused_denies_nothing() {
    for (spec, expected) in [
        ("{targetRef: {kind: Pod, name: x}}", vec![]),
        ("{targetRefs: [{kind: Pod, name: x}]}", vec![]),
        ("{targetRef: {}}", vec![None]),
        ("{targetRef: }", vec![None]),
        ("{targetRefs: []}", vec![None]),
        ("{targetRef: []}", vec![None]),
        ("{action: DENNY, targetRefs: []}", vec![None]),
        ("{action: DENNY, targetRef: {}, selector: {matchLabels: {app: a}}}", vec![Some("a")]),
    ] {
        let wrong = spec.replacen('{', "{rules: [{from: []}], ", 1);
        let (objects, refused, _) = read(&policy("foo/p", &wrong));
        assert!(objects.is_empty(), "{wrong}");
        let found: Vec<_> = refused
            .iter()
            .map(|one| one.selector.as_ref().map(|labels| labels["app"].as_str()))
            .collect();
        assert_eq!(found, expected, "{wrong}");
    }
}

/// As where an API server prunes what it does not know: the object is in force without the field.
#[test]
fn a_slip_of_the_pen_is_told_and_the_object_in_force_without_it() {
    for (spec, field) in [
        ("{acton: DENY, rules: [{}]}", "spec.acton"),
        ("{selctor: {}, rules: [{}]}", "spec.selctor"),
        ("{rules: [{form: []}]}", "spec.rules[0].form"),
        (
            "{rules: [{from: [{source: {principals: [a], namespace: [b]}}]}]}",
            "spec.rules[0].from[0].source.namespace",
        ),
        ("{rules: [{from: [{source: {principals: [a]}, to: []}]}]}", "spec.rules[0].from[0].to"),
        (
            "{rules: [{to: [{operation: {port: ['1'], methods: [a]}}]}]}",
            "spec.rules[0].to[0].operation.port",
        ),
        (
            "{rules: [{when: [{key: source.ip, values: [10.0.0.1], notValue: []}]}]}",
            "spec.rules[0].when[0].notValue",
        ),
        ("{selector: {matchlabels: {a: b}}}", "spec.selector.matchlabels"),
    ] {
        let (objects, _, report) = read(&policy("foo/p", spec));
        assert_eq!((objects.len(), &*report.errors), (1, &[][..]), "{spec}");
        let told = |w: &ConfigError| w.field == field && w.code == Code::WarnUnknown;
        assert!(report.warnings.iter().any(told), "{spec}: {:?}", report.warnings);
    }
}

#[test]
fn errors_that_deny_more_when_the_object_is_in_force_do_not_refuse_it() {
    for (spec, expected) in [
        ("{action: CUSTOM, provider: {name: x}, rules: [{}]}", "spec.action [E_UNSUPPORTED]"),
        (
            "{rules: [{when: [{key: source.colour, values: [x]}]}]}",
            "spec.rules[0].when[0].key [E_FIELD_VALUE]",
        ),
        (
            "{action: DENY, rules: [{when: [{key: 'destination.labels[a]', values: [x]}]}]}",
            "spec.rules[0].when[0].key [E_FIELD_VALUE]",
        ),
    ] {
        assert_eq!(errors(&policy("foo/p", spec)), (vec![expected.to_owned()], true), "{spec}");
    }
    let spec =
        "{rules: [{when: [{key: source.colour, values: [x]}, {key: source.ip, values: [x]}]}]}";
    assert!(!errors(&policy("foo/p", spec)).1);
}

#[test]
fn rule_4_11_the_annotation_is_true_or_false_and_only_for_what_decides() {
    let field = "metadata.annotations[istio.io/dry-run] ";
    for (value, spec, expected) in [
        ("'true'", "{rules: [{}]}", None),
        ("'False'", "{action: DENY, rules: [{}]}", None),
        ("'maybe'", "{rules: [{}]}", Some("[E_FIELD_VALUE]")),
        ("true", "{rules: [{}]}", Some("[E_FIELD_TYPE]")),
        ("'true'", "{action: AUDIT, rules: [{}]}", Some("[E_FIELD_VALUE]")),
    ] {
        let annotation = format!(", annotations: {{istio.io/dry-run: {value}, other: 1}}");
        let (found, _) = errors(&with_annotation("foo/p", spec, &annotation));
        let expected: Vec<String> = expected.iter().map(|code| format!("{field}{code}")).collect();
        assert_eq!(found, expected, "{value} {spec}");
    }
    let other = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                 metadata: {name: a, annotations: {istio.io/dry-run: 'true'}}\nspec: {}\n";
    let mut report = Report::new("f.yaml");
    let nodes = documents(other.as_bytes(), &Limits::default(), &mut report).unwrap();
    Document::open(&nodes[0], &mut report);
    assert_eq!(report.errors.len(), 1, "{:?}", report.errors);
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    for (spec, codes) in [
        ("{selector: {}}", vec![Code::WarnSuspicious]),
        (
            "{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}",
            vec![Code::WarnSuspicious],
        ),
        ("{action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['80']}}]}]}", vec![]),
        (
            "{action: DENY, rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {methods: [GET]}}]}]}",
            vec![Code::WarnSuspicious],
        ),
        ("{rules: [{to: [{operation: {methods: [GET]}}]}]}", vec![]),
        (
            "{rules: [{from: [{source: {principals: ['spiffe://td/ns/a/sa/b']}}]}]}",
            vec![Code::WarnSuspicious],
        ),
        ("{rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}", vec![Code::WarnNoToken]),
        (
            "{rules: [{when: [{key: request.auth.principal, values: [a]}]}]}",
            vec![Code::WarnNoToken],
        ),
        ("{rules: [{}]}", vec![]),
    ] {
        let (objects, _, report) = read(&policy("foo/p", spec));
        let found: Vec<Code> = report.warnings.iter().map(|warning| warning.code).collect();
        assert_eq!((objects.len(), &report.errors[..], found), (1, &[][..], codes), "{spec}");
    }
}

#[test]
fn what_is_enforced_otherwise_than_written_is_said() {
    for (spec, expected) in [
        ("{rules: [{from: [{source: {principals: [a]}}]}]}", vec![]),
        (
            "{rules: [{}, {to: [{operation: {notHosts: [a], ports: ['1'], paths: [/]}}]}]}",
            vec![(Some(1), "notHosts paths")],
        ),
        (
            "{action: DENY, rules: [{when: [{key: 'request.headers[x]', values: [y]}]}]}",
            vec![(Some(0), "request.headers[x]")],
        ),
        ("{action: AUDIT, rules: [{}]}", vec![(None, "")]),
        (
            "{action: CUSTOM, provider: {name: x}, rules: [{to: [{operation: {paths: [/]}}]}]}",
            vec![(None, "")],
        ),
        (
            "{targetRef: {kind: Service, name: x}, rules: [{to: [{operation: {paths: [/]}}]}]}",
            vec![],
        ),
    ] {
        let (objects, ..) = read(&policy("foo/p", spec));
        let found: Vec<_> = status::differences(&objects[0])
            .into_iter()
            .map(|one| (one.rule, one.fields.join(" ")))
            .collect();
        let expected: Vec<_> =
            expected.into_iter().map(|(rule, fields)| (rule, fields.to_owned())).collect();
        assert_eq!(found, expected, "{spec}");
    }
}

const SAMPLE: &str = "{selector: {matchLabels: {app: a}}, action: DENY, rules: [{from: [{source: \
    {principals: [td/ns/a/sa/b], notIpBlocks: [10.0.0.0/8]}}], to: [{operation: {ports: ['80'], \
    paths: ['/a/{*}/{**}'], hosts: ['*.example']}}], when: [{key: 'request.headers[x]', values: [y]}]}]}";

proptest! {
    #[test]
    fn mutated_objects_never_panic(at in 0..SAMPLE.len(), len in 0..12usize, with in "[ -~]{0,6}") {
        let mut spec = SAMPLE.to_owned();
        spec.replace_range(at..(at + len).min(SAMPLE.len()), &with);
        let (objects, refused, report) = read(&policy("foo/p", &spec));
        // In force, denying what it selects, or wrong as a document.
        prop_assert!(objects.len() + refused.len() == 1 || !report.errors.is_empty());
        let all = compiled(objects, refused).for_workload("foo", &labels(&[("app", "a")]));
        Question::default().ask(&all);
    }

    #[test]
    fn matchers_never_panic_and_wildcards_mean_what_they_say(
        pattern in "[a*é/{}]{0,8}",
        text in "[aé/]{0,8}",
    ) {
        prop_assert_eq!(
            text::glob(&pattern, &text),
            naive_glob(&pattern.chars().collect::<Vec<_>>(), &text.chars().collect::<Vec<_>>())
        );
        let matcher = text::Pattern::new(&pattern);
        let exact = matcher.matches(text.as_bytes());
        prop_assert!(!exact || matcher.matches_any_case(text.to_uppercase().to_lowercase().as_bytes()));
        if let Ok(path) = template::PathPattern::new(&pattern) {
            path.matches(&text);
        }
        prop_assert_eq!(text::Texts::new([&pattern]).any(text.as_bytes()), exact);
    }
}

fn naive_glob(pattern: &[char], text: &[char]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some(('*', rest)) => (0..=text.len()).any(|skipped| naive_glob(rest, &text[skipped..])),
        Some((first, rest)) => text.first() == Some(first) && naive_glob(rest, &text[1..]),
    }
}
