//! Rule by rule.

use super::*;

/// One policy `foo/p` with these rules, of each action in turn: an ALLOW rule that matches allows, a
/// DENY rule that matches denies.
#[track_caller]
fn matches(rule: &str, question: &Question, expected: bool) {
    let allow = policy("foo/p", &format!("{{rules: [{rule}]}}"));
    check(&allow, question, if expected { "allow by foo/p rule 0" } else { "deny by foo/p" });
    let deny = policy("foo/p", &format!("{{action: DENY, rules: [{rule}]}}"));
    check(&deny, question, if expected { "deny by foo/p rule 0" } else { "allow" });
}

#[track_caller]
fn source_matches(source: &str, question: &Question, expected: bool) {
    matches(&format!("{{from: [{{source: {{{source}}}}}]}}"), question, expected);
}

#[track_caller]
fn operation_matches(operation: &str, question: &Question, expected: bool) {
    matches(&format!("{{to: [{{operation: {{{operation}}}}}]}}"), question, expected);
}

#[track_caller]
fn when_matches(when: &str, question: &Question, expected: bool) {
    matches(&format!("{{when: [{{{when}}}]}}"), question, expected);
}

#[test]
fn rule_4_1_deny_before_allow_and_audit_decides_nothing() {
    let any = "rules: [{}]";
    let allow = policy("foo/a", &format!("{{{any}}}"));
    let deny = policy("foo/d", &format!("{{action: DENY, {any}}}"));
    let audit = policy("foo/u", &format!("{{action: AUDIT, {any}}}"));
    let custom = policy("foo/c", &format!("{{action: CUSTOM, provider: {{name: x}}, {any}}}"));
    let q = Question::default();
    check("", &q, "allow");
    check(&allow, &q, "allow by foo/a rule 0");
    check(&(allow.clone() + &deny), &q, "deny by foo/d rule 0");
    check(&audit, &q, "allow");
    check(&(allow.clone() + &custom), &q, "deny by foo/c");
    let verdict = verdict(&(allow + &audit), &q);
    assert_eq!(
        verdict.audit.map(|hit| hit.policy.to_string()).as_deref(),
        Some("AuthorizationPolicy foo/u")
    );
    assert_eq!((verdict.allowed, verdict.reason), (true, Reason::AllowRule));
}

#[test]
fn rule_4_2_scopes_and_selectors_are_joined() {
    let spec = |selector: &str| {
        format!("{{selector: {{matchLabels: {{{selector}}}}}, action: DENY, rules: [{{}}]}}")
    };
    let q = Question::default();
    for (place, selector, expected) in [
        ("foo/p", "", "deny by foo/p"),
        ("foo/p", "app: a", "deny by foo/p"),
        ("foo/p", "version: v1, app: a", "deny by foo/p"),
        ("foo/p", "app: a, version: v2", "allow"),
        ("foo/p", "app: b", "allow"),
        ("bar/p", "", "allow"),
        ("root/p", "", "deny by root/p"),
        // Unlike PeerAuthentication's.
        ("root/p", "app: a", "deny by root/p"),
        ("root/p", "app: b", "allow"),
    ] {
        check(&policy(place, &spec(selector)), &q, expected);
    }
    let target = "{targetRef: {kind: Service, name: s}, action: DENY, rules: [{}]}";
    check(&policy("foo/p", target), &q, "allow");
    let all = policy("root/m", "{rules: [{from: [{source: {principals: [x]}}]}]}")
        + &policy("foo/n", "{rules: [{from: [{source: {namespaces: [foo]}}]}]}");
    check(&all, &q, "allow by foo/n rule 0");
}

