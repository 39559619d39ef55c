//! Objects that are refused: what is in force in their place.

use super::*;
use crate::mesh::Accepted;

fn again(previous: Option<&Accepted>, files: &[(&str, &str)]) -> Built {
    let mut objects = Objects::default();
    for (file, text) in files {
        objects.add_file(file, text.as_bytes(), &Limits::default());
    }
    Snapshot::build(objects, previous, settings(), "a", 1).unwrap()
}

fn mode(built: &Built, address: &str) -> String {
    let workload = built.snapshot.workload_at(address.parse().unwrap()).unwrap();
    let plan = built.snapshot.inbound(workload, 80);
    format!("{} by {}", plan.mode.mode, plan.mode.because)
}

fn says(built: &Built, what: &str) {
    let all: Vec<String> = built.errors.iter().map(ToString::to_string).collect();
    assert!(all.iter().any(|error| error.contains(what)), "{what} is not in {all:#?}");
}

const STRICT: &str = "{mtls: {mode: STRICT}}";
const WRONG: &str = "{mtls: {mode: SOMETIMES}}";

#[test]
fn a_refused_object_keeps_its_version_and_the_others_go_on() {
    let first = again(None, &[("m", MESH), ("a", &authn("full", "{mtls: {mode: DISABLE}}"))]);
    let other = authn("other", STRICT);
    let second =
        again(Some(&first.accepted), &[("m", MESH), ("a", &authn("full", WRONG)), ("b", &other)]);
    assert_eq!(mode(&second, "10.0.0.2"), "DISABLE by PeerAuthentication full/default");
    says(&second, "SOMETIMES");
    says(&second, "the version that was read before stays in force [E_REFUSED]");
    assert!(second.accepted.objects.contains_key("PeerAuthentication other/default"));
    // Still, a reload later; and deleted objects go.
    let third = again(Some(&second.accepted), &[("m", MESH), ("a", &authn("full", WRONG))]);
    assert_eq!(mode(&third, "10.0.0.2"), "DISABLE by PeerAuthentication full/default");
    let fourth = again(Some(&third.accepted), &[("m", MESH)]);
    assert_eq!(mode(&fourth, "10.0.0.2"), "PERMISSIVE by default (no PeerAuthentication)");
    assert_eq!(fourth.errors, []);
}

#[test]
fn without_a_version_a_peer_authentication_is_strict_for_what_it_selects() {
    for (spec, expected) in [
        (WRONG, ["STRICT", "STRICT"]),
        ("{selector: {matchLabels: {app: client}}, mtls: {mode: X}}", ["STRICT", "PERMISSIVE"]),
        // The selector is what is wrong: all of the namespace.
        ("{selector: {matchLabels: {app: '*'}}}", ["STRICT", "STRICT"]),
        ("{selector: {matchLabel: {app: client}}, mtls: {mode: X}}", ["STRICT", "STRICT"]),
    ] {
        let built = again(None, &[("m", MESH), ("a", &authn("full", spec))]);
        let modes = ["10.0.0.1", "10.0.0.2"].map(|address| mode(&built, address));
        for (mode, expected) in modes.iter().zip(expected) {
            assert!(mode.starts_with(expected), "{spec}: {modes:?}");
        }
        assert!(modes[0].ends_with("PeerAuthentication full/default (refused)"), "{modes:?}");
    }
    let mesh = again(None, &[("m", MESH), ("a", &authn("istio-system", WRONG))]);
    assert!(mode(&mesh, "10.0.0.2").starts_with("STRICT"));
    // Not even its name can be read, or it has a version that nobody knows.
    for (from, to) in [("name: default", "name: [x]"), ("istio.io/v1", "istio.io/v9")] {
        let text = authn("full", STRICT).replace(from, to);
        let built = again(None, &[("m", MESH), ("a", &text)]);
        assert!(mode(&built, "10.0.0.2").starts_with("STRICT"), "{text}");
    }
}

#[test]
fn a_refused_one_goes_before_a_good_one_of_its_scope() {
    let good = authn("full", "{mtls: {mode: DISABLE}}").replace("default", "aaa");
    let built = again(None, &[("m", MESH), ("a", &good), ("b", &authn("full", WRONG))]);
    assert!(mode(&built, "10.0.0.2").starts_with("STRICT"));
}

