//! An SVID made ready for handshakes: configurations are made once per SVID, never per connection.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::handshake::workload;
use super::hello::Http;
use super::provider::{VERSIONS, provider};
use super::refusal::Refusal;
use super::revocation::{Checks, Link};
use super::sessions::{ClientSessions, Kept, ServerSessions, Whom};
use super::svid_rules::Leaf;
use super::verify::SvidVerifier;
use super::{AuthenticatedPeer, HandshakeError, subject, svid_rules};
use crate::identity::{Bundle, SpiffeId, Svid};

/// What Istio's own TCP clients offer and servers look for (policy.md 3.2, 3.3).
pub(super) const MESH_ALPN: &[u8] = b"istio";

/// One identity's TLS configurations, both directions.
pub struct TlsIdentity {
    id: SpiffeId,
    serial: String,
    issuer: String,
    not_before: SystemTime,
    not_after: SystemTime,
    server: Servers,
    client: Clients,
    verifier: Arc<SvidVerifier>,
    certificate: Arc<OwnCertificate>,
}

/// What all SVIDs of a daemon share.
#[derive(Debug, Clone)]
pub struct HandshakeSettings {
    pub checks: Arc<Checks>,
    /// Whether sessions are kept, so that a peer that comes back need not show its certificate again.
    pub resumption: bool,
}

impl HandshakeSettings {
    /// For tests: nothing is revoked.
    #[cfg(test)]
    pub fn plain() -> Self {
        Self { checks: Checks::none(), resumption: false }
    }
}

/// What is asked of revocation lists about an SVID of our own. Without its key: open connections hold
/// it longer than that.
#[derive(Debug)]
pub struct OwnCertificate {
    id: SpiffeId,
    path: Box<[Link]>,
    checks: Arc<Checks>,
}

impl TlsIdentity {
    /// For tests without revocation.
    #[cfg(test)]
    pub fn new(svid: &Svid, bundles: &[Bundle]) -> Result<Arc<Self>, HandshakeError> {
        Self::with(svid, bundles, &HandshakeSettings::plain())
    }

    /// `bundles`: the own trust domain's and its aliases' (same anchors under another name). Others are
    /// what the checks federate with at the time. A peer's chain is verified against its own trust
    /// domain's only.
    ///
    /// Refuses an SVID that our own peers would refuse: better at renewal than at every connection.
    pub fn with(
        svid: &Svid,
        bundles: &[Bundle],
        HandshakeSettings { checks, resumption }: &HandshakeSettings,
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
        let verifier = SvidVerifier::new(bundles, checks)?;
        let mut server = server_config(certificate.clone(), verifier.clone())?;
        let client = Arc::new(client_config(certificate, verifier.clone())?);
        let client = if *resumption {
            server.session_storage =
                Arc::new(ServerSessions::new(verifier.clone(), svid.not_after));
            server.send_tls13_tickets = 1;
            Clients::Keeping(ClientSessions::new(client, checks.clone(), svid.not_after))
        } else {
            Clients::Forgetting(client)
        };
        Ok(Arc::new(Self {
            certificate: Arc::new(OwnCertificate {
                id: id.clone(),
                path: own_path(&verifier, svid, &facts),
                checks: checks.clone(),
            }),
            server: Servers::new(server),
            client,
            verifier,
            serial: svid.serial.clone(),
            issuer: issuer(&svid.chain),
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

    /// The signer's distinguished name, as RFC 2253 writes it.
    pub fn issuer(&self) -> &str {
        &self.issuer
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

    pub fn certificate(&self) -> &Arc<OwnCertificate> {
        &self.certificate
    }

    /// The configuration that answers a ClientHello with this application protocol.
    pub(super) fn server(&self, answer: Option<Http>) -> Arc<ServerConfig> {
        match answer {
            None => self.server.none.clone(),
            Some(Http::One) => self.server.http1.clone(),
            Some(Http::Two) => self.server.http2.clone(),
        }
    }

    /// The configuration for one server, with what was kept for it.
    pub(super) fn client(&self, whom: Whom) -> Kept {
        match &self.client {
            Clients::Keeping(sessions) => sessions.with(whom, SystemTime::now()),
            Clients::Forgetting(config) => Kept::nothing(config.clone()),
        }
    }

    pub(super) fn keeps_sessions(&self) -> bool {
        matches!(self.client, Clients::Keeping(_))
    }

    /// As a client: the chain of an earlier handshake, judged as in a full one now.
    pub(super) fn verify_again(
        &self,
        chain: &[CertificateDer<'_>],
        expected: &[SpiffeId],
    ) -> Result<AuthenticatedPeer, HandshakeError> {
        let (leaf, intermediates) = chain.split_first().ok_or(Refusal::NoCertificate)?;
        let usage = webpki::KeyUsage::server_auth();
        let verified =
            self.verifier.verify(leaf, intermediates, UnixTime::now(), usage, Some(expected));
        Ok(verified.and_then(workload)?)
    }
}

impl OwnCertificate {
    /// Whether it was taken back: nobody would believe it, and who shows it may be somebody else as
    /// well.
    pub fn check(&self, now: SystemTime) -> Result<(), HandshakeError> {
        self.checks.check(&self.id, &self.path, now).map_err(|why| {
            if why.is_revoked() {
                HandshakeError::OwnRevoked(why.to_string())
            } else {
                HandshakeError::RevocationUnknown(why.to_string())
            }
        })
    }

    /// Whether an open connection with `peer` may go on.
    pub fn check_with(
        &self,
        peer: &AuthenticatedPeer,
        now: SystemTime,
    ) -> Result<(), HandshakeError> {
        self.check(now)?;
        self.checks.federated().check_open(peer)?;
        let peers = self.checks.check(peer.id(), peer.path(), now);
        peers.map_err(|why| Refusal::from(why).into())
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

pub(super) fn issuer(chain: &[CertificateDer<'_>]) -> String {
    let leaf = chain.first().and_then(|leaf| X509Certificate::from_der(leaf).ok());
    leaf.map(|(_, leaf)| subject::rfc2253(leaf.issuer())).unwrap_or_default()
}

fn own_path(verifier: &SvidVerifier, svid: &Svid, facts: &Leaf) -> Box<[Link]> {
    let Some((leaf, intermediates)) = svid.chain.split_first() else { return Box::default() };
    let usage = webpki::KeyUsage::client_auth();
    match verifier.verify_chain(leaf, intermediates, UnixTime::now(), usage) {
        Ok(own) => own.path().into(),
        // Our own bundle need not trust us; what is asked by number can be asked all the same.
        Err(_) => [Link::of_leaf(leaf, &facts.serial)].into(),
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

enum Clients {
    Keeping(ClientSessions),
    Forgetting(Arc<ClientConfig>),
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
    // The library's own would skip the peer's certificate, and outlive its expiry.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    // Can be replayed, and is there before anybody is verified.
    config.max_early_data_size = 0;
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
    config.enable_early_data = false;
    Ok(config)
}
