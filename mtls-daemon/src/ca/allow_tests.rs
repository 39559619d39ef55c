use super::*;
use crate::ca::authenticate::token_review::PodReference;
use crate::ca::nodes::Node;

const ZTUNNEL: &str = "agent-0";

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

struct Cluster(Vec<Pod>);

impl Pods for Cluster {
    fn pod(&self, namespace: &str, name: &str) -> Option<Pod> {
        self.0.iter().find(|pod| pod.namespace == namespace && pod.name == name).cloned()
    }

    fn runs_on(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        self.0.iter().any(|pod| {
            (&*pod.node, &*pod.namespace, &*pod.service_account)
                == (node, namespace, service_account)
        })
    }
}

fn pod(namespace: &str, name: &str, service_account: &str, node: &str) -> Pod {
    Pod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: format!("uid of {name}"),
        service_account: service_account.to_owned(),
        node: node.to_owned(),
    }
}

fn ask(pods: Vec<Pod>, uid: &str, requested: &str) -> Result<(SpiffeId, String), NotAllowed> {
    let trusted =
        [AccountName { namespace: "mtls".into(), name: "agent".into() }].into_iter().collect();
    let caller = Account {
        namespace: "mtls".into(),
        name: "agent".into(),
        pod: Some(PodReference { name: ZTUNNEL.into(), uid: uid.into() }),
    };
    account(&trusted, &caller, requested, &domain(), Some(&Cluster(pods)))
}

fn pods() -> Vec<Pod> {
    vec![
        pod("mtls", ZTUNNEL, "agent", "n1"),
        pod("shop", "web-0", "web", "n1"),
        pod("shop", "db-0", "db", "n2"),
    ]
}

#[test]
fn an_agent_gets_what_runs_on_its_node() {
    let (id, node) =
        ask(pods(), "uid of agent-0", "spiffe://cluster.local/ns/shop/sa/web").unwrap();
    assert_eq!((id.as_str(), node.as_str()), ("spiffe://cluster.local/ns/shop/sa/web", "n1"));
    let error = ask(pods(), "uid of agent-0", "spiffe://cluster.local/ns/shop/sa/db").unwrap_err();
    assert!(matches!(error, NotAllowed::NotOnNode { .. }), "{error}");
}

#[test]
fn an_agent_that_is_not_the_pod_it_was_gets_nothing() {
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    assert!(matches!(ask(pods(), "older", web), Err(NotAllowed::PodUid { .. })));
    assert!(matches!(ask(Vec::new(), "x", web), Err(NotAllowed::PodUnknown { .. })));
    let mut others = pods();
    others[0].service_account = "default".to_owned();
    assert!(matches!(ask(others, "uid of agent-0", web), Err(NotAllowed::PodAccount { .. })));
    let mut nowhere = pods();
    for pod in &mut nowhere {
        pod.node.clear();
    }
    assert!(matches!(ask(nowhere, "uid of agent-0", web), Err(NotAllowed::NotOnNode { .. })));
}

#[test]
fn another_trust_domain_and_what_is_no_workload_are_refused() {
    for requested in [
        "spiffe://other.domain/ns/shop/sa/web",
        "spiffe://cluster.local/node/n1",
        "spiffe://cluster.local/ca/server",
        "spiffe://cluster.local/ns/shop/sa/web/more",
        "spiffe://cluster.local",
        "web",
        "",
    ] {
        assert!(ask(pods(), "uid of agent-0", requested).is_err(), "{requested}");
    }
}

#[test]
fn a_node_gets_what_its_token_named() {
    let vm = NodeName::parse("vm-1").unwrap();
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    let entry = Node { identities: [web.to_owned()].into(), joined: 1 };
    let nodes = Nodes([(vm.clone(), entry)].into());
    assert_eq!(node(&nodes, &vm, web, &domain()).unwrap().as_str(), web);
    let other = "spiffe://cluster.local/ns/shop/sa/db";
    assert!(matches!(node(&nodes, &vm, other, &domain()), Err(NotAllowed::NotOnList { .. })));
    let stranger = NodeName::parse("vm-2").unwrap();
    assert!(matches!(node(&nodes, &stranger, web, &domain()), Err(NotAllowed::NodeUnknown(_))));
}
