//! An SVID made ready for handshakes: configurations are made once per SVID, never per connection.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::hello::Http;
use super::provider::{VERSIONS, provider};
use super::svid_rules::Leaf;
use super::verify::SvidVerifier;
use super::{Federated, HandshakeError, svid_rules};
use crate::identity::{Bundle, SpiffeId, Svid};

/// What Istio's own TCP clients offer and servers look for (policy.md 3.2, 3.3).
pub(super) const MESH_ALPN: &[u8] = b"istio";

/// One identity's TLS configurations, both directions.
pub struct TlsIdentity {
    id: SpiffeId,
    serial: String,
    not_before: SystemTime,
    not_after: SystemTime,
    server: Servers,
    client: Arc<ClientConfig>,
    #[cfg(test)]
    verifier: Arc<SvidVerifier>,
}

impl TlsIdentity {
    /// `bundles`: the own trust domain's and its aliases' (same anchors under another name); a peer's
    /// chain is verified against its own trust domain's only.
    ///
    /// Refuses an SVID that our own peers would refuse: better at renewal than at every connection.
    pub fn new(svid: &Svid, bundles: &[Bundle]) -> Result<Arc<Self>, HandshakeError> {
        Self::federated(svid, bundles, &Arc::default())
    }

    /// The same, for peers of other trust domains as well, by what `federated` trusts at the time.
    pub fn federated(
        svid: &Svid,
        bundles: &[Bundle],
        federated: &Arc<Federated>,
    ) -> Result<Arc<Self>, HandshakeError> {
        let own = HandshakeError::Own;
        let id = svid.id.clone();
        let facts = svid_rules::chain(&svid.chain)
            .and_then(Leaf::strict)
            .map_err(|refusal| own(format!("the certificate for {id}: {refusal}")))?;
        if facts.id != id {
            return Err(own(format!("the certificate for {id} is {}'s", facts.id)));
        }
        let certified = certified(&svid.chain, &svid.key)
            .map_err(|error| own(format!("the key of {id}: {error}")))?;
        let certificate = Arc::new(SingleCertAndKey::from(certified));
        let verifier = SvidVerifier::federated(bundles, federated)?;
        Ok(Arc::new(Self {
            #[cfg(test)]
            verifier: verifier.clone(),
            server: Servers::new(server_config(certificate.clone(), verifier.clone())?),
            client: Arc::new(client_config(certificate, verifier)?),
            serial: svid.serial.clone(),
            not_before: svid.not_before,
            not_after: svid.not_after,
            id,
        }))
    }

    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Lower-case hex.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// What this identity makes of a client that shows `chain`.
    #[cfg(test)]
    pub fn would_believe(
        &self,
        chain: &[CertificateDer<'static>],
    ) -> Result<super::AuthenticatedPeer, super::svid::SvidError> {
        let usage = webpki::KeyUsage::client_auth();
        let now = rustls_pki_types::UnixTime::now();
        Ok(self.verifier.verify(&chain[0], &chain[1..], now, usage, None)?)
    }

    /// The configuration that answers a ClientHello with this application protocol.
    pub(super) fn server(&self, answer: Option<Http>) -> Arc<ServerConfig> {
        match answer {
            None => self.server.none.clone(),
            Some(Http::One) => self.server.http1.clone(),
            Some(Http::Two) => self.server.http2.clone(),
        }
    }

    pub(super) fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity")
            .field("id", &self.id)
            .field("serial", &self.serial)
            .finish_non_exhaustive()
    }
}

/// The chain with its key, if the key is the leaf's.
pub(super) fn certified(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'_>,
) -> Result<CertifiedKey, rustls::Error> {
    let certified = CertifiedKey::new(chain.to_vec(), any_supported_type(key)?);
    certified.keys_match()?;
    Ok(certified)
}

/// The server's side by the application protocol that it answers.
struct Servers {
    none: Arc<ServerConfig>,
    http1: Arc<ServerConfig>,
    http2: Arc<ServerConfig>,
}

impl Servers {
    fn new(none: ServerConfig) -> Self {
        let answering = |http: Http| {
            let mut config = none.clone();
            config.alpn_protocols = vec![http.name().to_vec()];
            Arc::new(config)
        };
        let (http1, http2) = (answering(Http::One), answering(Http::Two));
        Self { none: Arc::new(none), http1, http2 }
    }
}

fn server_config(
    certificate: Arc<SingleCertAndKey>,
    verifier: Arc<SvidVerifier>,
) -> Result<ServerConfig, HandshakeError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(|error| HandshakeError::Own(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    // A client that offers only `istio` would be turned away by a list without it, and naming
    // `istio` breaks Envoy's HTTP/2 negotiation: only clients that offer what is answered get an
    // answer (policy.md 3.7).
    config.alpn_protocols = Vec::new();
    // A resumed session would skip the peer's certificate, and outlive its expiry.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_config(
    certificate: Arc<SingleCertAndKey>,
    verifier: Arc<SvidVerifier>,
) -> Result<ClientConfig, HandshakeError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(|error| HandshakeError::Own(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(certificate);
    config.alpn_protocols = vec![MESH_ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}