#[test]
fn a_refused_destination_rule_closes_its_host_and_no_other() {
    let wrong = "trafficPolicy: {tls: {mode: NEVER}}";
    let built = again(None, &[("m", MESH), ("a", &rule("full", "server", wrong))]);
    assert_eq!(answer(&built.snapshot, "10.96.0.1:8000", 0), "refused");
    assert!(answer(&built.snapshot, "10.0.0.2:80", 0).starts_with("mtls"));
    let other = again(None, &[("m", MESH), ("a", &rule("full", "elsewhere", wrong))]);
    assert!(answer(&other.snapshot, "10.96.0.1:8000", 0).starts_with("mtls"));
    let unreadable = again(None, &[("m", MESH), ("a", &rule("full", "'%'", wrong))]);
    assert_eq!(answer(&unreadable.snapshot, "10.96.0.1:8000", 0), "refused");
    // Nothing of it goes out in the clear past the daemon either.
    let client = built.snapshot.workload_at("10.0.0.1".parse().unwrap()).unwrap().clone();
    assert!(
        built
            .snapshot
            .outbound_rows(&client)
            .iter()
            .all(|row| { row.address != "10.96.0.1".parse::<IpAddr>().unwrap() })
    );
}

#[test]
fn a_refused_destination_rule_is_closed_for_whatever_it_could_have_meant() {
    let good = rule("full", "server", "trafficPolicy: {tls: {mode: DISABLE}}")
        .replace("name: rule", "name: aaa");
    let selecting = good.replace(
        ", trafficPolicy",
        ", workloadSelector: {matchLabels: {app: client}}, trafficPolicy",
    );
    let to = "10.96.0.1:8000";
    let wrong = "trafficPolicy: {tls: {mode: NEVER}}";
    for (bad, good, expected) in [
        // Of any host: also for that of a good rule that is exact. One that selects the client goes
        // before it, as it would if it were right, unless that cannot be told either.
        (rule("full", "'%'", wrong), &good, "refused"),
        (rule("full", "'%'", wrong), &selecting, "plain 10.0.0.2:80"),
        (
            rule("full", "'%'", &format!("workloadSelector: {{x: y}}, {wrong}")),
            &selecting,
            "refused",
        ),
        (rule("full", "server", wrong).replace("host: server, ", ""), &good, "refused"),
        (
            rule("full", "server", &format!("workloadSelector: {{x: y}}, {wrong}")),
            &selecting,
            "refused",
        ),
        (rule("full", "'*'", wrong), &good, "plain 10.0.0.2:80"),
        (rule("full", "server", wrong), &selecting, "plain 10.0.0.2:80"),
        (rule("other", "'%'", wrong), &good, "plain 10.0.0.2:80"),
        // After a rule of the client's own namespace nobody asks the root namespace's.
        (rule("istio-system", "'%'", wrong), &good, "plain 10.0.0.2:80"),
    ] {
        assert_ne!(*good, "");
        let built = again(None, &[("m", MESH), ("a", &bad), ("b", good)]);
        assert_eq!(answer(&built.snapshot, to, 0), expected, "{bad}{good}");
    }
    let root = rule("istio-system", "'%'", wrong);
    let built = again(None, &[("m", MESH), ("a", &root)]);
    assert_eq!(answer(&built.snapshot, to, 0), "refused", "the only one there is");
}

