//! Handshakes over loopback TCP, with certificates that are wrong in one thing each.

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
use crate::identity::{Bundle, SpiffeId, Svid, TrustDomain};

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
        Leaf { certificate, key: PrivateKeyDer::Pkcs8(key.serialize_der().into()) }
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
    key: PrivateKeyDer<'static>,
}

impl Leaf {
    fn svid(self, uri: &str) -> Svid {
        Svid {
            id: id(uri),
            chain: vec![self.certificate],
            key: self.key,
            serial: "1".to_owned(),
            not_before: SystemTime::now(),
            not_after: SystemTime::now() + Duration::from_secs(3600),
        }
    }
}

/// A peer that is not ours: any certificate or none, and it accepts everything.
mod stranger {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::aws_lc_rs::sign::any_supported_type;
    use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
    use rustls::sign::{CertifiedKey, SingleCertAndKey};
    use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
    use rustls_pki_types::UnixTime;

    use super::*;

    #[derive(Debug)]
    struct Gullible;

    type Signature = Result<HandshakeSignatureValid, Error>;

    impl ServerCertVerifier for Gullible {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Signature {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Signature {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ECDSA_NISTP256_SHA256]
        }
    }

    impl ClientCertVerifier for Gullible {
        fn root_hint_subjects(&self) -> &[DistinguishedName] {
            &[]
        }
        fn verify_client_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: UnixTime,
        ) -> Result<ClientCertVerified, Error> {
            Ok(ClientCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Signature {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Signature {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ECDSA_NISTP256_SHA256]
        }
    }

    /// Without the checks that a sensible peer makes of its own certificate.
    fn shown(leaf: Leaf) -> Arc<SingleCertAndKey> {
        let key = any_supported_type(&leaf.key).unwrap();
        Arc::new(CertifiedKey::new(vec![leaf.certificate], key).into())
    }

    pub(super) fn connector(leaf: Option<Leaf>, alpn: &[&[u8]]) -> tokio_rustls::TlsConnector {
        let builder = rustls::ClientConfig::builder_with_provider(provider::provider())
            .with_protocol_versions(provider::VERSIONS)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Gullible));
        let mut config = match leaf {
            Some(leaf) => builder.with_client_cert_resolver(shown(leaf)),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Arc::new(config).into()
    }

    pub(super) fn acceptor(leaf: Leaf) -> tokio_rustls::TlsAcceptor {
        let config = rustls::ServerConfig::builder_with_provider(provider::provider())
            .with_protocol_versions(provider::VERSIONS)
            .unwrap()
            .with_client_cert_verifier(Arc::new(Gullible))
            .with_cert_resolver(shown(leaf));
        Arc::new(config).into()
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
        tokio::join!(accept(Replay::new(stream), server), async {
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

/// A way to spoil a certificate, and what the refusal of it says (or its alert).
type Spoil = (fn(&mut CertificateParams), &'static str);

const SPOILT: &[Spoil] = &[
    (|p| p.not_after = OffsetDateTime::now_utc() - Duration::from_secs(5), "expired at"),
    (|p| p.not_before = OffsetDateTime::now_utc() + Duration::from_secs(90), "is valid from"),
    (
        |p| p.subject_alt_names.push(SanType::URI("https://a.example/b".try_into().unwrap())),
        "it has 2 URI names",
    ),
    (
        |p| p.subject_alt_names = vec![SanType::DnsName(SNI.try_into().unwrap())],
        "it has 0 URI names",
    ),
    (
        |p| {
            p.subject_alt_names = vec![SanType::URI("spiffe://Cluster.local/a".try_into().unwrap())]
        },
        "is no SPIFFE ID",
    ),
    (
        |p| p.subject_alt_names = vec![SanType::URI("spiffe://cluster.local".try_into().unwrap())],
        "names a trust domain and no workload",
    ),
    (
        |p| p.subject_alt_names = vec![SanType::URI("spiffe://evil/ns/a/sa/b".try_into().unwrap())],
        "is of a trust domain that is not trusted here (trusted: cluster.local)",
    ),
    (|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), "it is a CA's certificate"),
    (|p| p.key_usages = Vec::new(), "key usage is missing"),
    (|p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment], "lacks digitalSignature"),
    (|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign), "has keyCertSign"),
    (|p| p.key_usages.push(KeyUsagePurpose::CrlSign), "has keyCertSign or cRLSign"),
    (
        |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
        "lacks serverAuth or clientAuth",
    ),
    (
        |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
        "lacks serverAuth or clientAuth",
    ),
    (
        |p| {
            // Key usage whose content is no bit string.
            p.key_usages = Vec::new();
            let mut usage = CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![4, 1, 0x80]);
            usage.set_criticality(true);
            p.custom_extensions.push(usage);
        },
        "it cannot be parsed",
    ),
    (
        |p| {
            // Sound, but not critical.
            p.key_usages = Vec::new();
            let usage = CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 7, 0x80]);
            p.custom_extensions.push(usage);
        },
        "key usage is not critical",
    ),
    (
        |p| {
            // No subject, and a SAN extension written by hand: URI, not critical.
            let uri = SERVER.as_bytes();
            let mut names = vec![0x30, uri.len() as u8 + 2, 0x86, uri.len() as u8];
            names.extend(uri);
            p.subject_alt_names = Vec::new();
            p.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 17], names));
        },
        "alternative names are not critical",
    ),
    (
        |p| {
            let mut odd =
                CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
            odd.set_criticality(true);
            p.custom_extensions.push(odd);
        },
        "its chain does not verify",
    ),
];

