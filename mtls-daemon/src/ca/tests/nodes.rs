//! A node and its CA: join, workloads' SVIDs, renewal, revocation, new roots, an absent CA.

use std::path::PathBuf;

use super::revoke::Target;
use super::*;
use crate::identity::revocations::{Certificate, NotBelieved, Rules};
use crate::identity::source::SvidSource;
use crate::identity::source::istio_ca::{Credential, IstioCa, Settings as NodeSettings};
use crate::identity::{NodeName, Revocations, SvidStore};
use crate::tls::TlsIdentity;

pub(super) const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";

fn node_name() -> NodeName {
    NodeName::parse("vm-1").unwrap()
}

/// A file with a token for the node, which may run `WEB`.
pub(super) fn join_token(running: &Running) -> PathBuf {
    let hour = Duration::from_secs(3600);
    let directory = running.ca.directory();
    let made = token::create(directory, node_name(), [id(WEB)], hour, SystemTime::now());
    let path = running.place.path().join("token");
    std::fs::write(&path, format!("{}\n", *made.unwrap().1)).unwrap();
    path
}

fn node_settings(running: &Running, credential: Credential, lifetime: u64) -> NodeSettings {
    let state_dir = running.place.path().join("node");
    std::fs::create_dir_all(&state_dir).unwrap();
    NodeSettings {
        address: running.address.to_string(),
        server_name: NAME.to_owned(),
        root_file: running.root_file(),
        credential,
        cluster: "Kubernetes".to_owned(),
        trust_domain: domain(),
        key_type: KeyType::default(),
        lifetime: Duration::from_secs(lifetime),
        state_dir,
    }
}

pub(super) struct Agent {
    pub source: Arc<IstioCa>,
    pub revocations: Arc<Revocations>,
}

pub(super) fn agent(running: &Running, join_token: Option<PathBuf>, lifetime: u64) -> Agent {
    agent_at(running, running.address, join_token, lifetime)
}

/// One that finds its CA somewhere else.
pub(super) fn agent_at(
    running: &Running,
    address: SocketAddr,
    join_token: Option<PathBuf>,
    lifetime: u64,
) -> Agent {
    let credential = Credential::Node { name: node_name(), join_token };
    let settings = node_settings(running, credential, lifetime);
    made(NodeSettings { address: address.to_string(), ..settings }, Rules::default())
}

/// One that asks more of lists than others.
pub(super) fn agent_with(
    running: &Running,
    address: SocketAddr,
    join_token: Option<PathBuf>,
    rules: Rules,
) -> Agent {
    let credential = Credential::Node { name: node_name(), join_token };
    let settings = node_settings(running, credential, 3600);
    made(NodeSettings { address: address.to_string(), ..settings }, rules)
}

fn made(settings: NodeSettings, rules: Rules) -> Agent {
    let revocations = Revocations::new(rules);
    let source = Arc::new(IstioCa::new(settings, revocations.clone()).unwrap());
    Agent { source, revocations }
}

impl Agent {
    /// As the store asks: from a thread for blocking work.
    pub(super) async fn issue(&self, text: &str) -> Result<Svid, String> {
        let (source, id) = (self.source.clone(), id(text));
        let asked = tokio::task::spawn_blocking(move || source.issue(&id)).await.unwrap();
        asked.map_err(|error| error.to_string())
    }
}

#[tokio::test]
async fn a_node_joins_once_and_then_asks_as_itself() {
    let running = Running::start().await;
    let token = join_token(&running);
    let node = agent(&running, Some(token.clone()), 3600);
    let svid = node.issue(WEB).await.unwrap();
    TlsIdentity::new(&svid, &[node.source.bundle().unwrap()]).expect("an SVID for the mesh");
    let lines = running.audit.all();
    assert_eq!(lines[0]["method"], "join token");
    assert_eq!(lines[0]["identity"], "spiffe://cluster.local/node/vm-1");
    assert_eq!((&lines[1]["method"], &lines[1]["identity"]), (&"node SVID".into(), &WEB.into()));

    let error = node.issue(DB).await.unwrap_err();
    assert!(error.contains("Unauthenticated"), "{error}");
    let reason = running.audit.last()["reason"].to_string();
    assert!(reason.contains("its join token did not name it"), "{reason}");

    // A daemon that starts again has no token any more, and needs none.
    std::fs::remove_file(token).unwrap();
    let again = agent(&running, None, 3600);
    assert_ne!(again.issue(WEB).await.unwrap().serial, svid.serial);
    let lines = running.audit.all();
    assert_eq!(lines[3]["identity"], "spiffe://cluster.local/node/vm-1");
    assert_eq!((lines.len(), &lines[3]["method"]), (5, &"node SVID".into()), "no second join");
}

