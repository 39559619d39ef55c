//! Whose word counts at a workload's address (policy.md 2.6): another namespace's `ServiceEntry` opens
//! nothing there.

use super::*;

/// A service of `namespace` with the server's own address, or the plaintext one's, behind it.
fn entry(namespace: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: db, namespace: {namespace}}}\n\
         spec: {{hosts: [db.{namespace}.test], ports: [{{number: 80, name: tcp, protocol: TCP}}], {more}}}\n"
    )
}

fn mode(namespace: &str, mode: &str) -> String {
    rule(namespace, &format!("db.{namespace}.test"), &format!("trafficPolicy: {{tls: {mode}}}"))
}

const AT: &str = "endpoints: [{address: 10.0.0.2}]";
const OPEN: &str = "{mode: DISABLE}";

#[test]
fn rule_2_6_no_other_namespace_makes_a_workloads_address_plaintext() {
    let internal = format!("location: MESH_INTERNAL, {AT}");
    let virtual_address = format!("addresses: [10.96.5.5], resolution: STATIC, {AT}");
    for (what, more) in [
        // MESH_EXTERNAL is the default.
        ("external", vec![entry("evil", AT)]),
        ("of its own address", vec![entry("evil", "resolution: NONE, addresses: [10.0.0.2]")]),
        ("a rule", vec![entry("evil", &internal), mode("evil", OPEN)]),
        ("a rule of its own CA", vec![entry("evil", &internal), mode("evil", "{mode: SIMPLE}")]),
        (
            "a rule that names another",
            vec![
                entry("evil", &internal),
                mode("evil", "{mode: ISTIO_MUTUAL, subjectAltNames: [spiffe://x/evil]}"),
            ],
        ),
        ("a refused rule", vec![entry("evil", &internal), mode("evil", "{mode: NEVER}")]),
        ("its mode", vec![entry("evil", &internal), authn("evil", "{mtls: {mode: DISABLE}}")]),
        ("at a virtual address", vec![entry("evil", &virtual_address)]),
    ] {
        let texts: Vec<&str> = [MESH].into_iter().chain(more.iter().map(|text| &**text)).collect();
        let built = build_with(settings(), &texts).unwrap();
        let expected = format!("mtls 10.0.0.2:80 {SERVER}");
        assert_eq!(answer(&built.snapshot, "10.0.0.2:80", 0), expected, "{what}");
        if what.contains("virtual") {
            assert_eq!(answer(&built.snapshot, "10.96.5.5:80", 0), expected, "{what}");
        }
        // Nor past the daemon.
        let client = built.snapshot.workload_at("10.0.0.1".parse().unwrap()).unwrap();
        let rows = built.snapshot.outbound_rows(client);
        let server: IpAddr = "10.0.0.2".parse().unwrap();
        assert!(rows.iter().all(|row| row.address != server || !row.untouched), "{what}: {rows:?}");
        // What its ports speak is not theirs to say either: HTTP stays HTTP.
        let server = built.snapshot.workload_at(server).unwrap();
        assert_eq!(built.snapshot.inbound(server, 80).protocol, PortProtocol::Http, "{what}");
        let port = entry("evil", &internal).replace("number: 80", "number: 81");
        let built = build_with(settings(), &[MESH, &port]).unwrap();
        let server = built.snapshot.workload_at(server.addresses[0]).unwrap();
        assert_eq!(built.snapshot.inbound(server, 81).protocol, PortProtocol::Auto, "{what}");
    }
}

#[test]
fn rule_2_6_a_workloads_own_namespace_decides() {
    // As the server's owner: plaintext, whatever another's service says and however it is called.
    let own = entry("full", &format!("location: MESH_INTERNAL, {AT}"));
    let forced = mode("aaa", "{mode: ISTIO_MUTUAL}");
    let texts = [MESH, &own, &mode("full", OPEN), &entry("aaa", AT), &forced];
    assert_eq!(answer(&build(&texts), "10.0.0.2:80", 0), "plain 10.0.0.2:80");
    // And its own mTLS, though another's service comes first.
    let plain = own.replace("10.0.0.2", "10.0.0.3");
    let texts = [MESH, &plain, &mode("full", "{mode: ISTIO_MUTUAL}"), &entry("aaa", AT)];
    let found = answer(&build(&texts), "10.0.0.3:80", 0);
    assert!(found.starts_with("mtls 10.0.0.3:80"), "{found}");
}

#[test]
fn rule_2_6_at_a_plaintext_workload_others_can_only_close() {
    let at = "location: MESH_INTERNAL, endpoints: [{address: 10.0.0.3}]";
    let (one, two) = (entry("a", at), entry("b", at));
    for (tls, expected) in [
        ("{mode: ISTIO_MUTUAL}", "mtls 10.0.0.3:80"),
        ("{mode: SIMPLE}", "tls 10.0.0.3:80"),
        ("{mode: DISABLE}", "plain 10.0.0.3:80"),
    ] {
        let found = answer(&build(&[MESH, &one, &mode("a", tls)]), "10.0.0.3:80", 0);
        assert!(found.starts_with(expected), "{tls}: {found}");
    }
    // The first by name wants plaintext, another does not.
    let forced = mode("b", "{mode: ISTIO_MUTUAL}");
    let found = answer(&build(&[MESH, &one, &two, &mode("a", OPEN), &forced]), "10.0.0.3:80", 0);
    assert!(found.starts_with("mtls 10.0.0.3:80"), "{found}");
}

#[test]
fn an_address_that_is_also_virtual_never_has_a_kernel_row() {
    // A service's name resolves to the virtual address of another: a server's own and a virtual one.
    let name = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
                metadata: {name: ext, namespace: full}\n\
                spec: {hosts: [ext.test], ports: [{number: 8000, name: tcp}], resolution: DNS}\n";
    let mut objects = Objects::default();
    for text in [MESH, name] {
        objects.add_file("f.yaml", text.as_bytes(), &Limits::default());
    }
    let address: IpAddr = "10.96.0.1".parse().unwrap();
    let current = vec![address];
    let answer_of_dns =
        super::super::names::Answer { remembered: current.clone(), current, error: None };
    objects.names = [("ext.test".into(), answer_of_dns)].into();
    let built = Snapshot::build(objects, None, settings(), "a", 1).unwrap();
    let client = built.snapshot.workload_at("10.0.0.1".parse().unwrap()).unwrap();
    let rows = built.snapshot.outbound_rows(client);
    assert!(rows.iter().all(|row| row.address != address), "{rows:?}");
    assert_eq!(answer(&built.snapshot, "10.96.0.1:8000", 0), format!("mtls 10.0.0.2:80 {SERVER}"));
}
