//! The CA over the wire. Here: a CA on a loopback port, and a client made from the checked-in proto.

mod abuse;
mod clocks;
mod conformance;
mod interop;
mod joining;
mod lasting;
mod node_faults;
mod nodes;
mod parsers;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tonic::{Code, Status, async_trait};

use super::allow::{AccountName, Pod, Pods};
use super::audit::Audit;
use super::authenticate::token_review::{self, Reviewer, TokenReviews};
use super::connection::Times;
use super::*;
use crate::grpc::Channel;
use crate::grpc::istio_v1_auth::IstioCertificateRequest;
use crate::grpc::istio_v1_auth::istio_certificate_service_client::IstioCertificateServiceClient;
use crate::identity::KeyType;
use crate::identity::{SpiffeId, Svid, TrustDomain};
use crate::tls::authority::AuthorityClient;

const NAME: &str = "istiod.istio-system.svc";
const OPAQUE: &str = "request authenticate failure";

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

/// What the CA wrote down.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn all(&self) -> Vec<serde_json::Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn last(&self) -> serde_json::Value {
        self.all().pop().expect("a line")
    }
}

/// An API server: the token is the name of the account.
#[derive(Clone, Default)]
struct Cluster(Arc<Gate>);

/// Where a review of a token `slow…` waits until it is let go.
struct Gate {
    waiting: AtomicUsize,
    open: Semaphore,
}

impl Default for Gate {
    fn default() -> Self {
        Self { waiting: AtomicUsize::new(0), open: Semaphore::new(0) }
    }
}

#[async_trait]
impl Reviewer for Cluster {
    async fn review(&self, token: &str, audiences: &[&str]) -> Result<serde_json::Value, String> {
        assert_eq!(audiences, [token_review::AUDIENCE]);
        if token.starts_with("slow") {
            self.0.waiting.fetch_add(1, Ordering::SeqCst);
            self.0.open.acquire().await.unwrap().forget();
        }
        let Some((namespace, account)) = token.split_once('/') else {
            return Ok(json!({ "status": { "authenticated": false } }));
        };
        Ok(json!({ "status": {
            "authenticated": true,
            "audiences": if namespace == "old" { serde_json::Value::Null } else { json!(audiences) },
            "user": {
                "username": format!("system:serviceaccount:{namespace}:{account}"),
                "groups": ["system:serviceaccounts"],
                "extra": {
                    "authentication.kubernetes.io/pod-name": [format!("{account}-0")],
                    "authentication.kubernetes.io/pod-uid": ["uid"],
                },
            },
        }}))
    }
}

impl Pods for Cluster {
    fn pod(&self, namespace: &str, name: &str) -> Option<Pod> {
        (namespace == "mtls" && name == "agent-0").then(|| Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: "uid".to_owned(),
            service_account: "agent".to_owned(),
            node: "n1".to_owned(),
        })
    }

    fn runs_on(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        (node, namespace, service_account) == ("n1", "shop", "web")
    }
}

struct Running {
    place: tempfile::TempDir,
    ca: Arc<Ca>,
    address: SocketAddr,
    audit: Lines,
    task: JoinHandle<()>,
    /// As SIGTERM.
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    gate: Arc<Gate>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn settings(place: &Path) -> Settings {
    let trusted = AccountName { namespace: "mtls".to_owned(), name: "agent".to_owned() };
    Settings {
        directory: place.join("ca"),
        trust_domain: domain(),
        plugged_in: None,
        key_type: KeyType::EcdsaP256,
        sealing: None,
        dns_names: vec![NAME.to_owned()],
        default_lifetime: Duration::from_secs(24 * 3600),
        max_lifetime: Duration::from_secs(90 * 24 * 3600),
        trusted_accounts: [trusted].into(),
    }
}

impl Running {
    async fn start() -> Self {
        let place = tempfile::tempdir().unwrap();
        let settings = settings(place.path());
        Self::with(place, settings).await
    }

    async fn with(place: tempfile::TempDir, settings: Settings) -> Self {
        Self::timed(place, settings, Times::default()).await
    }

    async fn timed(place: tempfile::TempDir, settings: Settings, times: Times) -> Self {
        Self::opened(place, settings, times, SystemTime::now()).await
    }

    /// One whose clock was at `now` when it began.
    async fn opened(
        place: tempfile::TempDir,
        settings: Settings,
        times: Times,
        now: SystemTime,
    ) -> Self {
        let audit = Lines::default();
        let ca = Ca::open(settings, Audit::to(audit.clone()), now).unwrap();
        let cluster = Cluster::default();
        let gate = cluster.0.clone();
        let audience = token_review::AUDIENCE.to_owned();
        let reviews = TokenReviews { reviewer: Arc::new(cluster.clone()), audience };
        let ca = Arc::new(ca.with_authenticator(reviews).with_pods(Arc::new(cluster)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let stopped = async move {
            // Dropped: it is not to end by itself.
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let task = tokio::spawn(server::serve(ca.clone(), listener, times, stopped));
        Self { place, ca, address, audit, task, stop: Some(stop), gate }
    }

    /// The file that nodes get as --ca-root.
    fn root_file(&self) -> std::path::PathBuf {
        let path = self.place.path().join("root.pem");
        if !path.exists() {
            std::fs::write(&path, &self.ca.signing().anchors_pem).unwrap();
        }
        path
    }

    async fn channel(&self, own: Option<&Svid>) -> Channel {
        self.try_channel(own).await.unwrap()
    }

    async fn try_channel(&self, own: Option<&Svid>) -> Result<Channel, String> {
        let client = AuthorityClient::new(&self.ca.signing().anchors, own).unwrap();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let stream = client.connect(stream, NAME).await.map_err(|error| error.to_string())?;
        Channel::open(stream, NAME.parse().unwrap()).await.map_err(|error| error.to_string())
    }

    async fn ask(&self, token: Option<&str>, asked: Asked) -> Result<Vec<String>, Status> {
        ask(self.channel(None).await, token, asked).await
    }
}

#[derive(Clone)]
struct Asked {
    csr: String,
    seconds: i64,
    impersonated: Option<String>,
}

fn csr(key: &KeyPair) -> String {
    let names = vec!["istiod.istio-system.svc".to_owned(), "victim.example".to_owned()];
    CertificateParams::new(names).unwrap().serialize_request(key).unwrap().pem().unwrap()
}

impl Asked {
    fn own() -> Self {
        let csr = csr(&KeyPair::generate().unwrap());
        Self { csr, seconds: 3600, impersonated: None }
    }

    fn of(id: &str) -> Self {
        Self { impersonated: Some(id.to_owned()), ..Self::own() }
    }
}

async fn ask(channel: Channel, token: Option<&str>, asked: Asked) -> Result<Vec<String>, Status> {
    let field =
        |id| ("ImpersonatedIdentity".to_owned(), Value { kind: Some(Kind::StringValue(id)) });
    let fields: BTreeMap<_, _> = asked.impersonated.map(field).into_iter().collect();
    let mut request = tonic::Request::new(IstioCertificateRequest {
        csr: asked.csr,
        validity_duration: asked.seconds,
        metadata: Some(Struct { fields }),
    });
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await;
    answer.map(|response| response.into_inner().cert_chain)
}

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(|it| it.unwrap()).collect()
}

fn refused(answer: Result<Vec<String>, Status>) {
    let status = answer.expect_err("must be refused");
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, OPAQUE));
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}