/// Certificates begin before they are issued; a life of seconds is past its half by that alone.
#[tokio::test]
async fn a_nodes_own_svid_is_renewed_at_half_of_its_life_and_not_before() {
    let running = Running::start().await;
    let node = agent(&running, Some(join_token(&running)), 10);
    let own = || {
        let lines = running.audit.all();
        lines.iter().filter(|line| line["identity"] == "spiffe://cluster.local/node/vm-1").count()
    };
    for _ in 0..3 {
        node.issue(WEB).await.unwrap();
    }
    assert_eq!(own(), 1);
    tokio::time::sleep(Duration::from_secs(7)).await;
    node.issue(WEB).await.unwrap();
    assert_eq!(own(), 2);
}

#[tokio::test]
async fn a_service_accounts_token_is_read_anew_for_every_request() {
    let running = Running::start().await;
    let path = running.place.path().join("k8s-token");
    std::fs::write(&path, "nobody").unwrap();
    let settings = node_settings(&running, Credential::TokenFile(path.clone()), 3600);
    let source = Arc::new(IstioCa::new(settings, Revocations::new(Rules::default())).unwrap());
    let node = Agent { source, revocations: Revocations::new(Rules::default()) };
    assert!(node.issue(WEB).await.is_err());
    std::fs::write(&path, "mtls/agent\n").unwrap();
    assert_eq!(node.issue(WEB).await.unwrap().id, id(WEB));
}

#[tokio::test]
async fn the_wrong_ca_is_not_asked() {
    let running = Running::start().await;
    let token = join_token(&running);
    let (_, stranger) =
        crate::identity::ca::Authority::generate(&domain(), KeyType::default(), SystemTime::now())
            .unwrap();
    let root_file = running.place.path().join("other.pem");
    std::fs::write(&root_file, stranger).unwrap();
    let credential = Credential::Node { name: node_name(), join_token: Some(token.clone()) };
    let settings = NodeSettings { root_file, ..node_settings(&running, credential, 3600) };
    let source = Arc::new(IstioCa::new(settings, Revocations::new(Rules::default())).unwrap());
    let node = Agent { source, revocations: Revocations::new(Rules::default()) };
    let error = node.issue(WEB).await.unwrap_err();
    assert!(error.contains("--ca-root"), "{error}");
    assert!(running.audit.all().is_empty(), "the token went nowhere");
    agent(&running, Some(token), 3600).issue(WEB).await.expect("and is still good");
}

#[tokio::test]
async fn revoking_a_node_reaches_it_and_its_certificates_and_survives_restarts() {
    let running = Running::start().await;
    let node = agent(&running, Some(join_token(&running)), 3600);
    let svid = node.issue(WEB).await.unwrap();
    let polled = node.source.poll().await.unwrap().expect("this CA has the service");
    assert!(polled.revocations, "the first list");
    let ask = |revocations: &Revocations, serial: &str, id: &SpiffeId| {
        let certificate = Certificate { serial, issuer: None, id };
        revocations.covers(certificate, SystemTime::now())
    };
    assert_eq!(ask(&node.revocations, &svid.serial, &svid.id), Ok(true));

    let serial = Target::Serial(svid.serial.clone());
    revoke::add(running.ca.directory(), &serial, "leaked", SystemTime::now()).unwrap();
    assert!(node.source.poll().await.unwrap().unwrap().revocations);
    let verdict = ask(&node.revocations, &svid.serial, &svid.id);
    assert!(matches!(verdict, Err(NotBelieved::Certificate { .. })), "{verdict:?}");

    // The list of before is in force at once, with no CA to ask.
    let restarted = agent(&running, None, 3600);
    assert!(ask(&restarted.revocations, &svid.serial, &svid.id).is_err());

    let other = node.issue(WEB).await.expect("the node itself is not revoked");
    let target = Target::Node(node_name());
    revoke::add(running.ca.directory(), &target, "stolen", SystemTime::now()).unwrap();
    let error = node.issue(WEB).await.unwrap_err();
    assert!(error.contains("Unauthenticated"), "{error}");
    assert!(running.audit.last()["reason"].to_string().contains("node vm-1 is revoked"));
    assert!(node.source.poll().await.is_err(), "it is told nothing any more");
    let held: revoke::Held = running.ca.directory().read(revoke::FILE).unwrap();
    assert!(held.names_serial(&other.serial), "what it obtained is revoked, too");
}

