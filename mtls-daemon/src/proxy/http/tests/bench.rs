//! What the tests share.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use super::super::{
    Authorize, Connecting, Context, Failed, Finished, InFlight, Judged, Report, Traffic, serve,
};
use crate::drain;
use crate::policy::Normalisation;
use crate::policy::authz::{Connection, Reason, Request, Verdict};
use crate::policy::xfcc::Client;
use crate::proxy::age::Leaving;
use crate::proxy::failure::Failure;
use crate::tls::Replay;

pub const CLIENT: &str = "td/ns/a/sa/client";
pub const OWN: &str = "spiffe://td/ns/b/sa/server";
pub const ELEMENT: &str =
    "By=spiffe://td/ns/b/sa/server;Hash=00ff;Subject=\"\";URI=spiffe://td/ns/a/sa/client";
const DEADLINE: Duration = Duration::from_secs(60);

/// What the daemon's side is like in one test.
#[derive(Clone)]
pub struct Setup {
    pub mtls: bool,
    pub forward: bool,
    pub trusted_forwarders: Vec<String>,
    pub trusted_proxies: usize,
    pub normalisation: Normalisation,
    pub head_time: Duration,
    /// Paths that begin so are denied.
    pub denied: Rc<RefCell<Vec<&'static str>>>,
    pub heard: Rc<Heard>,
    pub drain: Rc<(drain::Drain, drain::Watch)>,
    pub in_flight: Rc<InFlight>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            mtls: true,
            forward: true,
            trusted_forwarders: Vec::new(),
            trusted_proxies: 0,
            normalisation: Normalisation::Base,
            head_time: Duration::from_secs(5),
            denied: Rc::default(),
            heard: Rc::default(),
            drain: Rc::new(drain::channel()),
            in_flight: Rc::default(),
        }
    }
}

/// What was asked, and what came of it.
#[derive(Default)]
pub struct Heard {
    /// `METHOD path host remote` of every request that was judged.
    pub asked: RefCell<Vec<String>>,
    pub finished: RefCell<Vec<Finished>>,
    pub denied: RefCell<Vec<String>>,
    /// `METHOD path host code` of every request that the application did not answer.
    pub failed: RefCell<Vec<String>>,
    pub ended: RefCell<Vec<Result<(), Failure>>>,
}

impl Report for Heard {
    fn finished(&self, finished: &Finished) {
        self.finished.borrow_mut().push(*finished);
    }

    fn failed(&self, failed: &Failed<'_>) {
        let Failed { method, path, host, failure } = failed;
        self.failed.borrow_mut().push(format!("{method} {path} {host} {}", failure.code()));
    }

    fn judged(&self, judged: &Judged<'_>) {
        let line = format!("{} {} {}", judged.method, judged.path, judged.verdict);
        self.denied.borrow_mut().push(line);
    }
}

impl Authorize for Setup {
    fn request(&self, connection: &Connection<'_>, request: &Request<'_>) -> Verdict {
        let Request { method, path, host, .. } = request;
        let line = format!("{method} {path} {host} {}", connection.remote);
        self.heard.asked.borrow_mut().push(line);
        let allowed = !self.denied.borrow().iter().any(|denied| path.starts_with(denied));
        let reason = if allowed { Reason::NoAllowPolicy } else { Reason::DenyRule };
        let policy = (!allowed).then(|| "AuthorizationPolicy b/test".into());
        Verdict {
            allowed,
            policy,
            rule: (!allowed).then_some(0),
            reason,
            audit: None,
            dry_run: None,
        }
    }
}

/// Runs `test` with what it spawns, for a bounded time.
pub fn run(test: impl Future<Output = ()>) {
    run_for(DEADLINE, test);
}

pub fn run_for(deadline: Duration, test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let whole = async { timeout(deadline, test).await.expect("the test hangs") };
    LocalSet::new().block_on(&runtime.expect("a runtime"), whole);
}

