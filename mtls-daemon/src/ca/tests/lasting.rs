//! Connections that say nothing, last long or end early; callers that ask for too much.

use std::time::Instant;

use tokio::io::AsyncReadExt;

use super::issue::{STRANGERS, WAITING};
use super::rate::BURST;
use super::revoke::Target;
use super::*;
use crate::ca::nodes::{self, Node, Nodes};
use crate::identity::NodeName;

const SOON: Duration = Duration::from_secs(30);

/// An SVID of a node that joined.
fn joined(running: &Running) -> Svid {
    let node =
        Node { identities: ["spiffe://cluster.local/ns/shop/sa/web".into()].into(), joined: 1 };
    let turn = running.ca.directory().turn().unwrap();
    let nodes = Nodes([(NodeName::parse("vm-1").unwrap(), node)].into());
    turn.write(nodes::FILE, &nodes).unwrap();
    let own = id("spiffe://cluster.local/node/vm-1");
    let signing = running.ca.signing();
    let minute = Duration::from_secs(60);
    signing.authority.issue(&own, KeyType::default(), minute, SystemTime::now()).unwrap()
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Until so many requests with a token `slow…` were taken up.
async fn under_way(running: &Running, count: usize) {
    let waiting = || running.gate.waiting.load(Ordering::SeqCst) == count;
    until("a request that is under way", waiting).await;
}

async fn timed(times: Times) -> Running {
    let place = tempfile::tempdir().unwrap();
    let settings = settings(place.path());
    Running::timed(place, settings, times).await
}

#[tokio::test]
async fn what_was_asked_is_written_down_although_the_client_went_away() {
    let running = Running::start().await;
    for (before, token) in ["slow/web", "slow"].into_iter().enumerate() {
        let channel = running.channel(None).await;
        let asking = tokio::spawn(ask(channel.clone(), Some(token), Asked::own()));
        under_way(&running, before + 1).await;
        asking.abort();
        assert!(asking.await.unwrap_err().is_cancelled());
        // The reset of its stream has come when what follows it is answered.
        refused(ask(channel, None, Asked::own()).await);
        assert_eq!(running.audit.all().len(), 2 * before + 1, "it is under way");
        running.gate.open.add_permits(1);
        until("a line for it", || running.audit.all().len() == 2 * before + 2).await;
    }
    let verdicts: Vec<_> =
        running.audit.all().iter().map(|line| line["verdict"].to_string()).collect();
    assert_eq!(verdicts, ["\"refused\"", "\"issued\"", "\"refused\"", "\"refused\""]);
}

#[tokio::test]
async fn what_is_under_way_at_the_end_is_answered() {
    let mut running = Running::start().await;
    let idle = running.channel(None).await;
    let channel = running.channel(None).await;
    let asking = tokio::spawn(ask(channel, Some("slow/web"), Asked::own()));
    under_way(&running, 1).await;
    running.stop.take().unwrap().send(()).unwrap();
    until("the end of the idle one", || idle.is_closed()).await;
    running.gate.open.add_permits(1);
    assert_eq!(asking.await.unwrap().expect("an answer").len(), 2);
    tokio::time::timeout(SOON, &mut running.task).await.expect("it ends").unwrap();
    assert!(ask(idle, Some("shop/web"), Asked::own()).await.is_err(), "nobody is there");
    assert_eq!(running.audit.all().len(), 1);
}

#[tokio::test]
async fn a_connection_on_which_nothing_is_asked_is_closed() {
    let first = Duration::from_millis(300);
    let running = timed(Times { first, ..Times::default() }).await;
    let client = AuthorityClient::new(&running.ca.signing().anchors, None).unwrap();
    let stream = TcpStream::connect(running.address).await.unwrap();
    let mut silent = client.connect(stream, NAME).await.unwrap();
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(SOON, silent.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "not even HTTP/2's greeting was sent");
    // One that greets, and then says nothing either.
    let greeted = running.channel(None).await;
    until("its end", || greeted.is_closed()).await;
}

#[tokio::test]
async fn a_connection_ends_when_it_is_idle_or_old() {
    let short = Duration::from_millis(500);
    for times in [
        Times { first: short, idle: short, ..Times::default() },
        Times { age: short, ..Times::default() },
    ] {
        let running = timed(times).await;
        let channel = running.channel(None).await;
        let asking = tokio::spawn(ask(channel.clone(), Some("slow/web"), Asked::own()));
        under_way(&running, 1).await;
        tokio::time::sleep(2 * short).await;
        running.gate.open.add_permits(1);
        asking.await.unwrap().expect("what is under way is answered");
        until("its end", || channel.is_closed()).await;
        running.ask(Some("shop/web"), Asked::own()).await.expect("another one");
    }
}

#[tokio::test]
async fn a_node_below_a_root_that_is_no_more_is_nobody_also_on_an_open_connection() {
    let running = Running::start().await;
    let channel = running.channel(Some(&joined(&running))).await;
    ask(channel.clone(), None, Asked::own()).await.expect("its renewal");
    let (directory, now) = (running.ca.directory(), SystemTime::now());
    roots::prepare(directory, &domain(), KeyType::EcdsaP256, None, now).unwrap();
    roots::switch(directory, true, now).unwrap();
    running.ca.refresh(now).unwrap();
    ask(channel.clone(), None, Asked::own()).await.expect("both are trusted");
    roots::retire(directory, true, now).unwrap();
    running.ca.refresh(now).unwrap();
    refused(ask(channel, None, Asked::own()).await);
    let reason = running.audit.last()["reason"].to_string();
    assert!(reason.contains("node vm-1 is trusted no more"), "{reason}");
}

#[tokio::test]
async fn one_caller_gets_so_many_certificates_and_no_more() {
    let running = Running::start().await;
    running.ask(Some("shop/web"), Asked::own()).await.unwrap();
    let caller = running.audit.last()["caller"].as_str().unwrap().to_owned();
    // (over the wire, each would take a signature)
    while running.ca.rates.take(&caller, Instant::now()) {}
    let status = running.ask(Some("shop/web"), Asked::own()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let reason = running.audit.last()["reason"].to_string();
    assert!(reason.contains(&caller) && reason.contains(&BURST.to_string()), "{reason}");
    running.ask(Some("shop/db"), Asked::own()).await.expect("another caller's are its own");
}

#[tokio::test]
async fn a_full_queue_is_said() {
    let running = Running::start().await;
    let channel = running.channel(Some(&joined(&running))).await;
    let known = running.ca.waiting.acquire_many(WAITING).await.unwrap();
    let status = ask(channel.clone(), None, Asked::own()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    drop(known);
    // Those whom nobody knows yet take no place from a node.
    let _strangers = running.ca.strangers.acquire_many(STRANGERS).await.unwrap();
    let status = running.ask(Some("mtls-join.0.0"), Asked::own()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    ask(channel, None, Asked::own()).await.expect("the node's own");
}

#[tokio::test]
async fn a_revoked_node_hears_that_before_anything_else() {
    let running = Running::start().await;
    let channel = running.channel(Some(&joined(&running))).await;
    let target = Target::Node(NodeName::parse("vm-1").unwrap());
    revoke::add(running.ca.directory(), &target, "", SystemTime::now()).unwrap();
    let bad = [
        Asked { csr: "garbage".to_owned(), ..Asked::own() },
        Asked { seconds: i64::MAX, ..Asked::own() },
    ];
    for asked in bad {
        refused(ask(channel.clone(), None, asked).await);
        assert!(running.audit.last()["reason"].to_string().contains("is revoked"));
    }
}

#[tokio::test]
async fn an_api_server_that_knows_no_audiences_is_not_believed() {
    let running = Running::start().await;
    refused(running.ask(Some("old/web"), Asked::own()).await);
    let reason = running.audit.last()["reason"].to_string();
    assert!(reason.contains("did not say that the token is for istio-ca"), "{reason}");
}

#[test]
fn a_directory_of_another_trust_domain_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let open = |name| {
        let trust_domain = TrustDomain::parse(name).unwrap();
        let settings = Settings { trust_domain, ..settings(place.path()) };
        Ca::open(settings, Audit::to(Lines::default()), SystemTime::now())
    };
    open("prod.example").unwrap();
    open("prod.example").unwrap();
    let error = open("cluster.local").err().expect("refused").to_string();
    assert!(error.contains("prod.example") && error.contains("cluster.local"), "{error}");
}

#[tokio::test]
async fn a_node_gets_no_more_than_revoking_it_can_list() {
    let running = Running::start().await;
    let own = joined(&running);
    let channel = running.channel(Some(&own)).await;
    ask(channel.clone(), None, Asked::own()).await.unwrap();
    let now = SystemTime::now();
    let until = |ago: u64| seconds(now) + 3600 - ago;
    let vm_1 = NodeName::parse("vm-1").unwrap();
    // (over the wire, each would take a signature) One identity; one certificate is there already, and
    // ten of these have expired.
    let lines: String = (0..16_384 + 16 - 1 + 10)
        .map(|number: usize| {
            let not_after = if number < 10 { until(3600 + 601) } else { until(0) };
            format!(
                "{{\"serial\":\"{number:x}\",\"issuer\":\"aa\",\"id\":\"x\",\"node\":\"vm-1\",\
                 \"not_after\":{not_after}}}\n"
            )
        })
        .collect();
    let file = running.ca.directory().path(issued::FILE);
    let one = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{one}{lines}")).unwrap();
    let Running { place, ca, .. } = &running;
    let restarted = Ca::open(settings(place.path()), Audit::to(Lines::default()), now).unwrap();
    assert_eq!(restarted.unexpired.room(&vm_1, 1, now), Err(16_400));
    assert_eq!(restarted.unexpired.room(&vm_1, 2, now), Ok(()));
    let later = now + Duration::from_secs(3600 + 601);
    assert_eq!(restarted.unexpired.room(&vm_1, 1, later), Ok(()), "they have expired");

    for issued in issued::valid(ca.directory(), now, |it| it.id == "x").unwrap() {
        ca.unexpired.add(&issued);
    }
    let status = ask(channel, None, Asked::own()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("16400 certificates"), "{status}");
    let reason = running.audit.last()["reason"].to_string();
    assert!(reason.contains("node vm-1 has 16400") && reason.contains("ca revoke"), "{reason}");
    let added = revoke::add(ca.directory(), &Target::Node(vm_1), "stolen", now).unwrap();
    assert_eq!(added.entries, 16_401);
}