#[test]
fn of_two_objects_with_one_name_the_one_in_force_stays() {
    let strict = authn("full", STRICT);
    let open = authn("full", "{mtls: {mode: DISABLE}}");
    let first = again(None, &[("m", MESH), ("z", &strict)]);
    let second = again(Some(&first.accepted), &[("a", &open), ("m", MESH), ("z", &strict)]);
    assert!(mode(&second, "10.0.0.2").starts_with("STRICT"));
    says(
        &second,
        "a:1: PeerAuthentication full/default: metadata.name: is there twice: also at z:1",
    );
    // Without one in force: the first by file, and what the other one wanted is closed.
    let start = again(None, &[("a", &open), ("m", MESH), ("z", &strict)]);
    assert!(mode(&start, "10.0.0.2").starts_with("STRICT"), "{}", mode(&start, "10.0.0.2"));
    says(
        &start,
        "z:1: PeerAuthentication full/default: metadata.name: is there twice: also at a:1",
    );
    // Reading the same again settles nothing: still both, until one of them is gone.
    let again_ = again(Some(&start.accepted), &[("a", &open), ("m", MESH), ("z", &strict)]);
    assert!(mode(&again_, "10.0.0.2").starts_with("STRICT"), "{}", mode(&again_, "10.0.0.2"));
    let third = again(Some(&again_.accepted), &[("a", &open), ("m", MESH), ("z", &strict)]);
    assert!(mode(&third, "10.0.0.2").starts_with("STRICT"), "{}", mode(&third, "10.0.0.2"));
    let alone = again(Some(&third.accepted), &[("a", &open), ("m", MESH)]);
    assert!(mode(&alone, "10.0.0.2").starts_with("DISABLE"), "{}", mode(&alone, "10.0.0.2"));
    assert_eq!(alone.errors, []);
}

#[test]
fn a_policy_that_may_have_moved_to_an_unreadable_file_stays() {
    let strict = authn("full", STRICT);
    let entry = MESH.split("---").find(|text| text.contains("name: plain")).unwrap();
    let mesh = MESH.replace(entry, "\n").replace("---\n---", "---");
    let first = again(None, &[("m", &mesh), ("p", entry), ("z", &strict)]);
    assert!(mode(&first, "10.0.0.2").starts_with("STRICT"));
    // It was moved from z to y, and y has a slip; a WorkloadEntry went at the same time.
    let broken = format!("{strict}---\n{{");
    let second = again(Some(&first.accepted), &[("m", &mesh), ("y", &broken)]);
    assert!(mode(&second, "10.0.0.2").starts_with("STRICT"), "{}", mode(&second, "10.0.0.2"));
    says(&second, "PeerAuthentication full/default: stays in force: it is nowhere");
    assert!(
        second.snapshot.workload_at("10.0.0.3".parse().unwrap()).is_none(),
        "that is no policy"
    );
    // Mended, the file says where it is, or that it is gone.
    let third = again(Some(&second.accepted), &[("m", &mesh), ("y", &authn("other", STRICT))]);
    assert!(mode(&third, "10.0.0.2").starts_with("PERMISSIVE"), "{}", mode(&third, "10.0.0.2"));
}

/// What was meant is plain, so it is closed, and an earlier version stays.
#[test]
fn a_misspelt_group_opens_nothing() {
    let strict = authn("full", STRICT);
    for group in ["security.istio.oi/v1", "security.istio.com/v1", "securty.istioio/v1"] {
        let misspelt = strict.replace("security.istio.io/v1", group);
        let built = again(None, &[("m", MESH), ("a", &misspelt)]);
        assert!(mode(&built, "10.0.0.2").starts_with("STRICT"), "{}", mode(&built, "10.0.0.2"));
        let first = again(None, &[("m", MESH), ("a", &strict)]);
        let second = again(Some(&first.accepted), &[("m", MESH), ("a", &misspelt)]);
        assert!(mode(&second, "10.0.0.2").starts_with("STRICT"), "{}", mode(&second, "10.0.0.2"));
        says(&second, "stays in force");
    }
}

#[test]
fn another_groups_kind_of_the_same_name_is_nobodys_policy() {
    let foreign = authn("full", STRICT).replace("security.istio.io/v1", "example.com/v1");
    let open = authn("full", "{mtls: {mode: DISABLE}}");
    for (first, second) in [(&foreign, &open), (&open, &foreign)] {
        let built = again(None, &[("m", MESH), ("a", first), ("b", second)]);
        assert!(mode(&built, "10.0.0.2").starts_with("DISABLE"), "{}", mode(&built, "10.0.0.2"));
        says(&built, "PeerAuthentication full/default of example.com: ");
        says(&built, "refused: nothing it says has an effect");
        let twice = built.errors.iter().any(|error| error.code == Code::ObjectDuplicate);
        assert!(!twice, "{:?}", built.errors);
    }
    // Nor when not even its name can be read.
    let unnamed = foreign.replace("name: default", "name: [x]");
    let built = again(None, &[("m", MESH), ("a", &unnamed)]);
    assert!(mode(&built, "10.0.0.2").starts_with("PERMISSIVE"), "{}", mode(&built, "10.0.0.2"));
}