/// The daemon's side in front of `application`.
pub async fn front(setup: &Setup, application: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    let setup = setup.clone();
    spawn_local(async move {
        loop {
            let (stream, peer) = listener.accept().await.expect("a client");
            // As the data path has it: a connection that is dropped resets.
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger");
            let setup = setup.clone();
            spawn_local(async move {
                let connect = move || {
                    Box::pin(async move {
                        let stream = TcpStream::connect(application)
                            .await
                            .map_err(|error| Failure::UpstreamConnect { address, error })?;
                        socket2::SockRef::from(&stream)
                            .set_linger(Some(Duration::ZERO))
                            .expect("linger");
                        Ok(stream)
                    }) as Connecting<'_>
                };
                let client = setup.mtls.then(|| Client {
                    hash: "00ff".into(),
                    subject: Some(String::new()),
                    uri: Some(format!("spiffe://{CLIENT}")),
                    ..Client::default()
                });
                let context = Context {
                    connection: Connection {
                        principal: setup.mtls.then_some(CLIENT),
                        source: peer.ip(),
                        remote: peer.ip(),
                        destination: application,
                        sni: None,
                    },
                    own_uri: setup.mtls.then_some(OWN),
                    client,
                    forward_client_cert: setup.forward,
                    trusted_forwarders: &setup.trusted_forwarders,
                    trusted_proxies: setup.trusted_proxies,
                    normalisation: setup.normalisation,
                    authorize: &setup,
                    connect: &connect,
                    connected: None.into(),
                    report: setup.heard.clone(),
                    in_flight: setup.in_flight.clone(),
                    traffic: Arc::new(Traffic::default()),
                    head_time: setup.head_time,
                    leaving: Leaving::new(&setup.drain.1, None),
                };
                let ended = serve(Replay::new(stream), context).await;
                setup.heard.ended.borrow_mut().push(ended);
            });
        }
    });
    address
}

/// An application that keeps every byte and answers each head with `200 ok`, or what `answer` says.
pub struct Recorder {
    pub address: SocketAddr,
    pub seen: Rc<RefCell<Vec<u8>>>,
    pub connections: Rc<RefCell<usize>>,
}

impl Recorder {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen.borrow()).into_owned()
    }
}

pub const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

pub async fn recorder(answer: &'static str) -> Recorder {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    let seen: Rc<RefCell<Vec<u8>>> = Rc::default();
    let connections: Rc<RefCell<usize>> = Rc::default();
    let (into, count) = (seen.clone(), connections.clone());
    spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            *count.borrow_mut() += 1;
            let into = into.clone();
            spawn_local(async move {
                let mut end = Vec::new();
                let mut piece = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut piece).await {
                    into.borrow_mut().extend_from_slice(&piece[..count]);
                    // The last bytes of the piece before may begin an end that this one completes.
                    end.extend_from_slice(&piece[..count]);
                    let heads = end.windows(4).filter(|four| four == b"\r\n\r\n").count();
                    let answers = answer.repeat(heads);
                    if stream.write_all(answers.as_bytes()).await.is_err() {
                        return;
                    }
                    end.drain(..end.len().saturating_sub(3));
                    if answer.contains("connection: close") && heads > 0 {
                        return;
                    }
                }
            });
        }
    });
    Recorder { address, seen, connections }
}

/// Sends `bytes`, then the end, and reads until the other side ends.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(bytes).await.expect("sent");
    stream.shutdown().await.ok();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("no reset");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Sends `bytes` and reads until the answer holds `until`; the connection stays open.
pub async fn exchange(stream: &mut TcpStream, bytes: &[u8], until: &str) -> String {
    stream.write_all(bytes).await.expect("sent");
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains(until) {
        let count = stream.read_buf(&mut answer).await.expect("no reset");
        assert_ne!(count, 0, "ended after {:?}", String::from_utf8_lossy(&answer));
    }
    String::from_utf8_lossy(&answer).into_owned()
}
