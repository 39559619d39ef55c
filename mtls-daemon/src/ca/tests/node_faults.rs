//! A node whose disk is full, whose CA is away, hangs, or says what it should not.

use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::watch;
use tower_service::Service;

use super::nodes::{WEB, agent, agent_at, agent_with, join_token};
use super::revoke::Target;
use super::service::{Connection, Services};
use super::*;
use crate::grpc::istio_v1_auth::istio_certificate_service_server::IstioCertificateServiceServer;
use crate::grpc::mtls_ca_v1::node_service_server::{NodeService, NodeServiceServer};
use crate::grpc::mtls_ca_v1::{PollRequest, PollResponse};
use crate::identity::Revocations;
use crate::identity::revocations::{Certificate, RevocationList, Revoked, Rules, What};
use crate::identity::source::SvidSource;

const SOON: Duration = Duration::from_secs(30);

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + SOON;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "did not come: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn is_revoked(revocations: &Revocations, serial: &str) -> bool {
    let web = id(WEB);
    let certificate = Certificate { serial, issuer: None, id: &web };
    revocations.covers(certificate, SystemTime::now()).is_err()
}

/// What happens to connections on their way to the CA.
#[derive(Clone, Copy, PartialEq)]
enum Weather {
    Fair,
    /// New connections end at once, and so do those of before.
    Down,
    /// Connections of before go on, new ones hear nothing.
    NewHang,
    /// Connections of before hear nothing any more, new ones do.
    OldHang,
}

/// A way to the CA that a test can spoil.
struct Wire {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Wire {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let weather = watch::Sender::new(Weather::Fair);
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, changes) = (connections.clone(), weather.clone());
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let (mut changed, begun) = (changes.subscribe(), *changes.borrow());
                open.spawn(async move {
                    match begun {
                        Weather::Down => return,
                        Weather::NewHang => std::future::pending::<()>().await,
                        Weather::Fair | Weather::OldHang => {}
                    }
                    let mut far = TcpStream::connect(target).await.unwrap();
                    let ends = async {
                        // Only what changes after the connection was made concerns it.
                        while changed.changed().await.is_ok() {
                            match *changed.borrow() {
                                Weather::Down => return,
                                Weather::OldHang => break,
                                Weather::Fair | Weather::NewHang => {}
                            }
                        }
                    };
                    let hangs = tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => false,
                        () = ends => *changed.borrow() == Weather::OldHang,
                    };
                    if hangs {
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        Self { address, weather, connections, task }
    }

    fn is(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

/// A CA that signs whatever list a test wants, and some of whose certificates get lost.
pub(super) struct Odd {
    pub(super) address: SocketAddr,
    /// So many of the next ones.
    pub(super) lost: Arc<AtomicUsize>,
    list: Arc<Mutex<Option<RevocationList>>>,
    signs: Lists,
    task: JoinHandle<()>,
}

impl Drop for Odd {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Lists {
    ca: Arc<Ca>,
    /// None: there is no such service.
    list: Arc<Mutex<Option<RevocationList>>>,
}

#[async_trait]
impl NodeService for Lists {
    async fn poll(
        &self,
        _: tonic::Request<PollRequest>,
    ) -> Result<tonic::Response<PollResponse>, Status> {
        let list = self.list.lock().unwrap().clone();
        let list = list.ok_or_else(|| Status::unimplemented("no such service"))?;
        Ok(tonic::Response::new(self.sign(&list)))
    }
}

impl Lists {
    fn sign(&self, list: &RevocationList) -> PollResponse {
        let (signing, list) = (self.ca.signing(), serde_json::to_vec(list).unwrap());
        PollResponse {
            signature: signing.sign_list(&list).unwrap(),
            revocations: list,
            signer: signing.statement_chain.iter().map(|it| it.to_vec()).collect(),
            roots: signing.anchors_pem.clone(),
        }
    }
}

impl Odd {
    pub(super) async fn beside(running: &Running) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let list = Arc::new(Mutex::new(None));
        let lists = Lists { ca: running.ca.clone(), list: list.clone() };
        let signs = lists.clone();
        let lost = Arc::new(AtomicUsize::new(0));
        let losing = lost.clone();
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            loop {
                let (stream, peer) = listener.accept().await.unwrap();
                let (lists, losing) = (lists.clone(), losing.clone());
                open.spawn(async move {
                    let server = lists.ca.signing().server.clone();
                    let Ok((stream, client)) = server.accept(stream).await else { return };
                    let istio = IstioCertificateServiceServer::new(Services(lists.ca.clone()));
                    let node = NodeServiceServer::new(lists);
                    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
                        request
                            .extensions_mut()
                            .insert(Connection { peer, client: client.clone() });
                        let (mut istio, mut node) = (istio.clone(), node.clone());
                        let losing = losing.clone();
                        async move {
                            if request.uri().path().contains("NodeService") {
                                return Ok(node.call(request).await.unwrap());
                            }
                            let answer = istio.call(request).await.unwrap();
                            let lose = |left: usize| left.checked_sub(1);
                            match losing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lose) {
                                Ok(_) => Err(std::io::Error::other("the connection broke")),
                                Err(_) => Ok(answer),
                            }
                        }
                    });
                    let http = http2::Builder::new(TokioExecutor::new());
                    http.serve_connection(TokioIo::new(stream), service).await.ok();
                });
            }
        });
        Self { address, lost, list, signs, task }
    }

    fn has(&self, number: u64, issued: SystemTime, serials: &[&str]) {
        let entry = |serial: &&str| Revoked {
            what: What::Certificate { serial: (*serial).to_owned(), issuer: None },
            at: 1,
            reason: String::new(),
            until: None,
        };
        let entries = serials.iter().map(entry).collect();
        let issued = issued.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let trust_domain = domain().to_string();
        let list = RevocationList { trust_domain, number, issued, entries };
        *self.list.lock().unwrap() = Some(list);
    }

    /// The list as a node keeps it, signed at another time.
    fn signed(&self, at: SystemTime) -> Vec<u8> {
        let mut list = self.list.lock().unwrap().clone().unwrap();
        list.issued = at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        prost::Message::encode_to_vec(&self.signs.sign(&list))
    }
}