#[test]
fn an_address_that_is_taken_stays_with_who_had_it() {
    let thief = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
                 metadata: {name: thief, namespace: evil}\n\
                 spec: {address: 10.0.0.2, serviceAccount: thief}\n";
    let virtual_thief = thief.replace("10.0.0.2", "10.96.0.1");
    let first = again(None, &[("m", MESH)]);
    for text in [thief, &virtual_thief] {
        let second = again(Some(&first.accepted), &[("a", text), ("m", MESH)]);
        assert_eq!(
            answer(&second.snapshot, "10.96.0.1:8000", 0),
            format!("mtls 10.0.0.2:80 {SERVER}")
        );
        says(&second, "a:1: WorkloadEntry evil/thief: spec.address");
        assert!(!second.accepted.objects.contains_key("WorkloadEntry evil/thief"));
    }
    // At the start nobody had it.
    let mut objects = Objects::default();
    objects.add_file("a", thief.as_bytes(), &Limits::default());
    objects.add_file("m", MESH.as_bytes(), &Limits::default());
    Snapshot::build(objects, None, settings(), "a", 1).unwrap_err();
}

#[test]
fn whoever_comes_to_share_a_host_takes_no_service_from_it() {
    let on_host = |namespace: &str, ports: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {{name: w, namespace: {namespace}}}\nspec: {{address: 192.0.2.1, \
             serviceAccount: server, labels: {{security.istio.io/tlsMode: istio}}}}\n---\n\
             apiVersion: mtls-ebpf.dev/v1alpha1\nkind: NodeWorkload\n\
             metadata: {{name: w, namespace: {namespace}}}\nspec: {{cgroup: /{namespace}.slice, \
             ports: [{ports}], workloadEntries: [w]}}\n"
        )
    };
    let (own, other) = (on_host("full", "8080"), on_host("evil", ""));
    let service = service_at("full", "10.96.0.9", "endpoints: [{address: 192.0.2.1}]")
        .replace("number: 443", "number: 443, targetPort: 8080");
    let first = again(None, &[("m", MESH), ("h", &own), ("s", &service)]);
    let expected = format!("mtls 192.0.2.1:8080 {SERVER}");
    assert_eq!(answer(&first.snapshot, "10.96.0.9:443", 0), expected);
    let files = [("a", &*other), ("m", MESH), ("h", &own), ("s", &service)];
    let mut previous = first.accepted;
    for _ in 0..2 {
        let next = again(Some(&previous), &files);
        assert_eq!(answer(&next.snapshot, "10.96.0.9:443", 0), expected);
        says(&next, "a:1: WorkloadEntry evil/w: spec.address: 192.0.2.1 is an endpoint of");
        assert!(!next.accepted.objects.contains_key("WorkloadEntry evil/w"));
        previous = next.accepted;
    }
    // Where they share it already, it is the service that is new.
    let first = again(None, &files[..3]);
    let second = again(Some(&first.accepted), &files);
    says(&second, "ServiceEntry full/pay: spec.endpoints[0].address: 192.0.2.1 is a host's");
    assert!(second.accepted.objects.contains_key("WorkloadEntry evil/w"));
}

/// Of port 443.
fn service_at(namespace: &str, address: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: pay, namespace: {namespace}}}\n\
         spec: {{hosts: [pay.{namespace}.test], addresses: [{address}], location: MESH_INTERNAL, \
         ports: [{{number: 443, name: tcp}}], {more}}}\n"
    )
}

