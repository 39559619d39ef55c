//! Against an agent of our own, written from the standard, on a real socket.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::Incoming;
use hyper::http::{self, Response};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::codegen::tokio_stream::Stream;
use tonic::server::NamedService;
use tonic::{Request, Status};
use tower_service::Service;

use super::*;
use crate::grpc::spiffe_workload::spiffe_workload_api_server::{
    SpiffeWorkloadApi, SpiffeWorkloadApiServer,
};
use crate::grpc::spiffe_workload::{X509svid, X509svidRequest, X509svidResponse};
use crate::grpc::spire_delegated as spire;
use crate::grpc::spire_delegated::delegated_identity_server::{
    DelegatedIdentity, DelegatedIdentityServer,
};
use crate::identity::ca::Authority;
use crate::identity::federation;
use crate::identity::{Federation, KeyType, SvidStore};

use crate::tls::HandshakeSettings;

const SOON: Duration = Duration::from_secs(20);

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::istio(&domain(), "shop", account).unwrap()
}

fn authority(domain: &TrustDomain) -> Authority {
    Authority::generate(domain, KeyType::default(), SystemTime::now()).unwrap().0
}

/// What the agent gives, or refuses with.
#[derive(Debug, Clone)]
enum Gives {
    Svids { own: Vec<X509svid>, federated: HashMap<String, Vec<u8>> },
    Refusal(tonic::Code, &'static str),
}

/// Stands for both APIs; a test changes what it gives while it runs.
#[derive(Clone)]
struct Agent(watch::Receiver<Gives>);

struct Messages<T>(tokio::sync::mpsc::Receiver<Result<T, Status>>);

impl<T> Stream for Messages<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

/// One message at once and one for each change.
fn stream<T: Send + 'static>(
    mut gives: watch::Receiver<Gives>,
    message: impl Fn(Gives) -> Result<T, Status> + Send + 'static,
) -> Messages<T> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let message = message(gives.borrow_and_update().clone());
            let last = message.is_err();
            if sender.send(message).await.is_err() || last || gives.changed().await.is_err() {
                return;
            }
        }
    });
    Messages(receiver)
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Agent {
    type FetchX509SVIDStream = Messages<X509svidResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<tonic::Response<Self::FetchX509SVIDStream>, Status> {
        let header = request.metadata().get("workload.spiffe.io");
        if header.is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument("security header missing from request"));
        }
        Ok(tonic::Response::new(stream(self.0.clone(), |gives| match gives {
            Gives::Svids { own, federated } => {
                Ok(X509svidResponse { svids: own, crl: vec![], federated_bundles: federated })
            }
            Gives::Refusal(code, why) => Err(Status::new(code, why)),
        })))
    }
}

#[tonic::async_trait]
impl DelegatedIdentity for Agent {
    type SubscribeToX509SVIDsStream = Messages<spire::SubscribeToX509sviDsResponse>;
    type SubscribeToX509BundlesStream = Messages<spire::SubscribeToX509BundlesResponse>;