#[tokio::test]
async fn both_sides_know_each_other_and_bytes_pass() {
    let ca = TestCa::new();
    let (client, server) = (ca.identity(CLIENT), ca.identity(SERVER));
    let (near, far) = pair().await;
    let expected = expecting(&["spiffe://cluster.local/ns/x/sa/y", SERVER]);
    let (connected, accepted) =
        tokio::join!(connect(near, &client, &expected, SNI), accept(Replay::new(far), &server));
    let (mut near, the_server, summary) = connected.unwrap();
    let (mut far, the_client, server_summary) = accepted.unwrap();
    assert_eq!((the_server.id(), the_client.id()), (&id(SERVER), &id(CLIENT)));
    assert_eq!(summary, server_summary);
    assert_eq!((summary.version, summary.group), ("TLSv1.3", "X25519MLKEM768"));
    assert!(summary.cipher.starts_with("TLS_"), "{summary:?}");
    assert_eq!(the_client.certificate_sha256().len(), 64);
    assert_eq!((the_client.subject(), the_client.dns_names().len()), ("", 0));
    assert!(the_client.not_after() > SystemTime::now());
    assert_eq!(near.get_ref().1.alpn_protocol(), None, "a mesh server answers no ALPN");

    near.write_all(b"ping").await.unwrap();
    near.flush().await.unwrap();
    let mut got = [0; 4];
    far.read_exact(&mut got).await.unwrap();
    far.write_all(b"pong").await.unwrap();
    far.shutdown().await.unwrap();
    let mut rest = Vec::new();
    near.read_to_end(&mut rest).await.unwrap();
    assert_eq!((&got, &rest[..]), (b"ping", &b"pong"[..]));
    assert_eq!(near.get_ref().1.tls13_tickets_received(), 0);
}

#[tokio::test]
async fn the_embedded_ca_makes_what_we_accept() {
    let (authority, _) = Authority::generate(&domain("cluster.local"), SystemTime::now()).unwrap();
    let anchors = vec![authority.certificate().clone()];
    let bundles = [Bundle { trust_domain: domain("cluster.local"), anchors }];
    let make = |uri| {
        let svid = authority.issue(&id(uri), Duration::from_secs(60), SystemTime::now()).unwrap();
        TlsIdentity::new(&svid, &bundles).unwrap()
    };
    let (client, server) = (make(CLIENT), make(SERVER));
    let (near, far) = pair().await;
    let expected = expecting(&[SERVER]);
    let (connected, accepted) =
        tokio::join!(connect(near, &client, &expected, SNI), accept(Replay::new(far), &server));
    assert_eq!(connected.unwrap().1.id(), &id(SERVER));
    assert_eq!(accepted.unwrap().1.id(), &id(CLIENT));
}