/// In the way of a file that is to be written: as a full disk, also for who may do everything.
fn block(running: &Running, name: &str) -> std::path::PathBuf {
    let path = running.place.path().join("node").join(format!("{name}.new"));
    std::fs::create_dir_all(&path).unwrap();
    path
}

#[tokio::test]
async fn what_cannot_be_written_is_in_force_and_written_later() {
    let running = Running::start().await;
    let blocks =
        ["node-svid.pem", "revocations.signed", "ca-roots.json"].map(|it| block(&running, it));
    let node = agent(&running, Some(join_token(&running)), 3600);
    let svid = node.issue(WEB).await.expect("the token is spent for an SVID that is used");
    node.issue(WEB).await.unwrap();
    let joins = || running.audit.all().iter().filter(|it| it["method"] == "join token").count();
    assert_eq!(joins(), 1);
    let own = || node.source.own().unwrap();
    assert!(own().last_error.is_some_and(|it| it.contains("cannot be kept")), "{:?}", own());

    let serial = Target::Serial(svid.serial.clone());
    revoke::add(running.ca.directory(), &serial, "leaked", SystemTime::now()).unwrap();
    roots::prepare(running.ca.directory(), &domain(), KeyType::EcdsaP256, None, SystemTime::now())
        .unwrap();
    let deadline = std::time::Instant::now() + SOON;
    while !is_revoked(&node.revocations, &svid.serial)
        || node.source.bundle().unwrap().anchors.len() != 2
    {
        assert!(std::time::Instant::now() < deadline, "in force whatever the disk says");
        node.source.poll().await.unwrap();
    }
    let troubles = node.revocations.troubles();
    assert!(troubles[0].contains("in force and cannot be kept"), "{troubles:?}");
    assert!(node.source.trouble().unwrap().contains("the CA's roots are trusted"));

    for block in blocks {
        std::fs::remove_dir(block).unwrap();
    }
    node.source.poll().await.unwrap();
    assert_eq!(node.revocations.troubles(), Vec::<String>::new());
    assert_eq!(node.source.trouble(), None);
    let file = running.place.path().join("node/node-svid.pem");
    until("the node's own SVID on disk", || file.exists() && own().last_error.is_none()).await;
    let restarted = agent(&running, None, 3600);
    assert!(is_revoked(&restarted.revocations, &svid.serial));
    assert_eq!(restarted.source.bundle().unwrap().anchors.len(), 2);
    restarted.issue(WEB).await.expect("it is known by its own SVID");
}