#[test]
fn rule_4_3_no_rules_allow_nothing_and_an_empty_rule_matches_everything() {
    for question in [Question::default(), by("-"), http("GET h/", &[])] {
        check(&policy("foo/p", "{}"), &question, "deny by foo/p");
        check(&policy("foo/p", "{rules: []}"), &question, "deny by foo/p");
        check(&policy("foo/p", "{rules: [{}]}"), &question, "allow by foo/p rule 0");
        check(&policy("foo/p", "{action: DENY, rules: [{}]}"), &question, "deny by foo/p rule 0");
    }
}

#[test]
fn rule_4_4_any_from_and_any_to_and_all_when() {
    let rule = "{from: [{source: {namespaces: [no]}}, {source: {namespaces: [foo, no], ipBlocks: [10.0.0.9]}}], \
                to: [{operation: {ports: ['81']}}, {operation: {ports: ['80'], notPorts: ['82']}}], \
                when: [{key: source.namespace, values: [foo]}, {key: destination.ip, notValues: [10.0.0.2]}]}";
    matches(rule, &Question::default(), true);
    matches(rule, &from("10.0.0.8"), false);
    matches(rule, &by("td/ns/bar/sa/web"), false);
    matches(rule, &to("10.0.0.2:80"), false);
    matches(rule, &to("10.0.0.1:82"), false);
    matches(rule, &to("10.0.0.1:81"), true);
    let second = policy(
        "foo/p",
        &format!("{{rules: [{{from: [{{source: {{namespaces: [no]}}}}]}}, {rule}]}}"),
    );
    check(&second, &Question::default(), "allow by foo/p rule 1");
}

#[test]
fn rule_4_5_plaintext_matches_what_is_not_and_nothing_that_is() {
    for (field, value) in [
        ("rincipals", "'*'"),
        ("amespaces", "'*'"),
        ("erviceAccounts", "foo/web"),
        ("rustDomains", "'*'"),
    ] {
        let first = match field.chars().next() {
            Some('r') if field == "rincipals" => "p",
            Some('a') => "n",
            Some('e') => "s",
            _ => "t",
        };
        let not = format!("not{}{field}: [{value}]", first.to_uppercase());
        let is = format!("{first}{field}: [{value}]");
        source_matches(&is, &by("-"), false);
        source_matches(&not, &by("-"), true);
        source_matches(&is, &Question::default(), true);
        source_matches(&not, &Question::default(), false);
    }
    when_matches("key: source.principal, notValues: ['*']", &by("-"), true);
    when_matches("key: source.principal, values: ['*']", &by("-"), false);
}

#[test]
fn rule_4_6_principals() {
    let q = Question::default();
    for (value, expected) in [
        ("td/ns/foo/sa/web", true),
        ("td/ns/foo/sa/we", false),
        ("td/ns/foo/*", true),
        ("td/ns/fo*", true),
        ("'*/sa/web'", true),
        ("'*web'", true),
        ("'*'", true),
        ("'*foo*'", false),
        ("td/*/sa/web", false),
        ("spiffe://td/ns/foo/sa/web", false),
        ("TD/ns/foo/sa/web", false),
    ] {
        source_matches(&format!("principals: [{value}]"), &q, expected);
        source_matches(&format!("notPrincipals: [{value}]"), &q, !expected);
        when_matches(&format!("key: source.principal, values: [{value}]"), &q, expected);
    }
}

