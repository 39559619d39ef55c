//! A join whose answer is lost: the token is not spent for nothing, and is nobody else's.

use super::node_faults::Odd;
use super::nodes::{WEB, agent, agent_at, join_token};
use super::revoke::Target;
use super::*;
use crate::ca::authenticate::Credentials;
use crate::ca::nodes::{self, Nodes};
use crate::identity::NodeName;
use crate::identity::source::SvidSource;

const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";
const HOUR: Duration = Duration::from_secs(3600);

fn vm_1() -> NodeName {
    NodeName::parse("vm-1").unwrap()
}

fn token_for(running: &Running, identity: &str) -> (String, String) {
    let (directory, now) = (running.ca.directory(), SystemTime::now());
    let (name, text) = token::create(directory, vm_1(), [id(identity)], HOUR, now).unwrap();
    (name, text.to_string())
}

fn with(key: &KeyPair) -> Asked {
    Asked { csr: csr(key), ..Asked::own() }
}

/// At another time than now.
async fn ask_at(running: &Running, now: SystemTime, token: &str, key: &KeyPair) -> bool {
    let credentials = Credentials {
        peer: running.address,
        client: None,
        authorization: vec![format!("Bearer {token}")],
        now,
    };
    let request = issue::Request { csr: csr(key), lifetime: 3600, impersonated: None };
    running.ca.create(credentials, request).await.is_ok()
}

#[tokio::test]
async fn the_key_that_used_a_token_gets_its_answer_again_and_no_other_key_does() {
    let running = Running::start().await;
    let [ours, theirs] = [(); 2].map(|()| KeyPair::generate().unwrap());
    let (name, text) = token_for(&running, WEB);
    running.ask(Some(&text), with(&ours)).await.unwrap();
    let first = running.audit.last();
    assert_eq!(first["retry"], serde_json::Value::Null);
    running.ask(Some(&text), with(&ours)).await.expect("once more");
    let second = running.audit.last();
    assert_eq!((&second["verdict"], &second["retry"]), (&"issued".into(), &true.into()));
    refused(running.ask(Some(&text), with(&theirs)).await);
    assert!(running.audit.last()["reason"].to_string().contains("was used before"));
    // Each is known when the node is revoked.
    let issued = issued::valid(running.ca.directory(), SystemTime::now(), |_| true).unwrap();
    let serials: Vec<serde_json::Value> =
        issued.iter().map(|it| it.serial.as_str().into()).collect();
    assert_eq!(serials, [first["serial"].clone(), second["serial"].clone()]);

    let minute = Duration::from_secs(60);
    let now = SystemTime::now();
    assert!(ask_at(&running, now + 14 * minute, &text, &ours).await);
    assert!(!ask_at(&running, now + 16 * minute, &text, &ours).await);
    assert!(token::revoke(running.ca.directory(), &name).unwrap());
    refused(running.ask(Some(&text), with(&ours)).await);
}

#[tokio::test]
async fn what_was_revoked_is_not_answered_again() {
    let running = Running::start().await;
    let directory = running.ca.directory();
    let (key, now) = (KeyPair::generate().unwrap(), SystemTime::now());
    let (_, text) = token_for(&running, WEB);
    running.ask(Some(&text), with(&key)).await.unwrap();
    let serial = running.audit.last()["serial"].as_str().unwrap().to_owned();
    let node = Target::Node(vm_1());
    revoke::add(directory, &node, "stolen", now).unwrap();
    refused(running.ask(Some(&text), with(&key)).await);
    assert!(running.audit.last()["reason"].to_string().contains("node vm-1 is revoked"));
    // The key is the one whose certificate stays revoked.
    revoke::undo(directory, &node).unwrap();
    refused(running.ask(Some(&text), with(&key)).await);
    assert!(running.audit.last()["reason"].to_string().contains(&serial));
}

#[tokio::test]
async fn an_answer_that_is_given_again_takes_nothing_from_a_newer_token() {
    let running = Running::start().await;
    let [older, newer] = [(); 2].map(|()| KeyPair::generate().unwrap());
    let (_, first) = token_for(&running, WEB);
    let (_, second) = token_for(&running, DB);
    running.ask(Some(&first), with(&older)).await.unwrap();
    running.ask(Some(&second), with(&newer)).await.unwrap();
    running.ask(Some(&first), with(&older)).await.expect("once more");
    let nodes: Nodes = running.ca.directory().read(nodes::FILE).unwrap();
    assert_eq!(nodes.0[&vm_1()].identities, [DB.to_owned()].into());
}

#[tokio::test]
async fn a_node_whose_answer_was_lost_joins_with_its_next_attempt() {
    let running = Running::start().await;
    let odd = Odd::beside(&running).await;
    let node = agent_at(&running, odd.address, Some(join_token(&running)), 3600);
    odd.lost.store(2, Ordering::SeqCst);
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while let Err(error) = node.issue(WEB).await {
        assert!(std::time::Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let lines = running.audit.all();
    let retries: Vec<_> = lines.iter().map(|line| line["retry"] == true).collect();
    assert_eq!(retries, [false, true, true, false], "{lines:?}");
    assert_eq!(node.source.own().unwrap().last_error, None);
}

#[tokio::test]
async fn a_daemon_that_ended_before_its_answer_came_joins_when_it_starts_again() {
    let running = Running::start().await;
    let odd = Odd::beside(&running).await;
    let token = join_token(&running);
    let key = running.place.path().join("node/join-key.pem");
    odd.lost.store(1, Ordering::SeqCst);
    agent_at(&running, odd.address, Some(token.clone()), 3600).issue(WEB).await.unwrap_err();
    assert!(key.exists());
    agent(&running, Some(token), 3600).issue(WEB).await.expect("the same token");
    assert_eq!(running.audit.all()[1]["retry"], true);
    assert!(running.place.path().join("node/node-svid.pem").exists());
    assert!(!key.exists(), "it is needed no more");
}

#[tokio::test]
async fn a_node_that_is_refused_does_not_ask_for_each_who_wants_something() {
    let running = Running::start().await;
    let (_, text) = token_for(&running, WEB);
    let token = running.place.path().join("token");
    std::fs::write(&token, &text).unwrap();
    running.ask(Some(&text), Asked::own()).await.expect("somebody else was first");
    let node = agent(&running, Some(token), 3600);
    for _ in 0..40 {
        let error = node.issue(WEB).await.unwrap_err();
        assert!(error.contains("ca token create"), "{error}");
        node.source.poll().await.unwrap_err();
    }
    let refusals = running.audit.all().iter().filter(|it| it["verdict"] == "refused").count();
    assert!((1..=6).contains(&refusals), "{refusals}");
    assert!(node.source.own().unwrap().next_renewal.is_some());
    // Who gives it another token does not wait.
    join_token(&running);
    node.issue(WEB).await.expect("by the new one");
}
