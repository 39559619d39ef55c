//! Workloads that have only some ports of their host's addresses.

use super::*;
use crate::mesh::Place;

/// Two at 192.0.2.1 and fd00::21, and a client there that serves nothing; all on node b.
const HOST: &str = r#"
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web, namespace: metal}
spec: {address: 192.0.2.1, serviceAccount: web, labels: {app: web, security.istio.io/tlsMode: istio}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web-v6, namespace: metal}
spec: {address: "fd00::21", serviceAccount: web, labels: {app: web, security.istio.io/tlsMode: istio}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: db, namespace: metal}
spec: {address: 192.0.2.1, serviceAccount: db, labels: {app: db, security.istio.io/tlsMode: istio}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: cron, namespace: metal}
spec: {address: 192.0.2.1, serviceAccount: cron, labels: {app: cron, security.istio.io/tlsMode: istio}}
---
apiVersion: mtls-ebpf.dev/v1alpha1
kind: NodeWorkload
metadata: {name: web, namespace: metal}
spec: {node: b, systemdUnit: web.service, ports: [8080, 8443], workloadEntries: [web, web-v6]}
---
apiVersion: mtls-ebpf.dev/v1alpha1
kind: NodeWorkload
metadata: {name: db, namespace: metal}
spec: {node: b, cgroup: /system.slice/db.service, ports: [5432], workloadEntries: [db]}
---
apiVersion: mtls-ebpf.dev/v1alpha1
kind: NodeWorkload
metadata: {name: cron, namespace: metal}
spec: {node: b, systemdUnit: cron.service, ports: [], workloadEntries: [cron]}
"#;

fn build_on(node: &str, yaml: &[&str]) -> Snapshot {
    let mut objects = Objects::default();
    for (index, text) in yaml.iter().enumerate() {
        objects.add_file(&format!("{index}.yaml"), text.as_bytes(), &Limits::default());
    }
    let built = Snapshot::build(objects, None, settings(), node, 1).unwrap();
    assert_eq!(built.errors, []);
    built.snapshot
}

fn mtls(address: &str, account: &str) -> String {
    let id = |domain: &str| format!("spiffe://{domain}/ns/metal/sa/{account}");
    format!("mtls {address} {} {}", id("cluster.local"), id("old.local"))
}

#[test]
fn each_declared_port_is_one_workloads_and_the_rest_is_the_hosts() {
    let snapshot = build(&[MESH, HOST]);
    for (destination, account) in
        [("192.0.2.1:8080", "web"), ("[fd00::21]:8443", "web"), ("192.0.2.1:5432", "db")]
    {
        assert_eq!(answer(&snapshot, destination, 0), mtls(destination, account));
    }
    for destination in ["192.0.2.1:22", "[fd00::21]:5432", "[fd00::21]:22"] {
        assert_eq!(answer(&snapshot, destination, 0), format!("plain {destination}"));
    }
    // Whoever calls from there may be anybody.
    let address = "192.0.2.1".parse().unwrap();
    assert!(snapshot.workload_at(address).is_none());
    assert_eq!(snapshot.peer_knowledge(address), PeerKnowledge::Unknown);
    assert!(snapshot.addresses().contains(&address));
    let names: Vec<String> = snapshot.workloads().iter().map(|workload| workload.key()).collect();
    for name in ["metal/cron", "metal/db", "metal/web"] {
        assert_eq!(names.iter().filter(|known| *known == name).count(), 1, "{names:?}");
    }
}

#[test]
fn the_kernel_leaves_what_is_not_declared() {
    let disable = authn("metal", "{selector: {matchLabels: {app: db}}, mtls: {mode: DISABLE}}");
    let snapshot = build(&[MESH, HOST, &disable]);
    let client = snapshot.workload_at("10.0.0.1".parse().unwrap()).unwrap();
    let rows: Vec<(u16, bool)> = snapshot
        .outbound_rows(client)
        .into_iter()
        .filter(|row| row.address.to_string() == "192.0.2.1")
        .map(|row| (row.port, row.untouched))
        .collect();
    // The DISABLE one needs no row of its own.
    assert_eq!(rows, [(0, true), (8080, false), (8443, false)]);
}