#[test]
fn rule_4_6_namespaces_accounts_and_trust_domains_need_an_identity_of_five_parts() {
    for (field, principal, expected) in [
        ("namespaces: [foo]", "td/ns/foo/sa/web", true),
        ("namespaces: ['f*']", "td/ns/foo/sa/web", true),
        ("namespaces: ['*o']", "td/ns/foo/sa/web", true),
        ("namespaces: ['f*o']", "td/ns/foo/sa/web", true),
        ("namespaces: ['f*x']", "td/ns/foo/sa/web", false),
        ("namespaces: [fo]", "td/ns/foo/sa/web", false),
        ("namespaces: [foo]", "td/x/ns/foo/sa/web", false),
        ("namespaces: [foo]", "td/ns/foo/sa/web/x", false),
        ("namespaces: [foo]", "td/ns/foo", false),
        ("serviceAccounts: [web]", "td/ns/foo/sa/web", true),
        ("serviceAccounts: [web]", "td/ns/bar/sa/web", false),
        ("serviceAccounts: [bar/web]", "other/ns/bar/sa/web", true),
        ("serviceAccounts: [foo/we]", "td/ns/foo/sa/web", false),
        ("trustDomains: [td]", "td/ns/foo/sa/web", true),
        ("trustDomains: [td]", "old-td/ns/foo/sa/web", true),
        ("trustDomains: [other]", "other/whatever", true),
        ("trustDomains: ['*-td']", "old-td/ns/foo/sa/web", true),
        ("trustDomains: ['*']", "x/y", true),
        ("trustDomains: [td]", "tdx/ns/foo/sa/web", false),
    ] {
        source_matches(field, &by(principal), expected);
    }
}

#[test]
fn rule_4_6_addresses_ports_and_server_names() {
    source_matches("ipBlocks: [10.0.0.0/24]", &Question::default(), true);
    source_matches("ipBlocks: [10.0.0.9/24]", &Question::default(), true);
    source_matches("ipBlocks: ['10.0.0.9']", &Question::default(), true);
    source_matches("ipBlocks: [10.0.1.0/24]", &Question::default(), false);
    source_matches("notIpBlocks: [10.0.1.0/24]", &Question::default(), true);
    source_matches("ipBlocks: ['fd00::/8']", &from("fd00::1"), true);
    source_matches("ipBlocks: ['::ffff:10.0.0.0/104']", &Question::default(), true);
    source_matches("ipBlocks: [10.0.0.0/8]", &from("::ffff:10.0.0.9"), true);
    let behind = Question { remote: Some([192, 0, 2, 1].into()), ..Question::default() };
    source_matches("remoteIpBlocks: [192.0.2.0/24]", &behind, true);
    source_matches("ipBlocks: [192.0.2.0/24]", &behind, false);
    source_matches("remoteIpBlocks: [10.0.0.9]", &Question::default(), true);
    when_matches("key: remote.ip, values: [192.0.2.1]", &behind, true);
    when_matches("key: source.ip, values: [10.0.0.9]", &behind, true);
    when_matches("key: destination.ip, values: [10.0.0.1]", &behind, true);
    operation_matches("ports: ['80', '81']", &Question::default(), true);
    operation_matches("ports: ['8080']", &Question::default(), false);
    operation_matches("notPorts: ['8080']", &Question::default(), true);
    when_matches("key: destination.port, values: ['80']", &Question::default(), true);
    when_matches("key: connection.sni, values: ['*.example']", &sni("a.example"), true);
    when_matches("key: connection.sni, values: ['*']", &Question::default(), false);
    when_matches("key: connection.sni, notValues: ['*']", &Question::default(), true);
}

#[test]
fn rule_4_6_hosts_methods_and_paths() {
    let q = http("GET Shop.example:8080/a/b/c?q=/x", &[]);
    for (field, expected) in [
        ("hosts: ['shop.example:8080']", true),
        ("hosts: ['shop.example']", false),
        ("hosts: ['SHOP.*']", true),
        ("hosts: ['*:8080']", true),
        ("hosts: ['*']", true),
        ("notHosts: ['shop.example:8080']", false),
        ("methods: [GET]", true),
        ("methods: [get]", false),
        ("methods: ['G*']", true),
        ("notMethods: [PUT]", true),
        ("paths: [/a/b/c]", true),
        ("paths: ['/a*']", true),
        ("paths: ['*/c']", true),
        ("paths: ['*x']", false),
        ("paths: ['/a/*/c']", false),
        ("paths: ['/a/{*}/c']", true),
        ("paths: ['/a/{*}']", false),
        ("paths: ['/a/{**}']", true),
        ("paths: ['/{**}/c']", true),
        ("paths: ['/a/b/c/{**}']", false),
        ("paths: ['/{*}/{*}/{*}']", true),
        ("paths: ['/{*}/{*}/{*}/']", false),
        ("notPaths: ['/a/{**}']", false),
    ] {
        operation_matches(field, &q, expected);
    }
    operation_matches("paths: ['/a/{*}']", &http("GET h/a/", &[]), false);
    operation_matches("paths: ['/a/{**}']", &http("GET h/a/", &[]), true);
    operation_matches("paths: ['/a/{**}']", &http("GET h/a", &[]), false);
    operation_matches("paths: ['/a/{**}/z']", &http("GET h/a//z", &[]), true);
    operation_matches("paths: ['/a/{**}/z']", &http("GET h/a/z", &[]), false);
}