#[test]
fn an_address_that_a_service_names_as_a_servers_is_no_others_virtual_one() {
    let at = "203.0.113.10";
    let servers = service_at("full", at, "resolution: NONE");
    let virtual_one = service_at("evil", at, "endpoints: [{address: 198.51.100.66}]");
    for (had, came, goes_to, refused) in [
        (&servers, &virtual_one, at, "evil/pay: spec.addresses[0]: 203.0.113.10 is"),
        (&virtual_one, &servers, "198.51.100.66", "full/pay: spec.addresses: 203.0.113.10 is"),
    ] {
        let first = again(None, &[("m", MESH), ("s", had)]);
        let second = again(Some(&first.accepted), &[("a", came), ("m", MESH), ("s", had)]);
        let found = answer(&second.snapshot, "203.0.113.10:443", 0);
        assert_eq!(found, format!("plain {goes_to}:443"));
        says(&second, &format!("ServiceEntry {refused}"));
    }
    // Several may name one server.
    let both = [("m", MESH), ("s", &servers), ("t", &servers.replace("full", "other"))];
    assert_eq!(again(None, &both).errors, []);
    // Virtual on another port before, it is a new claim all the same.
    let beside = service_at("full", at, "resolution: DNS").replace("443", "80");
    let first = again(None, &[("m", MESH), ("s", &virtual_one), ("t", &beside)]);
    assert_eq!(first.errors, []);
    let turned = beside.replace("DNS", "NONE");
    let second = again(Some(&first.accepted), &[("m", MESH), ("s", &virtual_one), ("t", &turned)]);
    says(&second, "ServiceEntry full/pay: spec.addresses: 203.0.113.10 is an address of");
    assert_eq!(answer(&second.snapshot, "203.0.113.10:443", 0), "plain 198.51.100.66:443");
}

#[test]
fn two_workloads_never_share_a_name() {
    let renamed = MESH.replace(
        "metadata: {name: client, namespace: full}\nspec: {node: a",
        "metadata: {name: plain, namespace: full}\nspec: {node: a",
    );
    let errors = refused(&[&renamed]);
    assert!(
        errors[0].contains("NodeWorkload full/plain: metadata.name: two workloads"),
        "{errors:?}"
    );
    assert!(errors[0].contains("[E_CONFLICT]"), "{errors:?}");
    // Whoever has the name keeps it: a newcomer takes nobody out of the mesh.
    let gate = MESH.replace(
        "metadata: {name: client, namespace: full}\nspec: {node",
        "metadata: {name: gate, namespace: full}\nspec: {node",
    );
    let namesake = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
                    metadata: {name: gate, namespace: full}\n\
                    spec: {address: 10.0.0.8, serviceAccount: other}\n";
    let names = |built: &Built| -> Vec<String> {
        built.snapshot.node_workloads().iter().map(|here| here.workload.key()).collect()
    };
    let first = again(None, &[("m", &gate)]);
    assert_eq!(names(&first), ["full/gate"]);
    let second = again(Some(&first.accepted), &[("a", namesake), ("m", &gate)]);
    assert_eq!(names(&second), ["full/gate"], "{:?}", second.errors);
    assert!(second.snapshot.workload_at("10.0.0.8".parse().unwrap()).is_none());
    says(&second, "a:1: WorkloadEntry full/gate: metadata.name: two workloads");
    // And the other way round.
    let without = gate.rsplit_once("---").unwrap().0;
    let first = again(None, &[("a", namesake), ("m", without)]);
    let second = again(Some(&first.accepted), &[("a", namesake), ("m", &gate)]);
    assert!(names(&second).is_empty());
    assert!(second.snapshot.workload_at("10.0.0.8".parse().unwrap()).is_some());
    says(&second, "NodeWorkload full/gate: metadata.name: two workloads");
}

