//! Requests to the CA over one connection, which is kept for a while.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::http::uri::Authority;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::net::TcpStream;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use zeroize::Zeroizing;

use super::trust::Trust;
use super::{Answer, Denial, Reason, Settings, Wiped, csr_of, new_key, read_answer};
use crate::grpc::Channel;
use crate::grpc::istio_v1_auth::IstioCertificateRequest;
use crate::grpc::istio_v1_auth::istio_certificate_service_client::IstioCertificateServiceClient;
use crate::grpc::mtls_ca_v1::node_service_client::NodeServiceClient;
use crate::grpc::mtls_ca_v1::{PollRequest, PollResponse};
use crate::identity::{KeyType, SpiffeId, Svid, TrustDomain};
use crate::tls::authority::AuthorityClient;

const CONNECT: Duration = Duration::from_secs(5);
/// A connection is not kept for ever, so that clients spread over a CA's replicas.
const KEPT: Duration = Duration::from_secs(60);
/// The longest answer to a poll: hundreds of thousands of revocations.
const LONGEST: usize = 64 << 20;

pub(super) struct Client {
    address: String,
    server_name: String,
    cluster: String,
    trust_domain: TrustDomain,
    key_type: KeyType,
    lifetime: Duration,
    kept: Mutex<Option<Kept>>,
}

struct Kept {
    channel: Channel,
    since: Instant,
    /// As whom, and whom it was verified against.
    serial: Option<String>,
    roots: String,
}

impl Client {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            address: settings.address.clone(),
            server_name: settings.server_name.clone(),
            cluster: settings.cluster.clone(),
            trust_domain: settings.trust_domain.clone(),
            key_type: settings.key_type,
            lifetime: settings.lifetime,
            kept: Mutex::new(None),
        }
    }

    /// The connection that is there, or a new one that shows `own`.
    pub(super) async fn channel(
        &self,
        trust: &Trust,
        own: Option<&Arc<Svid>>,
    ) -> Result<Channel, Denial> {
        let (serial, roots) = (own.map(|svid| svid.serial.clone()), trust.roots()?);
        if let Some(kept) = &*self.kept.lock().unwrap_or_else(PoisonError::into_inner)
            && kept.since.elapsed() < KEPT
            && kept.serial == serial
            && kept.roots == roots
            && !kept.channel.is_closed()
        {
            return Ok(kept.channel.clone());
        }
        let channel = self.connect(trust, own.map(|svid| &**svid)).await?;
        let kept = Kept { channel: channel.clone(), since: Instant::now(), serial, roots };
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        Ok(channel)
    }

    /// After a failure: the next request gets a new connection.
    pub(super) fn forget(&self) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) async fn connect(
        &self,
        trust: &Trust,
        own: Option<&Svid>,
    ) -> Result<Channel, Denial> {
        let tls = AuthorityClient::new(&trust.anchors()?, own).map_err(|it| it.to_string())?;
        let connected = async {
            let stream = TcpStream::connect(&self.address)
                .await
                .map_err(|error| format!("cannot connect: {error}; does it run there?"))?;
            stream.set_nodelay(true).ok();
            let stream = tls.connect(stream, &self.server_name).await.map_err(|error| {
                format!("{error} (is --ca-root this CA's, and {} its name?)", self.server_name)
            })?;
            let authority: Authority =
                self.server_name.parse().map_err(|_| "its name is no authority".to_owned())?;
            Channel::open(stream, authority).await.map_err(|error| error.to_string())
        };
        let limited = tokio::time::timeout(CONNECT, connected).await;
        limited
            .unwrap_or_else(|_| Err(format!("no connection within {} s", CONNECT.as_secs())))
            .map_err(Denial::new(Reason::Unreachable))
    }

    /// A certificate for `id`. `impersonated`: it is asked for on a workload's behalf. `key`: the one that
    /// it is to be for, otherwise a new one.
    pub(super) async fn certificate(
        &self,
        channel: Channel,
        id: &SpiffeId,
        impersonated: Option<&SpiffeId>,
        token: Option<Zeroizing<String>>,
        key: Option<Wiped>,
    ) -> Result<Answer, Denial> {
        // An RSA key takes seconds, and the node's own is asked for from the main runtime.
        let (named, key_type) = (id.clone(), self.key_type);
        let made = tokio::task::spawn_blocking(move || -> Result<_, String> {
            let key = match key {
                Some(key) => key,
                None => new_key(key_type)?,
            };
            let csr = csr_of(&named, &key)?;
            Ok((key, csr))
        });
        let (key, csr) = made.await.map_err(|error| error.to_string())??;
        let mut fields = BTreeMap::new();
        if let Some(id) = impersonated {
            let value = Value { kind: Some(Kind::StringValue(id.to_string())) };
            fields.insert("ImpersonatedIdentity".to_owned(), value);
        }
        let message = IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX),
            metadata: (!fields.is_empty()).then_some(Struct { fields }),
        };
        let request = self.request(message, token)?;
        let mut client = IstioCertificateServiceClient::new(channel);
        let response = client.create_certificate(request).await.map_err(|it| refusal(&it))?;
        Ok(read_answer(id, &self.trust_domain, key, &response.into_inner().cert_chain)?)
    }

    /// None: this CA has no such service.
    pub(super) async fn poll(
        &self,
        channel: Channel,
        token: Option<Zeroizing<String>>,
    ) -> Result<Option<PollResponse>, Denial> {
        let request = self.request(PollRequest {}, token)?;
        let mut client = NodeServiceClient::new(channel).max_decoding_message_size(LONGEST);
        match client.poll(request).await {
            Ok(response) => Ok(Some(response.into_inner())),
            Err(status) if status.code() == tonic::Code::Unimplemented => Ok(None),
            Err(status) => Err(refusal(&status)),
        }
    }

    fn request<T>(
        &self,
        message: T,
        token: Option<Zeroizing<String>>,
    ) -> Result<Request<T>, String> {
        let mut request = Request::new(message);
        if let Some(token) = token {
            let value = Zeroizing::new(format!("Bearer {}", *token));
            let mut value: MetadataValue<Ascii> = value
                .parse()
                .map_err(|_| "the token has characters that no token has".to_owned())?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
            let cluster = self.cluster.parse();
            let cluster =
                cluster.map_err(|_| "--ca-cluster-id has characters beyond ASCII".to_owned())?;
            request.metadata_mut().insert("clusterid", cluster);
        }
        Ok(request)
    }
}

fn refusal(status: &tonic::Status) -> Denial {
    let hint = match status.code() {
        tonic::Code::Unauthenticated => "; its audit log has the reason",
        _ => "",
    };
    Denial::status(status, hint)
}