#[test]
fn rule_4_6_headers() {
    let q = http("GET h/p?q", &[("X-Team", "blue"), ("x-empty", "")]);
    for (when, expected) in [
        ("key: 'request.headers[x-team]', values: [blue]", true),
        ("key: 'request.headers[X-TEAM]', values: ['b*']", true),
        ("key: 'request.headers[x-team]', values: [Blue]", false),
        ("key: 'request.headers[x-team]', notValues: [red]", true),
        ("key: 'request.headers[x-none]', values: ['*']", false),
        ("key: 'request.headers[x-none]', notValues: ['*']", true),
        ("key: 'request.headers[:method]', values: [GET]", true),
        ("key: 'request.headers[:authority]', values: [H]", true),
        ("key: 'request.headers[:path]', values: ['/p?q']", true),
    ] {
        when_matches(when, &q, expected);
    }
}

/// A header that is there several times is read in the way that denies.
#[test]
fn rule_4_6_headers_that_are_there_twice_deny() {
    let q = http("GET h/", &[("x", "good"), ("x", "bad")]);
    for (action, values, expected) in [
        ("ALLOW", "values: [good]", "deny"),
        ("ALLOW", "values: [good, bad]", "allow"),
        ("ALLOW", "notValues: [bad]", "deny"),
        ("ALLOW", "notValues: [worse]", "allow"),
        ("DENY", "values: [bad]", "deny"),
        ("DENY", "notValues: [good]", "deny"),
        ("DENY", "notValues: [good, bad]", "allow"),
    ] {
        let spec = format!(
            "{{action: {action}, rules: [{{when: [{{key: 'request.headers[x]', {values}}}]}}]}}"
        );
        check(&policy("foo/p", &spec), &q, expected);
    }
}

#[test]
fn rule_4_7_principals_of_the_mesh_count_in_every_alias() {
    for (value, principal, expected) in [
        ("td/ns/foo/sa/web", "old-td/ns/foo/sa/web", true),
        ("old-td/ns/foo/sa/web", "td/ns/foo/sa/web", true),
        ("cluster.local/ns/foo/sa/web", "td/ns/foo/sa/web", true),
        ("cluster.local/ns/foo/sa/web", "old-td/ns/foo/sa/web", true),
        ("cluster.local/ns/foo/sa/web", "cluster.local/ns/foo/sa/web", false),
        ("'*-td/ns/foo/sa/web'", "td/ns/foo/sa/web", true),
        ("other/ns/foo/sa/web", "td/ns/foo/sa/web", false),
        ("other/ns/foo/sa/web", "other/ns/foo/sa/web", true),
        ("'*/ns/foo/sa/web'", "other/ns/foo/sa/web", true),
        ("td/ns/foo", "old-td/ns/foo", false),
    ] {
        source_matches(&format!("principals: [{value}]"), &by(principal), expected);
        source_matches(&format!("notPrincipals: [{value}]"), &by(principal), !expected);
    }
}

