//! Who is at the other end: the SVID rules (X509-SVID §4, §5) on top of webpki's chain building.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::DistinguishedName;
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls_pki_types::{
    CertificateDer, ServerName, SubjectPublicKeyInfoDer, TrustAnchor, UnixTime,
};
use sha2::{Digest, Sha256};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath, anchor_from_trusted_cert};

use super::federated::{self, AnchorPrint};
use super::refusal::Refusal;
use super::revocation::{Checks, Link};
use super::signatures::{no_tls12, signature_methods};
use super::{HandshakeError, handshake, provider, svid_rules};
use crate::identity::{Bundle, SpiffeId};

/// A peer whose SVID was verified. Only this module can make one.
#[derive(Debug, Clone)]
pub struct AuthenticatedPeer {
    id: SpiffeId,
    certificate: Arc<PeerCertificate>,
}

#[derive(Debug)]
struct PeerCertificate {
    sha256: [u8; 32],
    subject: String,
    dns_names: Vec<String>,
    not_after: SystemTime,
    /// Of another trust domain: the CA that it was verified with.
    federated: Option<AnchorPrint>,
    /// From the leaf to below the root: what is asked of revocation lists, now and later.
    path: Box<[Link]>,
}

impl AuthenticatedPeer {
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// SHA-256 of the leaf certificate, lower-case hex.
    pub fn certificate_sha256(&self) -> String {
        self.certificate.sha256.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The leaf's subject; empty for Istio's SVIDs.
    pub fn subject(&self) -> &str {
        &self.certificate.subject
    }

    /// The leaf's DNS names. They were not checked against anything: they identify nobody.
    pub fn dns_names(&self) -> &[String] {
        &self.certificate.dns_names
    }

    pub fn not_after(&self) -> SystemTime {
        self.certificate.not_after
    }

    pub(super) fn federated(&self) -> Option<&AnchorPrint> {
        self.certificate.federated.as_ref()
    }

    pub(super) fn path(&self) -> &[Link] {
        &self.certificate.path
    }

    /// Whether both showed the same certificate.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.certificate.sha256 == other.certificate.sha256
    }

    /// Whether it is the one that the TLS library names.
    pub(super) fn is_of(&self, connection: &rustls::CommonState) -> bool {
        let leaf = connection.peer_certificates().and_then(<[_]>::first);
        leaf.is_some_and(|leaf| <[u8; 32]>::from(Sha256::digest(leaf)) == self.certificate.sha256)
    }
}

/// What was negotiated, for the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSummary {
    /// For example `TLSv1.3`.
    pub version: &'static str,
    /// IANA's name, for example `TLS_AES_256_GCM_SHA384`.
    pub cipher: &'static str,
    /// For example `X25519MLKEM768`.
    pub group: &'static str,
    /// From an earlier handshake, whose certificates were judged again.
    pub resumed: bool,
}

impl TlsSummary {
    pub(super) fn of(connection: &rustls::CommonState) -> Self {
        use rustls::{CipherSuite, ProtocolVersion};
        let version = match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            // Originated, to a server outside the mesh.
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "unknown",
        };
        let cipher = match connection.negotiated_cipher_suite().map(|suite| suite.suite()) {
            Some(CipherSuite::TLS13_AES_256_GCM_SHA384) => "TLS_AES_256_GCM_SHA384",
            Some(CipherSuite::TLS13_AES_128_GCM_SHA256) => "TLS_AES_128_GCM_SHA256",
            Some(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256) => "TLS_CHACHA20_POLY1305_SHA256",
            Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384) => {
                "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"
            }
            Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256) => {
                "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"
            }
            Some(CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384) => {
                "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"
            }
            Some(CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256) => {
                "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
            }
            _ => "unknown",
        };
        let group = connection.negotiated_key_exchange_group();
        let group = group.and_then(|group| group.name().as_str()).unwrap_or("unknown");
        let resumed = connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        Self { version, cipher, group, resumed }
    }
}