#[tokio::test]
async fn a_revoked_identity_is_not_issued_again() {
    let running = Running::start().await;
    let target = Target::Identity(WEB.to_owned());
    revoke::add(running.ca.directory(), &target, "", SystemTime::now()).unwrap();
    refused(running.ask(Some("shop/web"), Asked::own()).await);
    revoke::undo(running.ca.directory(), &target).unwrap();
    running.ask(Some("shop/web"), Asked::own()).await.unwrap();
}

#[tokio::test]
async fn an_older_list_is_refused() {
    let running = Running::start().await;
    let node = agent(&running, Some(join_token(&running)), 3600);
    let serial = |text: &str| Target::Serial(text.to_owned());
    let directory = running.ca.directory();
    revoke::add(directory, &serial("aa"), "", SystemTime::now()).unwrap();
    let older = std::fs::read(directory.path(revoke::FILE)).unwrap();
    revoke::add(directory, &serial("bb"), "", SystemTime::now()).unwrap();
    node.source.poll().await.unwrap();
    // As a CA that was restored from a backup.
    directory
        .turn()
        .unwrap()
        .write_text(revoke::FILE, std::str::from_utf8(&older).unwrap())
        .unwrap();
    let error = node.source.poll().await.unwrap_err();
    assert!(error.contains("older than ours"), "{error}");
    let check = |serial| {
        let web = id(WEB);
        let certificate = Certificate { serial, issuer: None, id: &web };
        node.revocations.covers(certificate, SystemTime::now())
    };
    assert!(check("bb").is_err(), "the newer one stays in force");
    // A restart does not help it.
    let restarted = agent(&running, None, 3600);
    let error = restarted.source.poll().await.unwrap_err();
    assert!(error.contains("older than ours"), "{error}");
}

#[tokio::test]
async fn a_list_on_disk_that_was_tampered_with_is_no_list() {
    let running = Running::start().await;
    let node = agent(&running, Some(join_token(&running)), 3600);
    node.source.poll().await.unwrap();
    let file = running.place.path().join("node").join("revocations.signed");
    let good = std::fs::read(&file).unwrap();
    let web = id(WEB);
    let covers = |agent: &Agent| {
        let certificate = Certificate { serial: "1", issuer: None, id: &web };
        agent.revocations.covers(certificate, SystemTime::now())
    };
    assert_eq!(covers(&agent(&running, None, 3600)), Ok(true), "as it was");
    let mut forged = good.clone();
    // A digit of the list's own text; its signature was over another.
    let digit = forged.windows(9).position(|it| it == b"\"number\":").unwrap() + 9;
    forged[digit] ^= 1;
    for spoilt in [&forged[..], &good[..good.len() / 2], b"", b"nothing"] {
        std::fs::write(&file, spoilt).unwrap();
        let restarted = agent(&running, None, 3600);
        assert_eq!(covers(&restarted), Ok(false), "where one is required, nobody is believed");
        restarted.source.poll().await.unwrap();
        assert_eq!(covers(&restarted), Ok(true), "until the CA says it again");
    }
}

/// Handshakes as a relay makes them: whoever fails one says so.
async fn handshake(client: &TlsIdentity, server: &TlsIdentity) -> Result<(), String> {
    use crate::tls::{Replay, accept, connect};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    let expected: Arc<[SpiffeId]> = Arc::new([server.id().clone()]);
    let sni = "outbound_.80_._.web.shop.svc.cluster.local";
    let (connected, accepted) = tokio::join!(
        connect(near.unwrap(), client, &expected, sni),
        accept(Replay::new(far.unwrap().0), server, None)
    );
    connected.map_err(|error| error.to_string())?;
    accepted.map(|_| ()).map_err(|error| error.to_string())
}