#[test]
fn rule_4_8_without_http_allow_rules_match_nothing_and_deny_rules_match_more() {
    let web = "{source: {namespaces: [foo]}}";
    let get = "{operation: {methods: [GET]}}";
    for (rule, allow, deny) in [
        (format!("{{to: [{get}]}}"), "deny", "deny"),
        (format!("{{from: [{web}], to: [{get}]}}"), "deny", "deny"),
        // One of several alternatives has the field: Istio drops the whole rule, so do we.
        (format!("{{to: [{get}, {{operation: {{ports: ['80']}}}}]}}"), "deny", "deny"),
        (format!("{{from: [{{source: {{namespaces: [bar]}}}}], to: [{get}]}}"), "deny", "allow"),
        ("{to: [{operation: {methods: [GET], ports: ['81']}}]}".to_owned(), "deny", "allow"),
        ("{when: [{key: 'request.headers[x]', values: [y]}]}".to_owned(), "deny", "deny"),
        (
            "{to: [{operation: {paths: [/x]}}], from: [{source: {requestPrincipals: ['*']}}]}"
                .to_owned(),
            "deny",
            "deny",
        ),
        ("{when: [{key: connection.sni, values: [y]}]}".to_owned(), "deny", "allow"),
        (format!("{{from: [{web}]}}"), "allow", "deny"),
    ] {
        let q = Question::default();
        check(&policy("foo/p", &format!("{{rules: [{rule}]}}")), &q, allow);
        check(&policy("foo/p", &format!("{{action: DENY, rules: [{rule}]}}")), &q, deny);
    }
}

#[test]
fn rule_4_9_what_cannot_be_told_denies() {
    let q = http("GET h/", &[("authorization", "Bearer x")]);
    for (rule, deny) in [
        ("{when: [{key: source.colour, values: [red]}]}", "deny by foo/p rule 0"),
        (
            "{from: [{source: {namespaces: [bar]}}], when: [{key: source.colour, values: [red]}]}",
            "allow",
        ),
        ("{from: [{source: {requestPrincipals: [a/b]}}]}", "deny by foo/p rule 0"),
        ("{from: [{source: {notRequestPrincipals: ['*']}}]}", "deny by foo/p rule 0"),
        ("{when: [{key: 'request.auth.claims[iss]', values: [a]}]}", "deny by foo/p rule 0"),
        (
            "{when: [{key: 'request.auth.claims[iss]', values: [a]}], to: [{operation: {ports: ['81']}}]}",
            "allow",
        ),
        ("{when: [{key: 'experimental.envoy.filters.a[b]', values: [a]}]}", "deny by foo/p rule 0"),
    ] {
        check(&policy("foo/p", &format!("{{rules: [{rule}]}}")), &q, "deny by foo/p");
        check(&policy("foo/p", &format!("{{action: DENY, rules: [{rule}]}}")), &q, deny);
    }
    // The other rules of the policy hold.
    let spec = "{rules: [{when: [{key: source.colour, values: [red]}]}, {from: [{source: {namespaces: [foo]}}]}]}";
    check(&policy("foo/p", spec), &q, "allow by foo/p rule 1");
}

#[test]
fn rule_4_11_a_dry_run_is_reported_and_decides_nothing() {
    let dry = ", annotations: {istio.io/dry-run: 'true'}";
    let q = Question::default();
    let hit = |yaml: &str| verdict(yaml, &q).dry_run.map(|hit| (hit.allowed, hit.rule));
    let deny = with_annotation("foo/d", "{action: DENY, rules: [{}]}", dry);
    let allow_none = with_annotation("foo/n", "{}", dry);
    let allow_all = with_annotation("foo/a", "{rules: [{}]}", dry);
    for (yaml, expected) in [
        (&deny, Some((false, Some(0)))),
        (&allow_none, Some((false, None))),
        (&allow_all, Some((true, Some(0)))),
        (&(allow_all.clone() + &deny), Some((false, Some(0)))),
        (&policy("foo/p", "{rules: [{}]}"), None),
    ] {
        check(yaml, &q, "allow");
        assert_eq!(hit(yaml), expected, "{yaml}");
    }
    let off = with_annotation(
        "foo/d",
        "{action: DENY, rules: [{}]}",
        ", annotations: {istio.io/dry-run: 'false'}",
    );
    check(&off, &q, "deny by foo/d rule 0");
}