/// Anchors by trust domain. They are never merged: a CA speaks for its own domain alone.
#[derive(Debug)]
pub(super) struct Anchors(Vec<Domain>);

#[derive(Debug)]
pub(super) struct Domain {
    name: String,
    anchors: Vec<TrustAnchor<'static>>,
    /// Of each anchor, as lists of what it revoked are verified with; None: of no kind that can be.
    keys: Vec<Option<SubjectPublicKeyInfoDer<'static>>>,
}

impl Anchors {
    pub(super) fn none() -> Self {
        Self(Vec::new())
    }

    pub(super) fn new(bundles: &[Bundle]) -> Result<Self, HandshakeError> {
        let mut domains: Vec<Domain> = Vec::new();
        for bundle in bundles {
            let name = bundle.trust_domain.to_string();
            if domains.iter().any(|known| known.name == name) {
                return Err(HandshakeError::Own(format!("there are two bundles for {name}")));
            }
            let (mut anchors, mut keys) = (Vec::new(), Vec::new());
            for certificate in &bundle.anchors {
                let anchor = anchor_from_trusted_cert(certificate).map_err(|error| {
                    HandshakeError::Own(format!("a CA certificate of {name} is unusable: {error}"))
                })?;
                anchors.push(anchor.to_owned());
                keys.push(svid_rules::public_key(certificate));
            }
            domains.push(Domain { name, anchors, keys });
        }
        Ok(Self(domains))
    }

    /// The anchors for `id`'s own trust domain.
    pub(super) fn of(&self, id: &SpiffeId) -> Result<&Domain, Refusal> {
        match self.0.iter().find(|domain| domain.name == id.trust_domain()) {
            Some(domain) if domain.anchors.is_empty() => Err(Refusal::EmptyBundle(id.clone())),
            Some(domain) => Ok(domain),
            None => {
                let trusted: Vec<&str> = self.0.iter().map(|it| it.name.as_str()).collect();
                let trusted = trusted.join(", ");
                Err(Refusal::ForeignTrustDomain { id: id.clone(), trusted })
            }
        }
    }
}

impl Domain {
    pub(super) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    fn key_of(&self, anchor: &TrustAnchor<'_>) -> Option<&SubjectPublicKeyInfoDer<'static>> {
        let same = |it: &TrustAnchor<'_>| {
            it.subject == anchor.subject
                && it.subject_public_key_info == anchor.subject_public_key_info
        };
        self.keys.get(self.anchors.iter().position(same)?)?.as_ref()
    }
}

/// Verifies SVIDs; one for all connections of an identity. What only one connection knows (whom it
/// expects), and what it learns, goes through [`handshake`].
#[derive(Debug)]
pub(super) struct SvidVerifier {
    anchors: Anchors,
    algorithms: WebPkiSupportedAlgorithms,
    checks: Arc<Checks>,
}

impl SvidVerifier {
    pub(super) fn new(
        bundles: &[Bundle],
        checks: &Arc<Checks>,
    ) -> Result<Arc<Self>, HandshakeError> {
        let anchors = Anchors::new(bundles)?;
        let algorithms = provider::provider().signature_verification_algorithms;
        Ok(Arc::new(Self { anchors, algorithms, checks: checks.clone() }))
    }