#[tokio::test]
async fn a_client_offering_only_istio_is_answered_without_alpn() {
    let ca = TestCa::new();
    let server = ca.identity(SERVER);
    for alpn in [&[b"istio" as &[u8]][..], &[b"h2"], &[], &[b"istio-peer-exchange", b"istio"]] {
        let leaf = ca.sign(CLIENT, |_| {});
        let (near, far) = pair().await;
        let name = ServerName::try_from(SNI).unwrap();
        let shake = stranger::connector(Some(leaf), alpn).connect(name, near);
        let (connected, accepted) = tokio::join!(shake, accept(Replay::new(far), &server));
        assert_eq!(accepted.unwrap().1.id(), &id(CLIENT), "{alpn:?}");
        assert_eq!(connected.unwrap().get_ref().1.alpn_protocol(), None);
    }
}

#[tokio::test]
async fn a_server_refuses_every_spoilt_client_certificate_and_says_why() {
    let ca = TestCa::new();
    let server = ca.identity(SERVER);
    for (spoil, why) in SPOILT {
        let leaf = ca.sign(CLIENT, spoil);
        let (accepted, _) = accept_stranger(&server, Some(leaf), &[b"istio"]).await;
        let error = accepted.err().unwrap_or_else(|| panic!("accepted: {why}"));
        assert!(refused(&error).contains(why), "{why}: {error}");
    }
}

#[tokio::test]
async fn a_client_refuses_every_spoilt_server_certificate_and_says_why() {
    let ca = TestCa::new();
    let client = ca.identity(CLIENT);
    for (spoil, why) in SPOILT {
        let leaf = ca.sign(SERVER, spoil);
        let error = connect_stranger(&client, leaf, &[SERVER]).await;
        assert!(refused(&error).contains(why), "{why}: {error}");
    }
}

#[tokio::test]
async fn a_dns_name_that_equals_the_sni_does_not_make_up_for_a_wrong_uri() {
    let ca = TestCa::new();
    let other = "spiffe://cluster.local/ns/full/sa/other";
    let with_dns = |p: &mut CertificateParams| {
        p.subject_alt_names.push(SanType::DnsName(SNI.try_into().unwrap()))
    };
    let client = ca.identity(CLIENT);
    let error = connect_stranger(&client, ca.sign(other, with_dns), &[SERVER]).await;
    assert!(refused(&error).contains("it is spiffe://cluster.local/ns/full/sa/other"), "{error}");
    assert!(refused(&error).contains(SERVER), "{error}");
    let error = connect_stranger(&client, ca.sign(SERVER, with_dns), &[]).await;
    assert!(refused(&error).contains("should be nobody"), "{error}");

    let foreign = "spiffe://cluster.locale/ns/full/sa/client";
    let server = ca.identity(SERVER);
    let (accepted, _) =
        accept_stranger(&server, Some(ca.sign(foreign, with_dns)), &[b"istio"]).await;
    let error = accepted.err().unwrap();
    assert!(refused(&error).contains("not trusted here"), "{error}");
}

#[tokio::test]
async fn another_root_of_the_same_trust_domain_is_refused_with_unknown_ca() {
    let (ours, theirs) = (TestCa::new(), TestCa::new());
    let leaf = theirs.sign(CLIENT, |_| {});
    let (accepted, seen) = accept_stranger(&ours.identity(SERVER), Some(leaf), &[b"istio"]).await;
    let error = accepted.err().unwrap();
    assert!(refused(&error).contains("is not signed by a CA that is trusted"), "{error}");
    let seen = HandshakeError::from_established(&seen).expect("an alert").to_string();
    assert!(seen.contains("unknown_ca"), "{seen}");

    let leaf = theirs.sign(SERVER, |_| {});
    let error = connect_stranger(&ours.identity(CLIENT), leaf, &[SERVER]).await;
    assert!(refused(&error).contains("is not signed by a CA that is trusted"), "{error}");
}