#[tokio::test]
async fn those_who_ask_while_the_nodes_own_svid_is_written_leave_it_alone() {
    let running = Running::start().await;
    let joined = agent(&running, Some(join_token(&running)), 3600);
    joined.issue(WEB).await.unwrap();
    // Each daemon that starts renews it.
    for _ in 0..8 {
        let node = Arc::new(agent(&running, None, 3600));
        let asking: Vec<_> = (0..8)
            .map(|_| {
                let node = node.clone();
                tokio::spawn(async move {
                    for _ in 0..4 {
                        node.issue(WEB).await.unwrap();
                        assert_eq!(node.source.own().unwrap().last_error, None);
                    }
                })
            })
            .collect();
        for task in asking {
            task.await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_list_of_tens_of_thousands_is_had() {
    let running = Running::start().await;
    let node = agent(&running, Some(join_token(&running)), 3600);
    let entry = |number: u32| Revoked {
        what: What::Certificate {
            serial: format!("5f{number:038x}"),
            issuer: Some(format!("{number:040x}")),
        },
        at: 1_700_000_000,
        reason: "the cluster was given back".to_owned(),
        until: None,
    };
    let held = revoke::Held { number: 1, entries: (0..40_000).map(entry).collect() };
    assert!(serde_json::to_vec(&held).unwrap().len() > 4 << 20, "more than gRPC takes by itself");
    running.ca.directory().turn().unwrap().write(revoke::FILE, &held).unwrap();
    assert!(node.source.poll().await.unwrap().unwrap().revocations);
    assert!(is_revoked(&node.revocations, "5f00000000000000000000000000000000000000"));
    assert_eq!(node.revocations.current().unwrap().entries(), 40_000);
}

#[tokio::test]
async fn a_ca_from_a_backup_is_refused_until_somebody_says_otherwise() {
    let running = Running::start().await;
    let odd = Odd::beside(&running).await;
    let node = |token| agent_at(&running, odd.address, token, 3600);
    let first = node(Some(join_token(&running)));
    let now = SystemTime::now();
    odd.has(5, now, &["aa", "bb"]);
    assert!(first.source.poll().await.unwrap().unwrap().revocations);
    odd.has(5, now + Duration::from_secs(1), &["aa", "bb"]);
    assert!(!first.source.poll().await.unwrap().unwrap().revocations, "signed again");

    odd.has(5, now + Duration::from_secs(2), &["aa", "cc"]);
    for node in [&first, &node(None)] {
        let error = node.source.poll().await.unwrap_err();
        for part in ["number 5", "other entries", "backup", "revocations.signed", "restart"] {
            assert!(error.contains(part), "no {part:?} in {error}");
        }
        assert!(is_revoked(&node.revocations, "bb"), "the one of before stays in force");
        assert!(!is_revoked(&node.revocations, "cc"));
        assert_eq!(node.revocations.troubles(), [error]);
    }
    // The way out that the error names.
    std::fs::remove_file(running.place.path().join("node/revocations.signed")).unwrap();
    let restarted = node(None);
    restarted.source.poll().await.unwrap();
    assert!(is_revoked(&restarted.revocations, "cc"));
    assert_eq!(restarted.revocations.troubles(), Vec::<String>::new());
}

#[tokio::test]
async fn a_list_from_the_future_is_refused() {
    let running = Running::start().await;
    let odd = Odd::beside(&running).await;
    let node = agent_at(&running, odd.address, Some(join_token(&running)), 3600);
    odd.has(1, SystemTime::now() + Duration::from_secs(400), &["aa"]);
    let error = node.source.poll().await.unwrap_err();
    assert!(error.contains("clocks"), "{error}");
    assert!(node.revocations.current().is_none());
    odd.has(1, SystemTime::now() + Duration::from_secs(200), &["aa"]);
    node.source.poll().await.unwrap();
    assert!(is_revoked(&node.revocations, "aa"), "clocks differ");
}

#[tokio::test]
async fn a_kept_list_from_the_future_is_of_no_known_age_until_the_next_poll() {
    let running = Running::start().await;
    let odd = Odd::beside(&running).await;
    let node = || {
        let max_age = Some(Duration::from_secs(60));
        let rules = Rules { max_age, ..Rules::default() };
        agent_with(&running, odd.address, Some(running.place.path().join("token")), rules)
    };
    join_token(&running);
    let first = node();
    odd.has(1, SystemTime::now(), &["aa"]);
    first.source.poll().await.unwrap();
    assert!(!is_revoked(&first.revocations, "bb"));
    // As this node kept it when both clocks were ahead.
    let file = running.place.path().join("node/revocations.signed");
    std::fs::write(&file, odd.signed(SystemTime::now() + Duration::from_secs(3600))).unwrap();
    let restarted = node();
    for serial in ["aa", "bb"] {
        assert!(is_revoked(&restarted.revocations, serial), "{serial}");
    }
    let said = restarted.revocations.troubles().remove(0);
    assert!(said.contains("revocations.signed") && said.contains("clocks"), "{said}");
    restarted.source.poll().await.unwrap();
    assert_eq!(restarted.revocations.troubles(), Vec::<String>::new());
    assert!(is_revoked(&restarted.revocations, "aa") && !is_revoked(&restarted.revocations, "bb"));
}

#[tokio::test]
async fn a_ca_without_lists_is_asked_on() {
    let running = Running::start().await;
    let odd = Odd::beside(&running).await;
    let node = agent_at(&running, odd.address, Some(join_token(&running)), 3600);
    let following =
        tokio::spawn(node.source.clone().follow(Duration::from_millis(50), || {}, || {}));
    node.issue(WEB).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(node.revocations.troubles(), Vec::<String>::new(), "istiod never had any");
    odd.has(1, SystemTime::now(), &["aa"]);
    until("the list of a CA that has them now", || is_revoked(&node.revocations, "aa")).await;
    *odd.list.lock().unwrap() = None;
    until("a word about it", || !node.revocations.troubles().is_empty()).await;
    let said = node.revocations.troubles().remove(0);
    assert!(said.contains("no revocation list any more") && said.contains("number 1"), "{said}");
    odd.has(2, SystemTime::now(), &["bb"]);
    until("the next list", || is_revoked(&node.revocations, "bb")).await;
    assert_eq!(node.revocations.troubles(), Vec::<String>::new());
    following.abort();
}

#[tokio::test]
async fn a_kept_list_that_cannot_be_used_is_a_problem_until_there_is_another() {
    let running = Running::start().await;
    agent(&running, Some(join_token(&running)), 3600).source.poll().await.unwrap();
    let file = running.place.path().join("node/revocations.signed");
    std::fs::write(&file, "nothing").unwrap();
    let restarted = agent(&running, None, 3600);
    let said = restarted.revocations.troubles().remove(0);
    assert!(said.contains("revocations.signed") && said.contains("cannot be used"), "{said}");
    restarted.source.poll().await.unwrap();
    assert_eq!(restarted.revocations.troubles(), Vec::<String>::new());
}

#[tokio::test]
async fn a_connection_that_hears_nothing_any_more_costs_no_ten_seconds() {
    let running = Running::start().await;
    let wire = Wire::to(running.address).await;
    let node = agent_at(&running, wire.address, Some(join_token(&running)), 3600);
    let interval = Duration::from_secs(1);
    let following = tokio::spawn(node.source.clone().follow(interval, || {}, || {}));
    until("the first list", || node.revocations.current().is_some()).await;
    wire.is(Weather::OldHang);
    let serial = Target::Serial("abc".to_owned());
    revoke::add(running.ca.directory(), &serial, "", SystemTime::now()).unwrap();
    let began = std::time::Instant::now();
    until("the revocation", || is_revoked(&node.revocations, "abc")).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    following.abort();
}

#[tokio::test]
async fn a_ca_that_is_back_is_told_of() {
    let running = Running::start().await;
    let wire = Wire::to(running.address).await;
    let node = agent_at(&running, wire.address, Some(join_token(&running)), 3600);
    let back = Arc::new(AtomicUsize::new(0));
    let told = back.clone();
    let on_back = move || {
        told.fetch_add(1, Ordering::SeqCst);
    };
    let interval = Duration::from_millis(100);
    let following = tokio::spawn(node.source.clone().follow(interval, || {}, on_back));
    until("the first list", || node.revocations.current().is_some()).await;
    wire.is(Weather::Down);
    let before = wire.connections.load(Ordering::SeqCst);
    until("attempts", || wire.connections.load(Ordering::SeqCst) > before + 1).await;
    assert_eq!(back.load(Ordering::SeqCst), 0);
    until("a word in status", || !node.revocations.troubles().is_empty()).await;
    let said = node.revocations.troubles().remove(0);
    assert!(said.contains("tells nothing of revocations"), "{said}");
    wire.is(Weather::Fair);
    until("a word", || back.load(Ordering::SeqCst) == 1).await;
    assert_eq!(node.revocations.troubles(), Vec::<String>::new());
    following.abort();
}

/// Past its half life, with a CA that is away: one attempt now and then, and a row for all to see.
#[tokio::test]
async fn a_nodes_own_svid_is_shown_and_asked_for_in_measure() {
    let running = Running::start().await;
    let wire = Wire::to(running.address).await;
    let node = agent_at(&running, wire.address, Some(join_token(&running)), 30);
    let own = || node.source.own().unwrap();
    assert_eq!((own().serial, own().not_after), (None, None));
    assert_eq!(own().id.as_str(), "spiffe://cluster.local/node/vm-1");
    node.issue(WEB).await.unwrap();
    let shown = own();
    assert!(shown.serial.is_some() && shown.issuer.is_some() && shown.last_error.is_none());
    let left = shown.not_after.unwrap().duration_since(SystemTime::now()).unwrap();
    let wait = shown.next_renewal.unwrap().duration_since(SystemTime::now()).unwrap();
    assert!(left > Duration::from_secs(20) && wait < left * 2 / 3, "{left:?} {wait:?}");

    // As after a restart: it is renewed by each run.
    let restarted = agent_at(&running, wire.address, None, 30);
    wire.is(Weather::Down);
    let polls = 12;
    let before = wire.connections.load(Ordering::SeqCst);
    for _ in 0..polls {
        restarted.source.poll().await.unwrap_err();
    }
    // Each of them needs one connection of its own for the list.
    let attempts = wire.connections.load(Ordering::SeqCst) - before - polls;
    assert!((1..=6).contains(&attempts), "{attempts}");
    let failed = restarted.source.own().unwrap();
    assert!(failed.last_error.is_some() && failed.serial == shown.serial, "{failed:?}");
    wire.is(Weather::Fair);
    until("the renewal", || failed.next_renewal.is_some_and(|at| at < SystemTime::now())).await;
    restarted.source.poll().await.unwrap();
    until("the new one", || restarted.source.own().unwrap().serial != shown.serial).await;
    assert_eq!(restarted.source.own().unwrap().last_error, None);
}

#[tokio::test]
async fn nobody_waits_for_a_renewal_of_the_nodes_own_svid_that_hangs() {
    let running = Running::start().await;
    let wire = Wire::to(running.address).await;
    let node = agent_at(&running, wire.address, Some(join_token(&running)), 12);
    node.issue(WEB).await.unwrap();
    tokio::time::sleep(Duration::from_millis(6500)).await;
    wire.is(Weather::NewHang);
    let hanging = {
        let source = node.source.clone();
        tokio::task::spawn_blocking(move || source.issue(&id(WEB)).is_ok())
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = std::time::Instant::now();
    node.issue(WEB).await.expect("by the SVID that is still good, over the connection of before");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    wire.is(Weather::Fair);
    hanging.await.unwrap();
}