    /// All of it: who signed, who it is, and whether that was taken back.
    pub(super) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
        expected: Option<&[SpiffeId]>,
    ) -> Result<AuthenticatedPeer, Refusal> {
        let peer = self.verify_chain(leaf, intermediates, now, usage)?;
        if let Some(expected) = expected
            && !expected.contains(&peer.id)
        {
            let expected: Vec<&str> = expected.iter().map(SpiffeId::as_str).collect();
            let expected = match expected[..] {
                [] => "nobody".to_owned(),
                _ => expected.join(" or "),
            };
            return Err(Refusal::Unexpected { id: peer.id, expected });
        }
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(now.as_secs());
        self.checks.check(&peer.id, peer.path(), now)?;
        Ok(peer)
    }

    /// Whether it was taken back is left out.
    pub(super) fn verify_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<AuthenticatedPeer, Refusal> {
        svid_rules::check_length(intermediates.len() + 1)?;
        let facts = svid_rules::leaf(leaf)?;
        let others = self.checks.federated().anchors();
        let (domain, federated) = match self.anchors.of(&facts.id) {
            Err(Refusal::ForeignTrustDomain { id, trusted }) => {
                (others.of(&id).map_err(|why| why.also_trusted(trusted))?, true)
            }
            own => (own?, false),
        };
        let refuse = |error| chain_refusal(&facts.id, error);
        let no_signer = RefCell::new(None);
        // Asked for every path to an anchor: another one may be sound.
        let sound = |path: &VerifiedPath<'_>| {
            let mut signers = path.intermediate_certificates();
            let Err(why) = signers.try_for_each(|signer| svid_rules::signer(&signer.der())) else {
                return Ok(());
            };
            no_signer.replace(Some(why));
            // The nearest there is; the refusal itself says it in words.
            Err(webpki::Error::EndEntityUsedAsCa)
        };
        let certificate = EndEntityCert::try_from(leaf).map_err(refuse)?;
        let path = certificate
            .verify_for_usage(
                self.algorithms.all,
                &domain.anchors,
                intermediates,
                now,
                usage,
                None,
                Some(&sound),
            )
            .map_err(|error| match no_signer.take() {
                Some(why) => Refusal::Signer { id: facts.id.clone(), why },
                None => refuse(error),
            })?;
        let certificate = PeerCertificate {
            path: self.checks.links(&path, domain.key_of(path.anchor())),
            sha256: Sha256::digest(leaf).into(),
            subject: facts.subject,
            dns_names: facts.dns_names,
            not_after: facts.not_after,
            federated: federated.then(|| federated::print(path.anchor())),
        };
        Ok(AuthenticatedPeer { id: facts.id, certificate: Arc::new(certificate) })
    }
}

fn chain_refusal(id: &SpiffeId, error: webpki::Error) -> Refusal {
    use webpki::Error::*;
    let id = id.clone();
    match error {
        UnknownIssuer | InvalidSignatureForPublicKey => Refusal::UnknownIssuer(id),
        CertExpired { time, not_after } => Refusal::Expired { id, not_after, now: time },
        CertNotValidYet { time, not_before } => Refusal::NotYetValid { id, not_before, now: time },
        CaUsedAsEndEntity => Refusal::Ca(id),
        RequiredEkuNotFoundContext(_) => Refusal::ExtendedKeyUsage(id),
        BadDer | BadDerTime | TrailingData(_) => {
            Refusal::Unreadable(format!("is not well-formed: {id}"))
        }
        other => Refusal::Chain { id, why: other.to_string() },
    }
}

impl ServerCertVerifier for SvidVerifier {
    /// The server's name plays no part: an SVID names a workload, not a host (secure naming).
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        handshake::decide((end_entity, intermediates), |expected| {
            // A client always knows whom it expects; without that it would trust the whole mesh.
            let expected = expected.ok_or(Refusal::OutsideHandshake)?;
            self.verify(end_entity, intermediates, now, KeyUsage::server_auth(), Some(expected))
        })?;
        Ok(ServerCertVerified::assertion())
    }

    signature_methods!(no_tls12);
}

impl ClientCertVerifier for SvidVerifier {
    /// No hints: a peer has one SVID, and the list would tell outsiders about the mesh.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        handshake::decide((end_entity, intermediates), |_| {
            self.verify(end_entity, intermediates, now, KeyUsage::client_auth(), None)
        })?;
        Ok(ClientCertVerified::assertion())
    }

    signature_methods!(no_tls12);
}
