//! What names nothing that is there is said, and nothing else is.

use super::*;

fn warned(yaml: &[&str]) -> Vec<String> {
    let built = build_with(settings(), yaml).unwrap();
    assert_eq!(built.errors, []);
    built.warnings.iter().map(ToString::to_string).collect()
}

fn rule(host: &str, rest: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: r, namespace: full}}\nspec: {{host: {host}{rest}}}\n"
    )
}

fn authz(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

const DISABLE: &str = ", trafficPolicy: {tls: {mode: DISABLE}}";

#[test]
fn a_rule_for_a_host_that_no_service_has_is_said() {
    for host in ["sever.full.svc.cluster.local", "server.full", "'*.example.org'"] {
        for rest in [
            DISABLE,
            ", trafficPolicy: {portLevelSettings: [{port: {number: 1}, tls: {mode: DISABLE}}]}",
            ", subsets: [{name: s, trafficPolicy: {tls: {mode: DISABLE}}}]",
        ] {
            let warned = warned(&[MESH, &rule(host, rest)]);
            let said = warned
                .iter()
                .any(|w| w.contains("DestinationRule full/r: spec.host: no ServiceEntry whose"));
            assert!(said, "{host}{rest}: {warned:?}");
        }
    }
    for host in ["server", "Server.full.svc.cluster.local", "'*.full.svc.cluster.local'", "'*'"] {
        assert_eq!(warned(&[MESH, &rule(host, DISABLE)]), [""; 0], "{host}");
    }
    // Nothing about TLS, and nothing to compare with.
    assert_eq!(warned(&[MESH, &rule("nobody", "")]), [""; 0]);
    assert_eq!(warned(&[&rule("nobody", DISABLE)]), [""; 0]);
}

#[test]
fn a_selector_that_selects_nobody_is_said() {
    let select = |labels: &str| format!("{{selector: {{matchLabels: {labels}}}, {{}}}}");
    let strict = |labels: &str| select(labels).replace("{}", "mtls: {mode: STRICT}");
    let deny = |labels: &str| select(labels).replace("{}", "action: DENY, rules: [{}]");
    for (yaml, label) in [
        (authn("full", &strict("{app: sever}")), "app: sever"),
        (authn("other", &strict("{app: server}")), "app: server"),
        (authz("full", &deny("{app: server, tier: db}")), "tier: db"),
        (authz("istio-system", &deny("{app: sever}")), "app: sever"),
        (rule("server", ", workloadSelector: {matchLabels: {app: cleint}}"), "app: cleint"),
    ] {
        let warned = warned(&[MESH, &yaml]);
        let said = warned.iter().any(|w| w.contains(&format!("has the label {label},")));
        assert!(said, "{yaml}: {warned:?}");
        let alone = build_with(settings(), &[&yaml]).unwrap().warnings;
        assert!(alone.is_empty(), "{yaml}: {alone:?}");
    }
    for yaml in [
        authn("full", &strict("{app: server}")),
        authz("istio-system", &deny("{app: server}")),
        rule("server", ", workloadSelector: {matchLabels: {app: client}}"),
    ] {
        assert_eq!(warned(&[MESH, &yaml]), [""; 0], "{yaml}");
    }
}

#[test]
fn a_policy_for_gateways_is_said_to_be_enforced_nowhere() {
    let spec = "{targetRefs: [{kind: Service, name: server}], action: DENY, rules: [{}]}";
    let warned = warned(&[MESH, &authz("full", spec)]);
    assert!(warned.iter().any(|w| w.contains("enforced nowhere")), "{warned:?}");
}

/// As the usual entry for egress has it: nothing goes by it here, and it must not cost the start.
#[test]
fn an_entry_for_whatever_is_outside_changes_nothing() {
    let entry = |host: &str, spec: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: out, namespace: full}}\nspec: {{hosts: ['{host}'], \
             ports: [{{number: 443, name: tls, protocol: TLS}}]{spec}}}\n"
        )
    };
    for spec in [
        ", location: MESH_EXTERNAL, resolution: NONE",
        ", resolution: NONE",
        "",
        ", resolution: NONE, addresses: [192.0.2.0/24]",
        ", resolution: NONE, addresses: [192.0.2.0/24, 198.51.100.7]",
    ] {
        let entry = entry("*.wikipedia.org", spec);
        let warned_of = warned(&[MESH, &entry]);
        assert!(warned_of.iter().any(|w| w.contains("as they are [W_FIELD_IGNORED]")), "{spec}");
        // TLS is asked for, and is for nobody's connections.
        let warned = warned(&[MESH, &entry, &rule("'*.wikipedia.org'", DISABLE)]);
        assert!(warned.iter().any(|w| w.contains("whose servers are known")), "{warned:?}");
    }
    for spec in [", location: MESH_INTERNAL", ", location: MESH_INTERNAL, resolution: NONE"] {
        let refused = refused(&[MESH, &entry("a.example", spec)]);
        assert!(refused.iter().any(|e| e.contains("needs addresses in the mesh")), "{refused:?}");
    }
    let range = ", location: MESH_INTERNAL, resolution: NONE, addresses: [192.0.2.0/24]";
    let refused = refused(&[MESH, &entry("a.example", range)]);
    assert!(refused.iter().any(|e| e.contains("is a range")), "{refused:?}");
}
