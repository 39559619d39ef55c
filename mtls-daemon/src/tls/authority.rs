//! TLS towards a CA, both sides: the server shows its SVID under a DNS name, and a client may show
//! one, or has a token instead.

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::provider::{VERSIONS, provider};
use super::verify::SvidVerifier;
use super::{AuthenticatedPeer, Checks, HandshakeError, handshake};
use crate::identity::{Bundle, Svid, revocations};

const H2: &[u8] = b"h2";

pub type AcceptedStream = tokio_rustls::server::TlsStream<TcpStream>;
pub type ConnectedStream = tokio_rustls::client::TlsStream<TcpStream>;

/// The CA's side.
#[derive(Clone)]
pub struct AuthorityServer(Arc<ServerConfig>);

/// A client that showed a certificate, which verified.
#[derive(Debug, Clone)]
pub struct CertifiedClient {
    pub peer: AuthenticatedPeer,
    /// In [`revocations::normal_serial`]'s form.
    pub serial: String,
    /// As it was shown, leaf first: a root may be replaced while the connection is open.
    pub chain: Arc<[CertificateDer<'static>]>,
}

impl AuthorityServer {
    /// `bundle`: whose SVIDs clients may show.
    ///
    /// # Errors
    /// The SVID or the bundle is unusable.
    pub fn new(svid: &Svid, bundle: &Bundle) -> Result<Self, HandshakeError> {
        // Its own list is asked for every request, not once for a connection.
        let verifier = SvidVerifier::new(std::slice::from_ref(bundle), &Checks::none())?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(own)?
            .with_client_cert_verifier(Arc::new(IfAny(verifier)))
            .with_cert_resolver(certificate(svid)?);
        config.alpn_protocols = vec![H2.to_vec()];
        // A resumed session would outlive what its certificate may do.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(Self(Arc::new(config)))
    }

    /// Not bounded in time: the caller does that.
    ///
    /// # Errors
    /// The handshake failed; also if the client showed a certificate that does not verify.
    pub async fn accept(
        &self,
        stream: TcpStream,
    ) -> Result<(AcceptedStream, Option<CertifiedClient>), HandshakeError> {
        let shake = TlsAcceptor::from(self.0.clone()).accept(stream);
        let (stream, peer) = handshake::run_with_any(shake).await?;
        let client = match (peer, stream.get_ref().1.peer_certificates()) {
            (Some(peer), Some(shown @ [leaf, ..])) => {
                let chain = shown.iter().cloned().map(CertificateDer::into_owned).collect();
                Some(CertifiedClient { peer, serial: serial(leaf)?, chain })
            }
            (None, None | Some([])) => None,
            _ => return Err(HandshakeError::Own("a certificate that nobody verified".into())),
        };
        Ok((stream, client))
    }
}

impl fmt::Debug for AuthorityServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorityServer").finish_non_exhaustive()
    }
}

/// A client's side: the server is a CA, which is verified by DNS name as Istio's clients do.
#[derive(Clone)]
pub struct AuthorityClient(Arc<ClientConfig>);

impl AuthorityClient {
    /// # Errors
    /// No usable trust anchor, or the SVID is unusable.
    pub fn new(
        anchors: &[CertificateDer<'static>],
        own_svid: Option<&Svid>,
    ) -> Result<Self, HandshakeError> {
        let mut roots = RootCertStore::empty();
        for anchor in anchors {
            roots.add(anchor.clone()).map_err(own)?;
        }
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(own)?
            .with_root_certificates(roots);
        let mut config = match own_svid {
            Some(svid) => builder.with_client_cert_resolver(certificate(svid)?),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![H2.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(Self(Arc::new(config)))
    }

    /// Not bounded in time: the caller does that.
    ///
    /// # Errors
    /// The handshake failed.
    pub async fn connect(
        &self,
        stream: TcpStream,
        server_name: &str,
    ) -> Result<ConnectedStream, HandshakeError> {
        let name = ServerName::try_from(server_name.to_owned()).map_err(|_| {
            HandshakeError::Own(format!("{server_name:?} is no DNS name: correct --ca-server-name"))
        })?;
        let connected = TlsConnector::from(self.0.clone()).connect(name, stream).await;
        connected.map_err(HandshakeError::from_io)
    }
}

fn certificate(svid: &Svid) -> Result<Arc<SingleCertAndKey>, HandshakeError> {
    let key = any_supported_type(&svid.key).map_err(own)?;
    let certified = CertifiedKey::new(svid.chain.clone(), key);
    certified.keys_match().map_err(own)?;
    Ok(Arc::new(SingleCertAndKey::from(certified)))
}

fn own(error: rustls::Error) -> HandshakeError {
    HandshakeError::Own(error.to_string())
}

fn serial(leaf: &CertificateDer<'_>) -> Result<String, HandshakeError> {
    let (_, leaf) = X509Certificate::from_der(leaf)
        .map_err(|error| HandshakeError::PeerRefused(error.to_string()))?;
    Ok(revocations::normal_serial(&leaf.serial.to_str_radix(16)))
}

/// Asks for a certificate without requiring one; one that is shown must verify.
#[derive(Debug)]
struct IfAny(Arc<SvidVerifier>);

impl ClientCertVerifier for IfAny {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.0.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        ClientCertVerifier::verify_tls12_signature(&*self.0, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        ClientCertVerifier::verify_tls13_signature(&*self.0, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ClientCertVerifier::supported_verify_schemes(&*self.0)
    }
}
