//! An agent of our own, written from SPIFFE's Workload API and SPIRE's Delegated Identity API: no
//! distribution has a package of one.

#[rustfmt::skip]
#[path = "../../../mtls-daemon/src/grpc/spiffe_workload.rs"]
#[expect(dead_code, reason = "this is the server's side")]
mod workload;
#[rustfmt::skip]
#[path = "../../../mtls-daemon/src/grpc/spire_delegated.rs"]
#[expect(dead_code, reason = "this is the server's side")]
mod delegated;

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use anyhow::Result;
use hyper::body::Incoming;
use hyper::http::Request as HttpRequest;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tonic::codegen::tokio_stream::Stream;
use tonic::server::NamedService;
use tonic::{Request, Response, Status};
use tower_service::Service;

use delegated::delegated_identity_server::{DelegatedIdentity, DelegatedIdentityServer};
use workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};

/// One SVID, all of it DER.
#[derive(Debug, Clone)]
pub struct Given {
    pub id: String,
    pub chain: Vec<u8>,
    pub key: Vec<u8>,
    pub bundle: Vec<u8>,
}

/// Serves until it is stopped.
pub struct Agent {
    socket: PathBuf,
    gives: watch::Sender<Vec<Given>>,
    running: Option<(tokio::sync::oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Agent {
    /// # Errors
    /// When the socket cannot be made.
    pub fn start(socket: &Path, gives: Vec<Given>) -> Result<Self> {
        let gives = watch::Sender::new(gives);
        let mut agent = Self { socket: socket.to_owned(), gives, running: None };
        agent.resume()?;
        Ok(agent)
    }

    /// This and nothing else, to those who are connected as well.
    pub fn give(&self, gives: Vec<Given>) {
        self.gives.send_replace(gives);
    }

    /// Gone without a word.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            stop.send(()).ok();
            thread.join().ok();
        }
        std::fs::remove_file(&self.socket).ok();
    }

    /// # Errors
    /// When the socket cannot be made.
    pub fn resume(&mut self) -> Result<()> {
        let (service, socket) = (Api(self.gives.subscribe()), self.socket.clone());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (made, ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime");
            runtime.block_on(async {
                let listener = UnixListener::bind(socket);
                made.send(listener.as_ref().map(drop).map_err(ToString::to_string)).ok();
                if let Ok(listener) = listener {
                    tokio::select! {
                        () = serve(service, listener) => {}
                        _ = stopped => {}
                    }
                }
            });
        });
        ready.recv()?.map_err(anyhow::Error::msg)?;
        self.running = Some((stop, thread));
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop();
    }
}

#[derive(Clone)]
struct Api(watch::Receiver<Vec<Given>>);

async fn serve(api: Api, listener: UnixListener) {
    // With this function ends whatever it serves.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let workload = SpiffeWorkloadApiServer::new(api.clone());
        let delegated = DelegatedIdentityServer::new(api.clone());
        let service = service_fn(move |request: HttpRequest<Incoming>| {
            let (mut workload, mut delegated) = (workload.clone(), delegated.clone());
            async move {
                let name = request.uri().path().split('/').nth(1).unwrap_or_default();
                if name == <SpiffeWorkloadApiServer<Api> as NamedService>::NAME {
                    workload.call(request).await
                } else {
                    let answer: Result<_, Infallible> = delegated.call(request).await;
                    answer
                }
            }
        });
        connections.spawn(async move {
            let server = http2::Builder::new(TokioExecutor::new());
            server.serve_connection(TokioIo::new(stream), service).await.ok();
        });
    }
}

pub struct Messages<T>(tokio::sync::mpsc::Receiver<Result<T, Status>>);

impl<T> Stream for Messages<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