#[test]
fn an_enrolled_workload_stays_enrolled_when_its_entry_is_broken_or_goes() {
    let first = again(None, &[("m", MESH)]);
    let gone =
        MESH.split("---").filter(|d| !d.contains("name: client, namespace: full}\nspec: {addr"));
    let gone = gone.collect::<Vec<_>>().join("---");
    let broken = MESH.replace("10.0.0.1, serviceAccount: client", "10.0.0.1");
    let moved = MESH.replace("address: 10.0.0.1", "address: nowhere");
    for text in [gone, broken, moved] {
        assert_ne!(text, MESH);
        let second = again(Some(&first.accepted), &[("m", &text)]);
        let names: Vec<_> =
            second.snapshot.node_workloads().iter().map(|w| w.workload.key()).collect();
        assert_eq!(names, ["full/client"], "{text}");
        assert!(!second.errors.is_empty());
    }
    // Taken away together, they go.
    let third = again(Some(&first.accepted), &[("m", &authn("full", STRICT))]);
    assert!(third.snapshot.node_workloads().is_empty());
}

#[test]
fn what_a_file_held_stays_while_nobody_can_read_it() {
    let first = again(None, &[("m", MESH), ("a", &authn("full", STRICT))]);
    for text in [
        "",
        "{",
        "kind: PeerAuthentication\n",
        &authn("full", STRICT).replace("kind: Peer", "kind: Pear"),
    ] {
        let second = again(Some(&first.accepted), &[("m", MESH), ("a", text)]);
        assert!(mode(&second, "10.0.0.2").starts_with("STRICT"), "{text}");
        assert!(!second.errors.is_empty());
        let third = again(Some(&second.accepted), &[("m", MESH), ("a", text)]);
        assert!(mode(&third, "10.0.0.2").starts_with("STRICT"), "{text}");
        // At the start nothing was there before.
        let mut objects = Objects::default();
        objects.add_file("a", text.as_bytes(), &Limits::default());
        if !text.starts_with("kind") {
            Snapshot::build(objects, None, settings(), "a", 1).unwrap_err();
        }
    }
}

#[test]
fn kinds_that_close_nothing_are_refused_and_nothing_else_is() {
    for (api, kind) in [
        ("networking.istio.io/v1", "VirtualService"),
        ("security.istio.io/v1", "RequestAuthentication"),
        ("apps/v1", "Deployment"),
        ("v1", "Service"),
        ("v1", "Namespace"),
        ("v1", "ServiceAccount"),
        ("v1", "ConfigMap"),
    ] {
        let text = format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: x}}\nspec: {{}}\n");
        let built = again(None, &[("m", MESH), ("a", &text)]);
        says(&built, &format!("{kind} default/x"));
        assert!(mode(&built, "10.0.0.2").starts_with("PERMISSIVE"));
        // Nor does it keep a policy that somebody deletes.
        let strict = authn("full", STRICT);
        let with = again(None, &[("m", MESH), ("a", &text), ("b", &strict)]);
        assert!(mode(&with, "10.0.0.2").starts_with("STRICT"));
        let without = again(Some(&with.accepted), &[("m", MESH), ("a", &text)]);
        assert!(mode(&without, "10.0.0.2").starts_with("PERMISSIVE"), "{kind}");
    }
}

#[test]
fn a_slip_in_what_could_close_something_closes() {
    for slip in ["v1", "v1beta1"] {
        let text = authn("full", STRICT).replace("security.istio.io/v1", slip);
        let built = again(None, &[("m", MESH), ("a", &text)]);
        assert!(mode(&built, "10.0.0.2").starts_with("STRICT"), "{text}");
    }
}

#[test]
fn a_list_is_its_items() {
    let indented = |text: &str| text.replace('\n', "\n    ");
    let list = |kind: &str, items: &[String]| {
        let items = items.iter().map(|item| format!("  - {}\n", indented(item.trim_end())));
        let items: String = items.collect();
        format!("apiVersion: v1\nkind: {kind}\nmetadata: {{resourceVersion: ''}}\nitems:\n{items}")
    };
    let strict = authn("full", STRICT);
    let both = [authn("other", WRONG), strict.clone()];
    for kind in ["List", "PeerAuthenticationList"] {
        let built = again(None, &[("m", MESH), ("a", &list(kind, &both))]);
        assert!(mode(&built, "10.0.0.2").ends_with("by PeerAuthentication full/default"));
        assert!(!built.accepted.objects.contains_key("PeerAuthentication other/default"));
        says(&built, "SOMETIMES");
    }
    // Nothing in it any more: deleted. None in it that could be read: as of any other file.
    let first = again(None, &[("m", MESH), ("a", &list("List", &both))]);
    let empty = "apiVersion: v1\nkind: List\nitems: []\n";
    let second = again(Some(&first.accepted), &[("m", MESH), ("a", empty)]);
    assert!(mode(&second, "10.0.0.2").starts_with("PERMISSIVE"));
    for broken in ["apiVersion: v1\nkind: List\nitems: {}\n", &list("List", &[list("List", &both)])]
    {
        let second = again(Some(&first.accepted), &[("m", MESH), ("a", broken)]);
        assert!(mode(&second, "10.0.0.2").starts_with("STRICT"), "{broken}");
        says(&second, "none of them is a list");
    }
}