#[test]
fn a_node_knows_its_own_by_unit_and_cgroup() {
    let snapshot = build_on("b", &[MESH, HOST]);
    let places: Vec<String> =
        snapshot.node_workloads().iter().map(|it| it.place.to_string()).collect();
    assert_eq!(places, ["unit cron.service", "cgroup system.slice/db.service", "unit web.service"]);
    let web = &snapshot.node_workloads()[2];
    assert!(matches!(web.place, Place::Host(_)));
    assert!(web.workload.has_port(8443) && !web.workload.has_port(22));
    assert_eq!(web.workload.addresses.len(), 2);
    // What policy says of each, also of the one without a port.
    let strict = authn("metal", "{selector: {matchLabels: {app: cron}}, mtls: {mode: STRICT}}");
    let off = authn("metal", "{selector: {matchLabels: {app: web}}, mtls: {mode: DISABLE}}")
        .replace("name: default", "name: off");
    let snapshot = build_on("b", &[MESH, HOST, &strict, &off]);
    let [cron, db, web] = snapshot.node_workloads() else { panic!("three") };
    let untouched = |it: &crate::mesh::NodeWorkload| {
        snapshot.inbound_table(&it.workload, false).untouched_by_default
    };
    assert_eq!([untouched(cron), untouched(db), untouched(web)], [false, false, true]);
    assert_eq!(snapshot.inbound(&cron.workload, 80).mode.mode, Mode::Strict);
    assert_eq!(snapshot.inbound(&db.workload, 5432).mode.mode, Mode::Permissive);
}

#[test]
fn a_service_reaches_them_by_selector() {
    let service = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
                   metadata: {name: web, namespace: metal}\n\
                   spec:\n  hosts: [web.metal]\n  addresses: [10.96.0.7]\n  location: MESH_INTERNAL\n  \
                   resolution: STATIC\n  ports: [{number: 80, name: http, targetPort: 8080}, \
                   {number: 22, name: tcp}]\n  workloadSelector: {labels: {app: web}}\n";
    let snapshot = build(&[MESH, HOST, service]);
    assert_eq!(answer(&snapshot, "10.96.0.7:80", 0), mtls("192.0.2.1:8080", "web"));
    // The port is the host's: nobody speaks mTLS there.
    assert_eq!(answer(&snapshot, "10.96.0.7:22", 0), "plain 192.0.2.1:22");
    let protocol = build_on("b", &[MESH, HOST, service]);
    let web = &protocol.node_workloads()[2].workload;
    assert_eq!(protocol.inbound(web, 8080).protocol, PortProtocol::Http);

    let inline = service
        .replace("workloadSelector: {labels: {app: web}}", "endpoints: [{address: 192.0.2.1}]");
    let errors = refused(&[MESH, HOST, &inline]);
    assert!(errors[0].contains("name them by workloadSelector"), "{errors:?}");
}

/// A service of `namespace` for port 5432, which is `metal/db`'s.
fn at_5432(namespace: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: db, namespace: {namespace}}}\n\
         spec: {{hosts: [db.{namespace}.test], ports: [{{number: 5432, name: tcp}}], {more}}}\n"
    )
}

const NONE: &str = "resolution: NONE, addresses: [192.0.2.1]";

#[test]
fn a_declared_port_is_its_workloads_whoever_else_a_service_has_at_the_address() {
    let evil = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
                metadata: {name: e, namespace: evil}\n\
                spec: {address: 192.0.2.1, serviceAccount: e, labels: {app: e}}\n---\n\
                apiVersion: mtls-ebpf.dev/v1alpha1\nkind: NodeWorkload\n\
                metadata: {name: e, namespace: evil}\n\
                spec: {node: b, cgroup: /e.slice, ports: [], workloadEntries: [e]}\n";
    let selected = at_5432("evil", "workloadSelector: {labels: {app: e}}");
    let own = at_5432("metal", "location: MESH_INTERNAL, workloadSelector: {labels: {app: db}}");
    let strict = authn("istio-system", "{mtls: {mode: STRICT}}");
    let open = rule("evil", "db.evil.test", "trafficPolicy: {tls: {mode: DISABLE}}");
    let all = HOST.replace("labels: {app", "labels: {host: one, app");
    let of_all = "location: MESH_INTERNAL, workloadSelector: {labels: {host: one}}";
    let headless = at_5432("metal", of_all);
    let virtual_too = at_5432("metal", &format!("addresses: [10.96.0.8], {of_all}"));
    let none = at_5432("evil", NONE);
    for (what, objects) in [
        ("by address", vec![HOST, &none]),
        ("by address, with a rule", vec![HOST, &none, &open]),
        ("by selector", vec![HOST, evil, &selected]),
        ("by selector, with a rule", vec![HOST, evil, &selected, &open]),
        ("beside the owner's", vec![HOST, evil, &selected, &own]),
        ("of several of the host", vec![&all, &headless]),
        ("of several at a virtual address", vec![&all, &virtual_too]),
    ] {
        let texts: Vec<&str> = [MESH, &strict].into_iter().chain(objects).collect();
        let snapshot = build(&texts);
        let expected = mtls("192.0.2.1:5432", "db");
        assert_eq!(answer(&snapshot, "192.0.2.1:5432", 0), expected, "{what}");
        assert_eq!(answer(&snapshot, "192.0.2.1:22", 0), "plain 192.0.2.1:22", "{what}");
        if what.contains("virtual") {
            for choice in 0..3 {
                assert_eq!(answer(&snapshot, "10.96.0.8:5432", choice), expected, "{choice}");
            }
        }
        // Nor past the daemon.
        let client = snapshot.workload_at("10.0.0.1".parse().unwrap()).unwrap();
        let rows = snapshot.outbound_rows(client);
        let row = rows.iter().find(|row| row.address.is_ipv4() && row.port == 5432);
        assert!(row.is_some_and(|row| !row.untouched), "{what}: {rows:?}");
    }
}