    async fn subscribe_to_x509svi_ds(
        &self,
        request: Request<spire::SubscribeToX509sviDsRequest>,
    ) -> Result<tonic::Response<Self::SubscribeToX509SVIDsStream>, Status> {
        let selectors = request.into_inner().selectors;
        let account =
            selectors.iter().find_map(|it| it.value.strip_prefix("sa:").map(str::to_owned));
        assert!(selectors.iter().any(|it| it.r#type == "k8s" && it.value == "ns:shop"));
        let account = format!("/sa/{}", account.expect("a service account"));
        Ok(tonic::Response::new(stream(self.0.clone(), move |gives| match gives {
            Gives::Svids { own, federated } => {
                let fits = own.iter().filter(|svid| svid.spiffe_id.ends_with(&account));
                let x509_svids = fits.map(with_key).collect();
                let federates_with = federated.keys().cloned().collect();
                Ok(spire::SubscribeToX509sviDsResponse { x509_svids, federates_with })
            }
            Gives::Refusal(code, why) => Err(Status::new(code, why)),
        })))
    }

    async fn subscribe_to_x509_bundles(
        &self,
        _request: Request<spire::SubscribeToX509BundlesRequest>,
    ) -> Result<tonic::Response<Self::SubscribeToX509BundlesStream>, Status> {
        Ok(tonic::Response::new(stream(self.0.clone(), |gives| match gives {
            Gives::Svids { own, federated } => {
                let mut ca_certificates = federated;
                ca_certificates.insert("spiffe://unasked.example".to_owned(), Vec::new());
                let bundle = own.first().map(|svid| svid.bundle.clone()).unwrap_or_default();
                ca_certificates.insert("spiffe://cluster.local".to_owned(), bundle);
                Ok(spire::SubscribeToX509BundlesResponse { ca_certificates })
            }
            Gives::Refusal(code, why) => Err(Status::new(code, why)),
        })))
    }
}

fn with_key(svid: &X509svid) -> spire::X509svidWithKey {
    let id = SpiffeId::parse(&svid.spiffe_id).unwrap();
    let chain = crate::identity::encoding::certificates_from_der(&svid.x509_svid).unwrap();
    spire::X509svidWithKey {
        x509_svid: Some(spire::X509svid {
            cert_chain: chain.iter().map(|it| it.to_vec()).collect(),
            id: Some(spire::Spiffeid {
                trust_domain: id.trust_domain().to_owned(),
                path: id.path().to_owned(),
            }),
            expires_at: 0,
            hint: String::new(),
        }),
        x509_svid_key: svid.x509_svid_key.clone(),
    }
}

async fn serve(agent: Agent, listener: UnixListener) {
    // With this function ends whatever it serves.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let workload = SpiffeWorkloadApiServer::new(agent.clone());
        let delegated = DelegatedIdentityServer::new(agent.clone());
        let service = service_fn(move |request: http::Request<Incoming>| {
            let (mut workload, mut delegated) = (workload.clone(), delegated.clone());
            async move {
                let name = request.uri().path().split('/').nth(1).unwrap_or_default();
                let is = |other: &str| name == other;
                let answer: Result<Response<tonic::body::Body>, Infallible> =
                    if is(<SpiffeWorkloadApiServer<Agent> as NamedService>::NAME) {
                        workload.call(request).await
                    } else {
                        delegated.call(request).await
                    };
                answer
            }
        });
        connections.spawn(async move {
            let server = http2::Builder::new(TokioExecutor::new());
            server.serve_connection(TokioIo::new(stream), service).await.ok();
        });
    }
}

/// An agent on a socket in a directory of its own.
struct Running {
    place: tempfile::TempDir,
    gives: watch::Sender<Gives>,
    task: Option<JoinHandle<()>>,
}

impl Running {
    fn start(gives: Gives) -> Self {
        let place = tempfile::tempdir().unwrap();
        let mut agent = Self { place, gives: watch::Sender::new(gives), task: None };
        agent.up();
        agent
    }

    fn socket(&self) -> PathBuf {
        self.place.path().join("agent.sock")
    }

    fn up(&mut self) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        self.task = Some(tokio::spawn(serve(Agent(self.gives.subscribe()), listener)));
    }

    async fn down(&mut self) {
        let task = self.task.take().expect("it runs");
        task.abort();
        task.await.ok();
        std::fs::remove_file(self.socket()).unwrap();
    }

    fn source(&self, api: Api) -> Arc<SpiffeAgent> {
        let settings = Settings { api, socket: self.socket(), trust_domain: domain() };
        Arc::new(SpiffeAgent::new(settings))
    }
}

fn delegated_api() -> Api {
    Api::Delegated(Selectors::parse(DEFAULT_SELECTORS).unwrap())
}

fn svid(ca: &Authority, account: &str) -> X509svid {
    let life = Duration::from_secs(3600);
    let svid = ca.issue(&id(account), KeyType::default(), life, SystemTime::now()).unwrap();
    X509svid {
        spiffe_id: id(account).to_string(),
        x509_svid: svid.chain.iter().flat_map(|it| it.to_vec()).collect(),
        x509_svid_key: svid.key.secret_der().to_vec(),
        bundle: ca.certificate().to_vec(),
        hint: String::new(),
    }
}

fn gives(own: Vec<X509svid>) -> Gives {
    Gives::Svids { own, federated: HashMap::new() }
}