/// One message at once and one for each change.
fn messages<T: Send + 'static>(
    mut gives: watch::Receiver<Vec<Given>>,
    message: impl Fn(&[Given]) -> T + Send + 'static,
) -> Messages<T> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let message = message(&gives.borrow_and_update());
            if sender.send(Ok(message)).await.is_err() || gives.changed().await.is_err() {
                return;
            }
        }
    });
    Messages(receiver)
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Api {
    type FetchX509SVIDStream = Messages<workload::X509svidResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<workload::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let header = request.metadata().get("workload.spiffe.io");
        if header.is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument("security header missing from request"));
        }
        if self.0.borrow().is_empty() {
            return Err(Status::permission_denied("no identity issued"));
        }
        let message = |gives: &[Given]| workload::X509svidResponse {
            svids: gives.iter().map(svid).collect(),
            crl: Vec::new(),
            federated_bundles: HashMap::new(),
        };
        Ok(Response::new(messages(self.0.clone(), message)))
    }
}

fn svid(given: &Given) -> workload::X509svid {
    let Given { id, chain, key, bundle } = given.clone();
    workload::X509svid {
        spiffe_id: id,
        x509_svid: chain,
        x509_svid_key: key,
        bundle,
        hint: String::new(),
    }
}

#[tonic::async_trait]
impl DelegatedIdentity for Api {
    type SubscribeToX509SVIDsStream = Messages<delegated::SubscribeToX509sviDsResponse>;
    type SubscribeToX509BundlesStream = Messages<delegated::SubscribeToX509BundlesResponse>;

    async fn subscribe_to_x509svi_ds(
        &self,
        request: Request<delegated::SubscribeToX509sviDsRequest>,
    ) -> Result<Response<Self::SubscribeToX509SVIDsStream>, Status> {
        let selectors = request.into_inner().selectors;
        let value = |prefix: &str| {
            let values = selectors.iter().filter(|it| it.r#type == "k8s");
            let mut values = values.filter_map(|it| it.value.strip_prefix(prefix));
            values.next().unwrap_or_default().to_owned()
        };
        // As the entries of these workloads would say.
        let path = format!("/ns/{}/sa/{}", value("ns:"), value("sa:"));
        let message = move |gives: &[Given]| {
            let fitting = gives.iter().filter(|given| given.id.ends_with(&path));
            let x509_svids = fitting.map(with_key).collect();
            delegated::SubscribeToX509sviDsResponse { x509_svids, federates_with: Vec::new() }
        };
        Ok(Response::new(messages(self.0.clone(), message)))
    }

    async fn subscribe_to_x509_bundles(
        &self,
        _request: Request<delegated::SubscribeToX509BundlesRequest>,
    ) -> Result<Response<Self::SubscribeToX509BundlesStream>, Status> {
        let message = |gives: &[Given]| {
            let own = gives.first().map(|given| given.bundle.clone()).unwrap_or_default();
            let ca_certificates = HashMap::from([("spiffe://cluster.local".to_owned(), own)]);
            delegated::SubscribeToX509BundlesResponse { ca_certificates }
        };
        Ok(Response::new(messages(self.0.clone(), message)))
    }
}

fn with_key(given: &Given) -> delegated::X509svidWithKey {
    let rest = given.id.trim_start_matches("spiffe://");
    let (trust_domain, path) = rest.split_once('/').unwrap_or((rest, ""));
    let id = delegated::Spiffeid { trust_domain: trust_domain.into(), path: format!("/{path}") };
    delegated::X509svidWithKey {
        x509_svid: Some(delegated::X509svid {
            cert_chain: vec![given.chain.clone()],
            id: Some(id),
            expires_at: 0,
            hint: String::new(),
        }),
        x509_svid_key: given.key.clone(),
    }
}

/// Messages with keys print without them; the generated code has no other way.
macro_rules! without_keys {
    ($($message:path),*) => {$(
        impl std::fmt::Debug for $message {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($message)).finish_non_exhaustive()
            }
        }
    )*};
}

without_keys!(workload::X509svid, delegated::X509svidWithKey);