#[test]
fn a_service_of_the_hosts_address_speaks_for_each_workload_of_its_namespace() {
    let own = at_5432("metal", &format!("location: MESH_INTERNAL, {NONE}"));
    let open = rule("metal", "db.metal.test", "trafficPolicy: {tls: {mode: DISABLE}}");
    let snapshot = build_on("b", &[MESH, HOST, &own, &open]);
    assert_eq!(answer(&snapshot, "192.0.2.1:5432", 0), "plain 192.0.2.1:5432");
    assert_eq!(answer(&snapshot, "192.0.2.1:8080", 0), mtls("192.0.2.1:8080", "web"));
    let db = &snapshot.node_workloads()[1].workload;
    assert_eq!(snapshot.inbound(db, 5432).protocol, PortProtocol::Tcp);
}

#[test]
fn one_port_is_one_workloads_and_an_address_is_a_hosts_or_not() {
    let twice = HOST.replace("ports: [5432]", "ports: [5432, 8080]");
    let errors = refused(&[MESH, &twice]);
    assert!(errors[0].contains("192.0.2.1:8080 is also of metal/"), "{errors:?}");
    let pod = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
               metadata: {name: pod, namespace: metal}\n\
               spec: {address: 192.0.2.1, serviceAccount: pod}\n";
    let errors = refused(&[MESH, HOST, pod]);
    assert!(errors[0].contains("192.0.2.1 is also of"), "{errors:?}");
    let same =
        HOST.replace("node: b, cgroup: /system.slice/db.service", "systemdUnit: web.service");
    let same = same.replace("node: b, systemdUnit: web.service", "systemdUnit: web.service");
    let errors = refused(&[MESH, &same]);
    assert!(errors[0].contains("unit web.service is also of"), "{errors:?}");
}

#[test]
fn a_wrong_place_is_refused_with_its_field() {
    for (place, expected) in [
        ("cgroup: /x.slice", "spec.ports: is required with a cgroup"),
        ("cgroup: /, ports: [80]", "spec.cgroup: the root is everybody's"),
        ("cgroup: a/../b, ports: [80]", "is no path below the cgroup root"),
        ("cgroup: a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q, ports: [80]", "17 levels"),
        ("systemdUnit: web, ports: [80]", "is not the name of a unit"),
        ("systemdUnit: a/b.service, ports: [80]", "is not the name of a unit"),
        ("systemdUnit: web.service, ports: [80, 80]", "spec.ports[1]: 80 is there twice"),
        ("systemdUnit: web.service, ports: [0]", "spec.ports[0]: 0 is not a port"),
        ("systemdUnit: a.service, cgroup: a, ports: []", "spec.systemdUnit: is one place too many"),
        (
            "networkNamespace: client, cgroup: a, ports: []",
            "spec.networkNamespace: is one place too many",
        ),
        ("networkNamespace: client, ports: [80]", "spec.ports: is for workloads of the host"),
    ] {
        let errors = refused(&[&MESH.replacen("networkNamespace: client", place, 1)]);
        assert!(errors[0].contains(expected), "{expected} is not in {errors:?}");
    }
}
