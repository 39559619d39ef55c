//! Services outside the mesh, and TLS originated to them.

use super::*;
use crate::mesh::names::Answer;
use crate::policy::TlsMode;

/// A service outside the mesh whose one server is at 198.51.100.7.
fn outside(name: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: {name}, namespace: full}}\n\
         spec: {{hosts: [{name}.example.com], ports: [{{number: 443, name: tls}}], {more}}}\n"
    )
}

fn simple(name: &str, tls: &str) -> String {
    rule("full", &format!("{name}.example.com"), &format!("trafficPolicy: {{tls: {tls}}}"))
        .replace("name: rule", &format!("name: {name}"))
}

#[test]
fn rule_2_3_tls_is_originated_and_never_bypassed() {
    let at = "resolution: NONE, addresses: [198.51.100.7]";
    let entry = outside("db", at);
    let snapshot = build(&[MESH, &entry, &simple("db", "{mode: SIMPLE}")]);
    let name = AskFor::Name("db.example.com".into());
    let expected = format!("tls 198.51.100.7:443 {name:?}");
    assert_eq!(answer(&snapshot, "198.51.100.7:443", 0), expected);
    assert_eq!(answer(&snapshot, "198.51.100.7:80", 0), "plain 198.51.100.7:80");
    let found: Vec<_> = snapshot.originations().map(|settings| settings.mode).collect();
    assert!(!found.is_empty() && found.iter().all(|mode| *mode == TlsMode::Simple), "{found:?}");
    let client = snapshot.workload_at("10.0.0.1".parse().unwrap()).unwrap();
    let address: IpAddr = "198.51.100.7".parse().unwrap();
    let row = |port, untouched| OutboundRow { address, port, untouched };
    let rows = snapshot.outbound_rows(client);
    assert!(rows.contains(&row(443, false)) && rows.contains(&row(0, true)), "{rows:?}");

    let asked = simple("db", "{mode: SIMPLE, sni: other.test}");
    let name = AskFor::Name("other.test".into());
    let snapshot = build(&[MESH, &entry, &asked]);
    assert_eq!(answer(&snapshot, "198.51.100.7:443", 0), format!("tls 198.51.100.7:443 {name:?}"));
}

#[test]
fn http2_is_offered_where_a_port_is_declared_so() {
    let at = "resolution: NONE, addresses: [198.51.100.7]";
    for (port, expected) in [
        ("name: tls", false),
        ("name: x, protocol: TCP", false),
        ("name: x, protocol: HTTP", false),
        ("name: x, protocol: HTTP2", true),
        ("name: x, protocol: GRPC", true),
        ("name: grpc-api", true),
    ] {
        let entry = outside("db", at).replace("name: tls", port);
        let snapshot = build(&[MESH, &entry, &simple("db", "{mode: SIMPLE}")]);
        let client = snapshot.workload_at("10.0.0.1".parse().unwrap()).unwrap();
        let plan = snapshot.outbound(client, "198.51.100.7:443".parse().unwrap(), &mut |_| 0);
        let OutboundPlan::Connect { tls: ClientTls::Originate { origination, .. }, .. } = plan
        else {
            panic!("{port}: {plan:?}");
        };
        assert_eq!(origination.http2, expected, "{port}");
        // Two services with the same rule agree about it whatever they carry.
        let (one, two) = (entry, outside("b", at));
        let asked = "{mode: SIMPLE, sni: same.test}";
        let snapshot = build(&[MESH, &one, &two, &simple("db", asked), &simple("b", asked)]);
        assert!(answer(&snapshot, "198.51.100.7:443", 0).starts_with("tls "), "{port}");
    }
}

#[test]
fn services_at_one_address_whose_rules_disagree_are_refused() {
    let at = "resolution: NONE, addresses: [198.51.100.7]";
    let (one, two) = (outside("a", at), outside("b", at));
    let asked = "{mode: SIMPLE, sni: same.test}";
    let (of_one, of_two) = (simple("a", asked), simple("b", asked));
    let snapshot = build(&[MESH, &one, &two, &of_one]);
    assert_eq!(answer(&snapshot, "198.51.100.7:443", 0), "disagree");
    let warnings = build_with(settings(), &[MESH, &one, &two, &of_one]).unwrap().warnings;
    let said = warnings.iter().any(|warning| warning.reason.contains("disagree about TLS"));
    assert!(said, "{warnings:?}");
    let client = snapshot.workload_at("10.0.0.1".parse().unwrap()).unwrap();
    let address: IpAddr = "198.51.100.7".parse().unwrap();
    let closed = OutboundRow { address, port: 443, untouched: false };
    assert!(snapshot.outbound_rows(client).contains(&closed), "the kernel does not bypass it");
    let snapshot = build(&[MESH, &one, &two, &of_one, &of_two]);
    assert!(answer(&snapshot, "198.51.100.7:443", 0).starts_with("tls "), "they agree");
}

#[test]
fn names_outside_the_mesh_stand_for_what_they_resolve_to() {
    let resolve = |more: &str, current: &[&str], remembered: &[&str]| {
        let parse = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect();
        let answer = Answer { current: parse(current), remembered: parse(remembered), error: None };
        let mut objects = Objects::default();
        for text in [MESH, &outside("db", more), &simple("db", "{mode: SIMPLE}")] {
            objects.add_file("f.yaml", text.as_bytes(), &Limits::default());
        }
        let names = objects.names_to_resolve(None);
        assert_eq!(names.iter().map(|name| &**name).collect::<Vec<_>>(), ["db.example.com"]);
        objects.names = [("db.example.com".into(), answer)].into();
        Snapshot::build(objects, None, settings(), "a", 1).unwrap()
    };
    let (old, new) = ("198.51.100.8", "198.51.100.9");
    let built = resolve("resolution: DNS", &[new], &[old, new]);
    for address in ["198.51.100.8:443", "198.51.100.9:443"] {
        assert!(answer(&built.snapshot, address, 0).starts_with(&format!("tls {address}")));
    }
    let virtual_address = "resolution: DNS, addresses: [10.96.0.9]";
    let built = resolve(virtual_address, &[new], &[old, new]);
    let found = answer(&built.snapshot, "10.96.0.9:443", 0);
    assert!(found.starts_with("tls 198.51.100.9:443"), "{found}");
    let built = resolve(virtual_address, &[], &[]);
    assert_eq!(answer(&built.snapshot, "10.96.0.9:443", 0), "no-endpoint");
    // An answer takes no workload's connections over.
    let built = resolve("resolution: DNS", &["10.0.0.2"], &["10.0.0.2"]);
    assert_eq!(answer(&built.snapshot, "10.0.0.2:443", 0), format!("mtls 10.0.0.2:443 {SERVER}"));
    assert!(built.warnings[0].reason.contains("left out"), "{:?}", built.warnings);
}
