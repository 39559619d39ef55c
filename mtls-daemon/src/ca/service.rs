//! The gRPC services: what comes off the wire, and back on it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prost_types::value::Kind;
use tonic::{Request, Response, Status, async_trait};

use super::Refusal;
use super::audit::Entry;
use super::authenticate::{Credentials, Purpose};
use super::issue::{self, Ca};
use crate::grpc::istio_v1_auth::istio_certificate_service_server::IstioCertificateService;
use crate::grpc::istio_v1_auth::{IstioCertificateRequest, IstioCertificateResponse};
use crate::grpc::mtls_ca_v1::node_service_server::NodeService;
use crate::grpc::mtls_ca_v1::{PollRequest, PollResponse};
use crate::tls::authority::CertifiedClient;

/// Longer than any request waits for its turns.
const ANSWER: Duration = Duration::from_secs(60);

const IMPERSONATED: &str = "ImpersonatedIdentity";

/// What the connection knows of a request's sender.
#[derive(Debug, Clone)]
pub struct Connection {
    pub peer: SocketAddr,
    pub client: Option<CertifiedClient>,
}

#[derive(Clone)]
pub struct Services(pub Arc<Ca>);

impl Services {
    fn credentials<T>(request: &Request<T>) -> Result<Credentials, Status> {
        let connection = request
            .extensions()
            .get::<Connection>()
            .ok_or_else(|| Status::internal("the CA failed: see its log"))?;
        let values = request.metadata().get_all("authorization").iter();
        Ok(Credentials {
            peer: connection.peer,
            client: connection.client.clone(),
            authorization: values
                .filter_map(|value| value.to_str().ok().map(str::to_owned))
                .collect(),
            now: SystemTime::now(),
        })
    }
}

/// The identity in a request's metadata. A value of another kind is no value.
fn impersonated(metadata: Option<&prost_types::Struct>) -> Option<String> {
    match metadata?.fields.get(IMPERSONATED)?.kind.as_ref()? {
        Kind::StringValue(id) if !id.is_empty() => Some(id.clone()),
        _ => None,
    }
}

#[async_trait]
impl IstioCertificateService for Services {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let credentials = Self::credentials(&request)?;
        let IstioCertificateRequest { csr, validity_duration, metadata } = request.into_inner();
        let asked = issue::Request {
            csr,
            lifetime: validity_duration,
            impersonated: impersonated(metadata.as_ref()),
        };
        // A task of its own: a client that goes away takes its answer with it, and not what is written
        // down about it.
        let ca = self.0.clone();
        let created = tokio::spawn(async move { ca.create(credentials, asked).await });
        let refusal = match tokio::time::timeout(ANSWER, created).await {
            Ok(Ok(Ok(cert_chain))) => {
                return Ok(Response::new(IstioCertificateResponse { cert_chain }));
            }
            Ok(Ok(Err(refusal))) => refusal,
            Ok(Err(error)) => Refusal::Internal(error.to_string()),
            Err(_) => Refusal::Busy,
        };
        Err(refusal.status())
    }
}

#[async_trait]
impl NodeService for Services {
    async fn poll(&self, request: Request<PollRequest>) -> Result<Response<PollResponse>, Status> {
        let credentials = Self::credentials(&request)?;
        let ca = self.0.clone();
        let mut entry = Entry::default();
        let caller = ca
            .authenticate(&credentials, Purpose::Poll, &mut entry)
            .await
            .map_err(|refusal| refused(&credentials, &refusal))?;
        let now = credentials.now;
        let polled = tokio::task::spawn_blocking(move || {
            ca.check_caller(&caller)?;
            Ok(ca.signed_list(now)?)
        });
        let polled = polled.await.map_err(|error| Refusal::Internal(error.to_string()));
        let list = polled.and_then(|it| it).map_err(|refusal| refused(&credentials, &refusal))?;
        let signing = &list.signing;
        Ok(Response::new(PollResponse {
            revocations: list.list,
            signature: list.signature,
            signer: signing.statement_chain.iter().map(|it| it.to_vec()).collect(),
            roots: signing.anchors_pem.clone(),
        }))
    }
}

fn refused(credentials: &Credentials, refusal: &Refusal) -> Status {
    tracing::warn!(peer = %credentials.peer, "a poll is refused: {refusal}");
    refusal.status()
}