#[tokio::test]
async fn a_stolen_certificate_without_its_key_is_refused() {
    let ca = TestCa::new();
    let stolen = |uri| Leaf { key: ca.sign(uri, |_| {}).key, ..ca.sign(uri, |_| {}) };
    let (accepted, _) = accept_stranger(&ca.identity(SERVER), Some(stolen(CLIENT)), &[]).await;
    let error = accepted.err().unwrap();
    assert!(refused(&error).contains("does not hold the key"), "{error}");
    let error = connect_stranger(&ca.identity(CLIENT), stolen(SERVER), &[SERVER]).await;
    assert!(refused(&error).contains("does not hold the key"), "{error}");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let server = TestCa::new().identity(SERVER);
    let (accepted, seen) = accept_stranger(&server, None, &[b"istio"]).await;
    let error = accepted.err().unwrap();
    assert!(refused(&error).contains("it presented none"), "{error}");
    let seen = HandshakeError::from_established(&seen).expect("an alert").to_string();
    assert!(seen.contains("certificate_required"), "{seen}");
}

#[tokio::test]
async fn each_refusal_has_its_alert() {
    let ca = TestCa::new();
    let server = ca.identity(SERVER);
    let cases: [Spoil; 4] = [
        (|p| p.key_usages = Vec::new(), "bad_certificate"),
        (
            |p| p.not_after = OffsetDateTime::now_utc() - Duration::from_secs(5),
            "certificate_expired",
        ),
        (
            |p| p.subject_alt_names = vec![SanType::URI("spiffe://evil/a".try_into().unwrap())],
            "certificate_unknown",
        ),
        (
            |p| {
                p.extended_key_usages.pop();
            },
            "unsupported_certificate",
        ),
    ];
    for (spoil, alert) in cases {
        let leaf = ca.sign(CLIENT, spoil);
        let (_, seen) = accept_stranger(&server, Some(leaf), &[b"istio"]).await;
        let seen = HandshakeError::from_established(&seen).expect("an alert").to_string();
        assert!(seen.contains(&format!("the alert {alert}:")), "{seen}");
    }
}

#[tokio::test]
async fn an_alias_is_trusted_and_an_empty_bundle_trusts_nothing() {
    let ca = TestCa::new();
    let svid = || ca.sign(SERVER, |_| {}).svid(SERVER);
    let old = "spiffe://old.example/ns/full/sa/client";

    let server = TlsIdentity::new(&svid(), &ca.bundles(&["cluster.local", "old.example"])).unwrap();
    let (near, far) = pair().await;
    let name = ServerName::try_from(SNI).unwrap();
    let shake = stranger::connector(Some(ca.sign(old, |_| {})), &[b"istio"]).connect(name, near);
    let (_connected, accepted) = tokio::join!(shake, accept(Replay::new(far), &server));
    assert_eq!(accepted.unwrap().1.id(), &id(old));

    let empty = Bundle { trust_domain: domain("cluster.local"), anchors: Vec::new() };
    let server = TlsIdentity::new(&svid(), &[empty]).unwrap();
    let leaf = ca.sign(CLIENT, |_| {});
    let (accepted, _) = accept_stranger(&server, Some(leaf), &[b"istio"]).await;
    assert!(refused(&accepted.err().unwrap()).contains("bundle of its trust domain is empty"));
}

#[tokio::test]
async fn a_chain_with_an_intermediate_verifies_while_two_roots_are_trusted() {
    let (root, new_root) = (TestCa::new(), TestCa::new());
    let issuer = root.sign("spiffe://cluster.local/node", |p| {
        p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        p.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        p.distinguished_name.push(DnType::OrganizationName, "intermediate");
    });
    let key = KeyPair::try_from(issuer.key.secret_der()).unwrap();
    let intermediate = TestCa { certificate: issuer.certificate, key };
    let mut svid = intermediate.sign(SERVER, |_| {}).svid(SERVER);
    svid.chain.push(intermediate.certificate.clone());

    // Both roots have the same name, as before and after a change of the CA's key.
    let mut bundles = new_root.bundles(&["cluster.local"]);
    bundles[0].anchors.push(root.certificate.clone());
    let server = TlsIdentity::new(&svid, &bundles).unwrap();
    let client = new_root.sign(CLIENT, |_| {}).svid(CLIENT);
    let client = TlsIdentity::new(&client, &bundles).unwrap();
    let (near, far) = pair().await;
    let expected = expecting(&[SERVER]);
    let (connected, accepted) =
        tokio::join!(connect(near, &client, &expected, SNI), accept(Replay::new(far), &server));
    assert_eq!(connected.unwrap().1.id(), &id(SERVER));
    assert_eq!(accepted.unwrap().1.id(), &id(CLIENT));
}

