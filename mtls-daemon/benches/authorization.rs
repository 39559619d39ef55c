//! What asking about a connection costs, alone and beside ten thousand policies that do not select
//! the workload: the two have to be alike.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use mtls_daemon::policy::AuthorizationPolicy;
use mtls_daemon::policy::authz::{
    Authorizations, AuthzSettings, Connection, WorkloadAuthorization,
};
use mtls_daemon::policy::error::Report;
use mtls_daemon::policy::metadata::Document;
use mtls_daemon::policy::parse::{Limits, documents};

const OTHERS: [usize; 3] = [0, 100, 10_000];

/// Three policies for the workload, and `others` of its namespace, of the mesh and of elsewhere that
/// do not select it.
fn policies(others: usize) -> Vec<AuthorizationPolicy> {
    let policy = |name: &str, namespace: &str, app: &str, spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{selector: {{matchLabels: {{app: {app}}}}}, {spec}}}\n"
        )
    };
    let allow = "rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}], \
                 to: [{operation: {ports: ['8080']}}]}]";
    let deny = "action: DENY, rules: [{from: [{source: {ipBlocks: [192.0.2.0/24]}}]}]";
    let mut texts = vec![
        policy("a", "shop", "cart", allow),
        policy("b", "shop", "cart", deny),
        policy("c", "istio-system", "cart", deny),
    ];
    for index in 0..others {
        let namespace = match index % 3 {
            0 => "shop".to_owned(),
            1 => "istio-system".to_owned(),
            _ => format!("other-{}", index % 100),
        };
        let spec = if index % 2 == 0 { allow } else { deny };
        texts.push(policy(&format!("o-{index}"), &namespace, &format!("app-{index}"), spec));
    }
    let mut report = Report::new("bench");
    let mut read = Vec::with_capacity(texts.len());
    for chunk in texts.chunks(1_000) {
        let nodes = documents(chunk.concat().as_bytes(), &Limits::default(), &mut report);
        for node in nodes.expect("YAML") {
            let document = Document::open(&node, &mut report).expect("an object");
            read.push(AuthorizationPolicy::read(&document, &mut report).expect("a policy"));
        }
    }
    read
}

fn compiled(others: usize) -> Authorizations {
    let settings = AuthzSettings {
        root_namespace: "istio-system",
        trust_domain: "cluster.local",
        aliases: &[],
    };
    Authorizations::new(&settings, policies(others), Vec::new())
}

fn for_cart(all: &Authorizations) -> Arc<WorkloadAuthorization> {
    let labels: BTreeMap<String, String> = [("app".to_owned(), "cart".to_owned())].into();
    all.for_workload("shop", &labels)
}

fn bench(criterion: &mut Criterion) {
    let source = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));
    let connection = Connection {
        principal: Some("cluster.local/ns/shop/sa/web"),
        source,
        remote: source,
        destination: SocketAddr::from(([10, 0, 0, 1], 8080)),
        sni: None,
    };
    for others in OTHERS {
        let all = compiled(others);
        let cart = for_cart(&all);
        assert!(cart.connection(&connection).allowed);
        criterion.bench_with_input(BenchmarkId::new("evaluate", others), &others, |b, _| {
            b.iter(|| black_box(&cart).connection(black_box(&connection)).allowed);
        });
        criterion.bench_with_input(BenchmarkId::new("for_workload", others), &others, |b, _| {
            b.iter(|| for_cart(black_box(&all)));
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