async fn obtain(source: &Arc<SpiffeAgent>, account: &str) -> Result<(Svid, Bundle), String> {
    let (source, id) = (source.clone(), id(account));
    let asked = tokio::task::spawn_blocking(move || source.obtain(&id)).await.unwrap();
    asked.map_err(|error| format!("{}: {error}", error.reason().as_str()))
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !condition() {
        assert!(began.elapsed() < SOON, "did not come: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn both_apis() -> [Api; 2] {
    [Api::Workload, delegated_api()]
}

#[tokio::test]
async fn the_identity_that_is_wanted_is_picked() {
    for api in both_apis() {
        let ca = authority(&domain());
        let agent = Running::start(gives(vec![svid(&ca, "other"), svid(&ca, "web")]));
        let source = agent.source(api);
        let (svid, bundle) = obtain(&source, "web").await.unwrap();
        assert_eq!(svid.id, id("web"));
        assert_eq!(bundle.anchors, [ca.certificate().clone()]);
        assert_eq!(source.bundle().unwrap(), bundle);
        // Closed where the agent gives none, with the reason.
        let error = obtain(&source, "db").await.unwrap_err();
        assert!(error.starts_with("absent: "), "{error}");
        assert!(error.contains("no SVID for spiffe://cluster.local/ns/shop/sa/db"), "{error}");
        assert!(error.contains("registration entry"), "{error}");
        if source.settings.api == Api::Workload {
            assert!(error.contains("sa/other") && error.contains("sa/web"), "{error}");
        }
    }
}

#[tokio::test]
async fn what_an_agent_says_is_verified() {
    let (ca, stranger) = (authority(&domain()), authority(&domain()));
    let change = |how: &dyn Fn(&mut X509svid)| {
        let mut changed = svid(&ca, "web");
        how(&mut changed);
        changed
    };
    let other = svid(&ca, "db");
    let cases = [
        (change(&|it| it.bundle = stranger.certificate().to_vec()), "not signed by a CA"),
        (change(&|it| it.x509_svid = other.x509_svid.clone()), "sa/db"),
        (change(&|it| it.x509_svid_key = other.x509_svid_key.clone()), "key"),
        (change(&|it| it.x509_svid.truncate(100)), "not usable"),
        (change(&|it| it.x509_svid_key.clear()), "key"),
        (change(&|it| it.spiffe_id = "spiffe://other.example/x".to_owned()), "not usable"),
    ];
    let agent = Running::start(gives(Vec::new()));
    let source = agent.source(Api::Workload);
    for (bad, why) in cases {
        agent.gives.send_replace(gives(vec![bad]));
        let error = obtain(&source, "web").await.unwrap_err();
        assert!(error.starts_with("invalid: ") && error.contains(why), "{why}: {error}");
    }
}

#[tokio::test]
async fn refusals_name_the_agent_and_the_reason() {
    for api in both_apis() {
        let refusal = Gives::Refusal(tonic::Code::PermissionDenied, "no identity issued");
        let mut agent = Running::start(refusal);
        let source = agent.source(api);
        let error = obtain(&source, "web").await.unwrap_err();
        assert!(error.starts_with("refused: "), "{error}");
        let socket = agent.socket().display().to_string();
        assert!(error.contains(&socket) && error.contains("no identity issued"), "{error}");
        assert!(error.contains("registration entry for this daemon"), "{error}");
        agent.down().await;
        let error = obtain(&source, "web").await.unwrap_err();
        assert!(error.starts_with("unreachable: ") && error.contains("cannot connect"), "{error}");
        let foreign = SpiffeId::parse("spiffe://other.example/ns/shop/sa/web").unwrap();
        let asked = tokio::task::spawn_blocking(move || source.obtain(&foreign)).await.unwrap();
        assert!(asked.unwrap_err().to_string().contains("not of the trust domain"));
    }
}

#[tokio::test]
async fn rotation_restart_and_refusal_of_an_agent() {
    for api in both_apis() {
        let ca = authority(&domain());
        let other = TrustDomain::parse("other.example").unwrap();
        let foreign = authority(&other);
        let federated =
            HashMap::from([("spiffe://other.example".to_owned(), foreign.certificate().to_vec())]);
        let mut agent = Running::start(gives(vec![svid(&ca, "web")]));
        let source = agent.source(api);
        let store = SvidStore::new(source.clone(), Vec::new(), HandshakeSettings::plain());
        let federation = Federation::new(federation::Settings::default(), Arc::default());
        let running = tokio::spawn(store.clone().run());
        let looking = store.clone();
        let following = tokio::spawn(
            source.clone().follow(federation.clone(), move |ids| looking.changed(ids)),
        );
        let slot = store.slot(&id("web"));
        let first = slot.wait(SOON).await.unwrap().serial().to_owned();
        let serial = || slot.current().map(|it| it.serial().to_owned());

        agent.gives.send_replace(Gives::Svids { own: vec![svid(&ca, "web")], federated });
        until("the second", || serial().is_some_and(|now| now != first)).await;
        let second = serial();
        until("the federated bundle", || {
            federation.status().iter().any(|it| it.trust_domain == other && it.authorities == 1)
        })
        .await;
        assert_eq!(federation.status().len(), 1, "what nobody is to federate with is not taken");

        // It takes everything back: what is there is good until its end, the other domain goes.
        agent.gives.send_replace(gives(Vec::new()));
        until("an error", || store.status()[0].last_error.is_some()).await;
        assert_eq!(serial(), second);
        until("no federation", || federation.status().is_empty()).await;

        // Gone, and back with another SVID and new roots.
        agent.down().await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(serial(), second);
        let renewed = authority(&domain());
        agent.gives.send_replace(gives(vec![svid(&renewed, "web")]));
        agent.up();
        until("the third", || serial() != second).await;
        until("no error", || store.status()[0].last_error.is_none()).await;
        assert_eq!(source.bundle().unwrap().anchors, [renewed.certificate().clone()]);
        following.abort();
        running.abort();
    }
}

#[tokio::test]
async fn a_request_without_the_header_is_refused_and_ours_has_it() {
    let agent = Running::start(gives(Vec::new()));
    let channel = Channel::unix(&agent.socket()).await.unwrap();
    let mut bare =
        crate::grpc::spiffe_workload::spiffe_workload_api_client::SpiffeWorkloadApiClient::new(
            channel.clone(),
        );
    let refused = bare.fetch_x509svid(X509svidRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(workload::fetch(channel).await.is_ok());
}

#[test]
fn messages_with_keys_print_none() {
    let key = vec![0xab; 32];
    let svid = {
        let mut svid = empty();
        svid.x509_svid_key = key.clone();
        svid
    };
    let with_key = spire::X509svidWithKey { x509_svid: None, x509_svid_key: key };
    let response = X509svidResponse { svids: vec![svid], ..X509svidResponse::default() };
    for text in [format!("{response:?}"), format!("{with_key:?}")] {
        assert!(!text.contains("171") && !text.contains("ab"), "{text}");
    }
}

fn empty() -> X509svid {
    X509svid {
        spiffe_id: String::new(),
        x509_svid: Vec::new(),
        x509_svid_key: Vec::new(),
        bundle: Vec::new(),
        hint: String::new(),
    }
}

#[test]
fn sockets_are_written_as_the_standard_says() {
    for good in ["unix:///run/agent.sock", "unix:/run/agent.sock", "/run/agent.sock"] {
        assert_eq!(socket(good).unwrap(), Path::new("/run/agent.sock"), "{good}");
    }
    for bad in ["", "agent.sock", "unix:agent.sock", "unix://agent/x", "tcp://127.0.0.1:80"] {
        assert!(socket(bad).is_err(), "{bad}");
    }
    assert!(socket("tcp://127.0.0.1:80").unwrap_err().contains("only Unix sockets"));
}

#[test]
fn selectors_describe_an_identity() {
    let selectors = Selectors::parse(["k8s:ns:{namespace}", "unix:path:{path}", "x:y"]).unwrap();
    let of = selectors.of(&id("web")).unwrap();
    let of: Vec<String> = of.iter().map(|it| format!("{}:{}", it.r#type, it.value)).collect();
    assert_eq!(of, ["k8s:ns:shop", "unix:path:/ns/shop/sa/web", "x:y"]);
    let plain = SpiffeId::parse("spiffe://cluster.local/web").unwrap();
    assert!(selectors.of(&plain).unwrap_err().contains("no namespace"));
    for bad in ["", "k8s", "k8s:", ":x", "k8s:{name}", "{path}:x"] {
        assert!(Selectors::parse([bad]).is_err(), "{bad:?}");
    }
}