#[tokio::test]
async fn a_ca_speaks_for_its_own_trust_domain_only() {
    let (ours, partner) = (TestCa::new(), TestCa::new());
    let mut bundles = ours.bundles(&["cluster.local"]);
    bundles.extend(partner.bundles(&["partner.example"]));
    let svid = ours.sign(SERVER, |_| {}).svid(SERVER);
    let server = TlsIdentity::new(&svid, &bundles).unwrap();
    // The partner's CA signs one of our names.
    let (accepted, _) = accept_stranger(&server, Some(partner.sign(CLIENT, |_| {})), &[]).await;
    assert!(refused(&accepted.err().unwrap()).contains("is not signed by a CA that is trusted"));
}

#[test]
fn an_unsound_identity_of_our_own_is_found_before_any_connection() {
    let ca = TestCa::new();
    let bundles = ca.bundles(&["cluster.local"]);
    let error = |svid: &Svid| TlsIdentity::new(svid, &bundles).err().unwrap().to_string();
    assert!(error(&ca.sign(CLIENT, |_| {}).svid(SERVER)).contains("is spiffe://"));
    let spoilt = ca.sign(SERVER, |p| p.key_usages = Vec::new()).svid(SERVER);
    assert!(error(&spoilt).contains("key usage is missing"));
    let mut swapped = ca.sign(SERVER, |_| {});
    swapped.key = ca.sign(SERVER, |_| {}).key;
    assert!(error(&swapped.svid(SERVER)).contains("the key of"));
    let twice = ca.bundles(&["cluster.local", "cluster.local"]);
    assert!(TlsIdentity::new(&ca.sign(SERVER, |_| {}).svid(SERVER), &twice).is_err());
}

#[tokio::test]
async fn a_plaintext_server_is_told_from_a_tls_failure() {
    let client = TestCa::new().identity(CLIENT);
    let (near, mut far) = pair().await;
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let error = connect(near, &client, &expecting(&[SERVER]), SNI).await.err().unwrap();
    assert!(matches!(error, HandshakeError::Peer(_)), "{error}");
    assert!(error.to_string().contains("a server without mTLS"), "{error}");
    let (near, far) = pair().await;
    drop(far);
    let error = connect(near, &client, &expecting(&[SERVER]), SNI).await.err().unwrap();
    assert!(matches!(error, HandshakeError::Io(_)), "{error}");
}

#[tokio::test]
async fn first_bytes_are_looked_at_and_then_shaken_hands_with() {
    let ca = TestCa::new();
    let (client, server) = (ca.identity(CLIENT), ca.identity(SERVER));
    let (near, far) = pair().await;
    let expected = expecting(&[SERVER]);
    let serve = async {
        let mut far = Replay::new(far);
        let kind = first_bytes(&mut far).await.unwrap();
        assert_eq!(kind, Kind::Tls { mesh_alpn: true, sni: Some(SNI.to_owned()) });
        assert!(far.peeked().len() > 1200, "with a post-quantum key share");
        assert_eq!(first_bytes(&mut far).await.unwrap(), kind, "asked again, the same answer");
        accept(far, &server).await
    };
    let (connected, accepted) = tokio::join!(connect(near, &client, &expected, SNI), serve);
    assert!(connected.is_ok());
    assert_eq!(accepted.unwrap().1.id(), &id(CLIENT));
}