#[tokio::test]
async fn roots_are_replaced_without_a_failed_handshake() {
    let running = Running::start().await;
    let node = agent(&running, Some(join_token(&running)), 3600);
    let store =
        SvidStore::new(node.source.clone(), Vec::new(), crate::tls::HandshakeSettings::plain());
    let slot = store.slot(&id(WEB));
    let issuing = tokio::spawn(store.clone().run());
    let following = {
        let (source, store) = (node.source.clone(), store.clone());
        tokio::spawn(source.follow(Duration::from_millis(200), move || store.renew_all(), || {}))
    };
    slot.wait(Duration::from_secs(10)).await.expect("an SVID");

    let failures = Arc::new(Mutex::new(Vec::new()));
    let load = {
        let (slot, failures) = (slot.clone(), failures.clone());
        tokio::spawn(async move {
            // Two nodes are never quite at the same point: one of them is a little behind.
            let mut behind = slot.current().unwrap();
            loop {
                let own = slot.current().unwrap();
                for (client, server) in [(&own, &behind), (&behind, &own)] {
                    if let Err(error) = handshake(client, server).await {
                        failures.lock().unwrap().push(error);
                    }
                }
                behind = own;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
    };

    let directory = running.ca.directory();
    let root = |step: &str| -> Vec<CertificateDer<'static>> {
        let now = SystemTime::now();
        match step {
            "prepare" => roots::prepare(directory, &domain(), KeyType::EcdsaP256, None, now),
            "switch" => roots::switch(directory, true, now),
            _ => roots::retire(directory, true, now),
        }
        .unwrap();
        roots::anchors(directory).unwrap()
    };
    for step in ["prepare", "switch", "retire"] {
        let before = slot.current().unwrap().serial().to_owned();
        let anchors = root(step);
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        // The node trusts what the CA trusts, and has an SVID from after the step.
        while node.source.bundle().unwrap().anchors != anchors
            || slot.current().unwrap().serial() == before
        {
            assert!(std::time::Instant::now() < deadline, "{step} does not reach the node");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    load.abort();
    issuing.abort();
    following.abort();
    assert_eq!(*failures.lock().unwrap(), Vec::<String>::new());
    assert_eq!(node.source.bundle().unwrap().anchors.len(), 1);
}

#[tokio::test]
async fn an_absent_ca_breaks_nothing_until_expiry() {
    let running = Running::start().await;
    let node = agent(&running, Some(join_token(&running)), 3600);
    let store =
        SvidStore::new(node.source.clone(), Vec::new(), crate::tls::HandshakeSettings::plain());
    let slot = store.slot(&id(WEB));
    let issuing = tokio::spawn(store.clone().run());
    let held = slot.wait(Duration::from_secs(10)).await.expect("an SVID");
    running.task.abort();
    store.renew_all();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while store.issued_failed() == 0 {
        assert!(std::time::Instant::now() < deadline, "nobody asked");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    issuing.abort();
    assert_eq!(slot.current().expect("kept").serial(), held.serial());
    let status = store.status().remove(0);
    assert!(status.last_error.is_some_and(|it| it.contains(&running.address.to_string())));
}

#[tokio::test]
async fn a_node_is_no_peer_of_workloads() {
    let running = Running::start().await;
    let signing = running.ca.signing();
    let bundle =
        crate::identity::Bundle { trust_domain: domain(), anchors: signing.anchors.clone() };
    let identity = |text| {
        let svid = signing.authority.issue(
            &id(text),
            KeyType::default(),
            Duration::from_secs(60),
            SystemTime::now(),
        );
        TlsIdentity::new(&svid.unwrap(), std::slice::from_ref(&bundle)).unwrap()
    };
    let web = identity(WEB);
    handshake(&identity(DB), &web).await.expect("workloads talk");
    for reserved in ["spiffe://cluster.local/node/vm-1", "spiffe://cluster.local/ca/server"] {
        let infrastructure = identity(reserved);
        let error = handshake(&web, &infrastructure).await.unwrap_err();
        assert!(error.contains("none of them is a peer of workloads"), "{error}");
        let error = handshake(&infrastructure, &web).await.unwrap_err();
        assert!(error.contains("none of them is a peer of workloads"), "{error}");
    }
}
