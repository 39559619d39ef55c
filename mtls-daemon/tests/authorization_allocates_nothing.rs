//! Asking AuthorizationPolicy about a connection or a request allocates nothing, whatever the answer:
//! it is asked for every one of them. A program of its own, because it counts allocations.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mtls_daemon::policy::AuthorizationPolicy;
use mtls_daemon::policy::authz::{
    Authorizations, AuthzSettings, Connection, Headers, Request, Verdict,
};
use mtls_daemon::policy::error::Report;
use mtls_daemon::policy::metadata::Document;
use mtls_daemon::policy::parse::{Limits, documents};

const POLICIES: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: shop}
spec:
  rules:
  - from:
    - source: {principals: ["cluster.local/ns/shop/sa/web", "*/sa/ops"], notNamespaces: ["x*y"]}
    - source: {serviceAccounts: [cart], trustDomains: ["*.local"], notIpBlocks: [192.0.2.0/24]}
    to:
    - operation: {ports: ["8080"], methods: [GET], hosts: ["*.example"], paths: ["/a/{*}/{**}"]}
    when:
    - {key: "request.headers[x-team]", values: ["blue"]}
    - {key: connection.sni, notValues: ["other.example"]}
  - from: [{source: {namespaces: [shop], remoteIpBlocks: [10.0.0.0/8, "fd00::/8"]}}]
    to: [{operation: {notPorts: ["9090"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: shop}
spec: {action: DENY, rules: [{from: [{source: {notPrincipals: ["*"]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: audit, namespace: shop}
spec: {action: AUDIT, rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: dry, namespace: shop, annotations: {istio.io/dry-run: "true"}}
spec: {action: DENY, rules: [{to: [{operation: {paths: ["*/secret"]}}]}]}
"#;

struct Team(&'static str);

impl Headers for Team {
    fn any(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        name == "x-team" && test(self.0.as_bytes())
    }
}

fn policies() -> Authorizations {
    let mut report = Report::new("policies");
    let nodes = documents(POLICIES.as_bytes(), &Limits::default(), &mut report).expect("YAML");
    let objects = nodes
        .iter()
        .map(|node| {
            let document = Document::open(node, &mut report).expect("an object");
            AuthorizationPolicy::read(&document, &mut report).expect("a policy")
        })
        .collect();
    let settings = AuthzSettings {
        root_namespace: "istio-system",
        trust_domain: "cluster.local",
        aliases: &[],
    };
    Authorizations::new(&settings, objects, Vec::new())
}

#[test]
fn asking_allocates_nothing() {
    let authorization = policies().for_workload("shop", &BTreeMap::new());
    let connection = |principal, port| Connection {
        principal,
        source: [10, 0, 0, 9].into(),
        remote: [10, 0, 0, 9].into(),
        destination: SocketAddr::from(([10, 0, 0, 1], port)),
        sni: Some("cart.example"),
    };
    let request = |path, team| Request { method: "GET", path, host: "shop.example", headers: team };
    let web = connection(Some("cluster.local/ns/shop/sa/web"), 8080);
    let foreign = connection(Some("cluster.local/ns/x/sa/y"), 8080);
    let plaintext = connection(None, 8080);
    let asked: [(bool, &dyn Fn() -> Verdict); 6] = [
        (true, &|| authorization.connection(&web)),
        (false, &|| authorization.connection(&foreign)),
        (false, &|| authorization.connection(&plaintext)),
        (true, &|| authorization.request(&web, &request("/a/b/c?q", &Team("blue")))),
        (false, &|| authorization.request(&foreign, &request("/a/b/secret", &Team("red")))),
        (false, &|| authorization.request(&plaintext, &request("/", &Team("")))),
    ];
    for (number, (allowed, ask)) in asked.iter().enumerate() {
        let mut verdict = None;
        let counted = allocation_counter::measure(|| verdict = Some(ask()));
        let verdict = verdict.expect("it was asked");
        assert_eq!(verdict.allowed, *allowed, "question {number}: {verdict}");
        assert!(verdict.audit.is_some(), "question {number} reaches the AUDIT policy");
        assert_eq!(counted.count_total, 0, "question {number} allocates: {verdict}");
    }
    let counted = allocation_counter::measure(|| drop(std::hint::black_box(vec![1_u8; 64])));
    assert_eq!(counted.count_total, 1, "allocations are counted");
}