#[test]
fn rule_1_13_legacy_policies_are_converted() {
    let legacy = |kind: &str, name: &str, spec: &str| {
        format!(
            "apiVersion: authentication.istio.io/v1alpha1\nkind: {kind}\n\
             metadata: {{name: {name}, namespace: full}}\nspec: {spec}\n"
        )
    };
    let policy = |name: &str, spec: &str| legacy("Policy", name, spec);
    for (text, server, client) in [
        (legacy("MeshPolicy", "default", "{peers: [{mtls: {}}]}"), "STRICT", "STRICT"),
        (policy("default", "{peers: [{mtls: }]}"), "STRICT", "STRICT"),
        (policy("default", "{peers: [{mtls: {mode: PERMISSIVE}}]}"), "PERMISSIVE", "PERMISSIVE"),
        (policy("default", "{}"), "DISABLE", "DISABLE"),
        (policy("s", "{targets: [{name: server}], peers: [{mtls: {}}]}"), "STRICT", "PERMISSIVE"),
        // Service port 8000 is the workload's port 80.
        (
            policy(
                "s",
                "{targets: [{name: server, ports: [{number: 8000}]}], peers: [{mtls: {}}]}",
            ),
            "STRICT",
            "PERMISSIVE",
        ),
        (
            policy("s", "{targets: [{name: server, ports: [{name: tcp}]}], peers: [{mtls: {}}]}"),
            "PERMISSIVE",
            "PERMISSIVE",
        ),
        // Nobody knows whom it means.
        (policy("s", "{targets: [{name: nobody}]}"), "STRICT", "STRICT"),
        (policy("default", "{peers: [{jwt: {}}]}"), "STRICT", "STRICT"),
    ] {
        let built = again(None, &[("m", MESH), ("a", &text)]);
        assert!(
            mode(&built, "10.0.0.2").starts_with(server),
            "{text}: {}",
            mode(&built, "10.0.0.2")
        );
        assert!(mode(&built, "10.0.0.1").starts_with(client), "{text}");
        let warned = built.warnings.iter().any(|w| w.reason.contains("PeerAuthentication"));
        assert!(warned, "{text}: {:?}", built.warnings);
    }
    // A PeerAuthentication of the same scope goes before.
    let both = policy("default", "{}") + "---\n" + &authn("full", STRICT);
    assert!(mode(&again(None, &[("m", MESH), ("a", &both)]), "10.0.0.2").starts_with("STRICT"));
}

#[test]
fn ten_thousand_objects_are_accepted_and_one_wrong_one_costs_only_itself() {
    let mut text = String::new();
    for number in 0..10_000 {
        let mode = if number == 5_000 { "WRONG" } else { "STRICT" };
        let one = authn(&format!("n{number}"), &format!("{{mtls: {{mode: {mode}}}}}"));
        text += &format!("---\n{one}");
    }
    let started = std::time::Instant::now();
    let first = again(None, &[("m", MESH), ("a", &text)]);
    assert_eq!(first.accepted.objects.len(), 9_999 + 5);
    assert_eq!(first.errors.len(), 2, "the mistake, and what is in force instead");
    again(Some(&first.accepted), &[("m", MESH), ("a", &text)]);
    // Unoptimised and on a busy machine; what grows with the square takes far longer.
    assert!(started.elapsed() < std::time::Duration::from_secs(120), "{:?}", started.elapsed());
}