#[tokio::test]
async fn a_hello_that_comes_in_pieces_is_recognised_and_shaken_hands_with() {
    let ca = TestCa::new();
    let (client, server) = (ca.identity(CLIENT), ca.identity(SERVER));
    let (near, relay_near) = pair().await;
    let (mut relay_far, far) = pair().await;
    relay_far.set_nodelay(true).unwrap();
    // Passes the first 600 bytes one segment of 50 at a time.
    let relay = tokio::spawn(async move {
        let mut relay_near = relay_near;
        for _ in 0..12 {
            let mut piece = [0; 50];
            relay_near.read_exact(&mut piece).await.unwrap();
            relay_far.write_all(&piece).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        tokio::io::copy_bidirectional(&mut relay_near, &mut relay_far).await.ok();
    });
    let expected = expecting(&[SERVER]);
    let serve = async {
        let mut far = Replay::new(far);
        let kind = first_bytes(&mut far).await.unwrap();
        assert!(matches!(kind, Kind::Tls { mesh_alpn: true, .. }), "{kind:?}");
        accept(far, &server).await
    };
    let (connected, accepted) = tokio::join!(connect(near, &client, &expected, SNI), serve);
    assert!(connected.is_ok());
    assert_eq!(accepted.unwrap().1.id(), &id(CLIENT));
    relay.abort();
}

#[tokio::test]
async fn plaintext_is_given_back_whole() {
    for text in
        [&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], b"\x16\x03\x01\x00\x05\x02rest", b"\x16"]
    {
        let (mut near, far) = pair().await;
        let mut far = Replay::new(far);
        near.write_all(text).await.unwrap();
        near.shutdown().await.unwrap();
        assert_eq!(first_bytes(&mut far).await.unwrap(), Kind::NotTls);
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, text);
    }
    let (near, far) = pair().await;
    drop(near);
    assert_eq!(first_bytes(&mut Replay::new(far)).await.unwrap(), Kind::Closed);
}

#[tokio::test]
async fn a_timeout_while_looking_loses_nothing() {
    let (mut near, far) = tokio::io::duplex(64);
    let mut far = Replay::new(far);
    let look = Duration::from_millis(20);
    assert!(tokio::time::timeout(look, first_bytes(&mut far)).await.is_err());
    assert!(far.peeked().is_empty());
    near.write_all(b"\x16\x03\x01").await.unwrap();
    assert!(tokio::time::timeout(look, first_bytes(&mut far)).await.is_err());
    assert_eq!(far.peeked(), b"\x16\x03\x01");
    near.write_all(b"\x00\x40").await.unwrap();
    // Even a look that has no time at all keeps what it saw.
    let _ = tokio::time::timeout(Duration::ZERO, first_bytes(&mut far)).await;
    near.write_all(b" and so on").await.unwrap();
    near.shutdown().await.unwrap();
    let mut got = [0; 3];
    far.read_exact(&mut got).await.unwrap();
    let (mut stream, kept) = far.into_parts();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!([&got[..], &kept, &rest].concat(), b"\x16\x03\x01\x00\x40 and so on");
}

mod replay {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_byte_is_lost_or_doubled(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            tls_like in any::<bool>(),
            cuts in proptest::collection::vec(1usize..80, 1..12),
            reads in 1usize..64,
        ) {
            let bytes = match tls_like {
                true => [b"\x16\x03\x01\x01\x00\x01\x00\x00", &bytes[..]].concat(),
                false => bytes,
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let got = runtime.block_on(async {
                let (mut near, far) = tokio::io::duplex(37);
                let sent = bytes.clone();
                let send = async move {
                    let mut rest = &sent[..];
                    for cut in cuts.iter().cycle() {
                        if rest.is_empty() {
                            break;
                        }
                        let (piece, after) = rest.split_at(rest.len().min(*cut));
                        near.write_all(piece).await.unwrap();
                        tokio::task::yield_now().await;
                        rest = after;
                    }
                    near.shutdown().await.unwrap();
                };
                let receive = async {
                    let mut far = Replay::new(far);
                    let mut got = Vec::new();
                    let look = tokio::time::timeout(Duration::ZERO, first_bytes(&mut far)).await;
                    if look.is_err() {
                        let _ = first_bytes(&mut far).await.unwrap();
                    }
                    let mut piece = vec![0; reads];
                    loop {
                        let count = far.read(&mut piece).await.unwrap();
                        if count == 0 {
                            return got;
                        }
                        got.extend_from_slice(&piece[..count]);
                    }
                };
                tokio::join!(send, receive).1
            });
            prop_assert_eq!(got, bytes);
        }
    }
}
