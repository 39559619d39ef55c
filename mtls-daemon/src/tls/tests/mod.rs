//! Handshakes over loopback TCP. Here: the CA and the peers that the tests are played with.

mod first_bytes;
mod handshakes;
mod kept;
mod names;
mod refusals;
mod resumed;
mod revoked;
mod signers;
mod stranger;
mod trust_domains;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::identity::ca::Authority;
use crate::identity::{Bundle, KeyType, SpiffeId, Svid, TrustDomain};

const CLIENT: &str = "spiffe://cluster.local/ns/full/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/full/sa/server";
const SNI: &str = "outbound_.80_._.server.full.svc.cluster.local";
const LIMIT: Duration = Duration::from_secs(10);

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

/// A CA that signs whatever it is told to.
struct TestCa {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl TestCa {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "cluster.local");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self { certificate: params.self_signed(&key).unwrap().into(), key }
    }

    /// A leaf for `uri` as Istio's CA makes it, then spoilt by `spoil`.
    fn sign(&self, uri: &str, spoil: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(60);
        params.not_after = OffsetDateTime::now_utc() + Duration::from_secs(3600);
        spoil(&mut params);
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap().into();
        let above = Vec::new();
        Leaf { certificate, above, key: PrivateKeyDer::Pkcs8(key.serialize_der().into()) }
    }

    /// An intermediate CA below this one, spoilt by `spoil`.
    fn intermediate(&self, spoil: impl FnOnce(&mut CertificateParams)) -> Self {
        let issuer = self.sign("spiffe://cluster.local/node", |p| {
            p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            p.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            p.distinguished_name.push(DnType::OrganizationName, "intermediate");
            spoil(p);
        });
        let key = KeyPair::try_from(issuer.key.secret_der()).unwrap();
        Self { certificate: issuer.certificate, key }
    }

    fn bundles(&self, names: &[&str]) -> Vec<Bundle> {
        let anchors = vec![self.certificate.clone()];
        let bundle = |name: &&str| Bundle { trust_domain: domain(name), anchors: anchors.clone() };
        names.iter().map(bundle).collect()
    }

    /// A sound identity that trusts this CA for `cluster.local`.
    fn identity(&self, uri: &str) -> Arc<TlsIdentity> {
        let svid = self.sign(uri, |_| {}).svid(uri);
        TlsIdentity::new(&svid, &self.bundles(&["cluster.local"])).unwrap()
    }
}

struct Leaf {
    certificate: CertificateDer<'static>,
    /// What it shows besides.
    above: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Leaf {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        std::iter::once(&self.certificate).chain(&self.above).cloned().collect()
    }

    fn svid(self, uri: &str) -> Svid {
        Svid {
            id: id(uri),
            chain: self.chain(),
            key: self.key,
            serial: "1".to_owned(),
            not_before: SystemTime::now(),
            not_after: SystemTime::now() + Duration::from_secs(3600),
        }
    }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, server) = tokio::join!(client, listener.accept());
    (client.unwrap(), server.unwrap().0)
}

fn expecting(ids: &[&str]) -> Arc<[SpiffeId]> {
    ids.iter().map(|text| id(text)).collect()
}

type Accepted = Result<(ServerStream, AuthenticatedPeer, TlsSummary), HandshakeError>;

/// Our server against a strange client that shows `leaf`; also what the client then reads.
async fn accept_stranger(
    server: &TlsIdentity,
    leaf: Option<Leaf>,
    alpn: &[&[u8]],
) -> (Accepted, std::io::Error) {
    let (client, stream) = pair().await;
    let name = ServerName::try_from(SNI).unwrap();
    let shake = stranger::connector(leaf, alpn).connect(name, client);
    let both = async {
        tokio::join!(accept(Replay::new(stream), server, None), async {
            match shake.await {
                Ok(mut stream) => match stream.read_u8().await {
                    Ok(_) => panic!("the server sent nothing"),
                    Err(error) => error,
                },
                Err(error) => error,
            }
        })
    };
    // An accepted client waits for a byte: accepting is over first, and drops the stream.
    tokio::time::timeout(LIMIT, async {
        let (accepted, error) = both.await;
        (accepted, error)
    })
    .await
    .expect("in time")
}

/// Our client against a strange server that shows `leaf`.
async fn connect_stranger(client: &TlsIdentity, leaf: Leaf, expected: &[&str]) -> HandshakeError {
    let (stream, far) = pair().await;
    let server = tokio::spawn(stranger::acceptor(leaf).accept(far));
    let expected = expecting(expected);
    let result = tokio::time::timeout(LIMIT, connect(stream, client, &expected, SNI)).await;
    server.abort();
    result.expect("in time").expect_err("must be refused")
}

fn refused(error: &HandshakeError) -> &str {
    match error {
        HandshakeError::PeerRefused(text) => text,
        other => panic!("another error: {other}"),
    }
}