#[test]
fn what_was_refused_denies_what_it_selects() {
    let bad = "rules: [{from: [{source: {ipBlocks: [x]}}]}]";
    let q = Question::default();
    for (place, spec, expected) in [
        ("foo/p", format!("{{{bad}}}"), "deny by foo/p"),
        ("foo/p", format!("{{selector: {{matchLabels: {{app: a}}}}, {bad}}}"), "deny by foo/p"),
        ("foo/p", format!("{{selector: {{matchLabels: {{app: b}}}}, {bad}}}"), "allow"),
        ("foo/p", format!("{{selector: {{matchLabel: {{app: b}}}}, {bad}}}"), "deny by foo/p"),
        ("bar/p", format!("{{{bad}}}"), "allow"),
        ("root/p", format!("{{{bad}}}"), "deny by root/p"),
        ("foo/p", format!("{{action: DENY, {bad}}}"), "deny by foo/p"),
        ("foo/p", format!("{{action: AUDIT, {bad}}}"), "allow"),
        ("foo/p", format!("{{targetRef: {{kind: Service, name: x}}, {bad}}}"), "allow"),
    ] {
        check(&policy(place, &spec), &q, expected);
    }
    let dry = with_annotation(
        "foo/p",
        &format!("{{{bad}}}"),
        ", annotations: {istio.io/dry-run: 'true'}",
    );
    check(&dry, &q, "allow");
}

#[test]
fn http_is_needed_where_a_rule_asks_it_and_nowhere_else() {
    for (spec, needed) in [
        ("{rules: [{to: [{operation: {methods: [GET]}}]}]}", [true, true]),
        ("{rules: [{to: [{operation: {methods: [GET], ports: ['80']}}]}]}", [true, false]),
        ("{rules: [{to: [{operation: {paths: [/], notPorts: ['80']}}]}]}", [false, true]),
        (
            "{rules: [{to: [{operation: {ports: ['80']}}], when: [{key: 'request.headers[x]', values: [y]}]}]}",
            [true, false],
        ),
        (
            "{rules: [{when: [{key: 'request.headers[x]', values: [y]}, {key: destination.port, values: ['81']}]}]}",
            [false, true],
        ),
        (
            "{rules: [{from: [{source: {namespaces: [foo]}}], to: [{operation: {ports: ['80']}}]}]}",
            [false, false],
        ),
        ("{}", [false, false]),
    ] {
        let (objects, refused, report) = read(&policy("foo/p", spec));
        assert_eq!(report.errors, [], "{spec}");
        let all = compiled(objects, refused).for_workload("foo", &BTreeMap::new());
        assert_eq!([80, 81].map(|port| all.needs_http(port)), needed, "{spec}");
        assert!(!all.is_empty());
    }
    assert!(compiled(Vec::new(), Vec::new()).for_workload("foo", &BTreeMap::new()).is_empty());
}

#[test]
fn a_verdict_says_who_decided_and_why() {
    let deny =
        policy("foo/p", "{action: DENY, rules: [{from: [{source: {notPrincipals: ['*']}}]}]}");
    let text = verdict(&deny, &by("-").port(81)).to_string();
    assert_eq!(text, "AuthorizationPolicy foo/p rule 0: a rule of a DENY policy matches");
    let allow = policy("foo/p", "{}");
    let text = verdict(&allow, &by("-")).to_string();
    assert_eq!(text, "AuthorizationPolicy foo/p: no rule of the ALLOW policies matches");
    let text = verdict("", &by("-")).to_string();
    assert_eq!(text, "no ALLOW policy selects the workload");
}
