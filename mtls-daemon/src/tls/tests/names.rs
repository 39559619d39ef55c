//! Servers outside the data path that are right in all but the name: of the right CA, in date, with the
//! right usages. Each with one that is right in the name as well, or it would say nothing.

use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::policy::{TlsMode, TlsSettings};
use crate::tls::authority::AuthorityClient;

const NAME: &str = "istiod.istio-system.svc";

/// `ca`'s certificate in a file.
fn roots(ca: &TestCa) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("roots.pem");
    let pem = pem::encode(&pem::Pem::new("CERTIFICATE", ca.certificate.to_vec()));
    std::fs::write(&file, pem).unwrap();
    (directory, file)
}

/// Of `uri`, and of these DNS names besides.
fn leaf(ca: &TestCa, uri: &str, names: &[&str]) -> Leaf {
    ca.sign(uri, |params| {
        let names = names.iter().map(|name| SanType::DnsName((*name).try_into().unwrap()));
        params.subject_alt_names.extend(names);
    })
}

/// What `connect` makes of a server that shows `leaf`.
async fn meet<T, E, F: Future<Output = Result<T, E>>>(
    leaf: Leaf,
    connect: impl FnOnce(TcpStream) -> F,
) -> Result<(), E> {
    let (near, far) = pair().await;
    let server = tokio::spawn(stranger::acceptor(leaf).accept(far));
    let met = tokio::time::timeout(LIMIT, connect(near)).await.expect("in time");
    server.abort();
    met.map(|_| ())
}

#[tokio::test]
async fn an_originated_connection_refuses_a_server_with_another_uri() {
    let ca = TestCa::new();
    let (_kept, file) = roots(&ca);
    let settings = TlsSettings {
        mode: TlsMode::Simple,
        client_certificate: None,
        private_key: None,
        ca_certificates: Some(file.to_str().unwrap().into()),
        ca_crl: None,
        credential_name: None,
        sni: None,
        subject_alt_names: vec![SERVER.into()],
        insecure_skip_verify: false,
    };
    let originations = Arc::new(Originations::default());
    originations.prepare(std::iter::once(&settings));
    let ask = async |leaf| {
        meet(leaf, |stream| originations.connect(stream, &settings, "server.example", false)).await
    };
    ask(leaf(&ca, SERVER, &[])).await.unwrap();
    // The name that is asked for is not the one that is expected, once others are.
    let shorter = SERVER.strip_suffix('r').unwrap();
    let longer = format!("{SERVER}2");
    for other in [CLIENT, shorter, &longer, "spiffe://other.example/ns/full/sa/server"] {
        let error = ask(leaf(&ca, other, &["server.example"])).await.unwrap_err();
        let OriginationError::WrongName { expected, found } = &error else { panic!("{error}") };
        assert!(expected == SERVER && found.contains(other), "{error}");
    }
    // Right in the name, and in nothing else.
    let error = ask(leaf(&TestCa::new(), SERVER, &[])).await.unwrap_err();
    assert!(matches!(error, OriginationError::UnknownCa { .. }), "{error}");
}

#[tokio::test]
async fn a_client_of_the_ca_refuses_a_server_without_the_ca_s_name() {
    let ca = TestCa::new();
    let client = AuthorityClient::new(std::slice::from_ref(&ca.certificate), None).unwrap();
    let ask = async |leaf| meet(leaf, |stream| client.connect(stream, NAME)).await;
    ask(leaf(&ca, SERVER, &[NAME])).await.unwrap();
    // A workload's SVID, whatever it is called: every workload of the mesh has one from this root.
    let spoken = "spiffe://cluster.local/ns/istio-system/sa/istiod";
    for (uri, names) in [
        (SERVER, &[][..]),
        (spoken, &[]),
        (SERVER, &["istiod.istio-system"]),
        (SERVER, &["istiod.istio-system.svc.cluster.local"]),
        (spoken, &["xistiod.istio-system.svc", "istio-system.svc"]),
    ] {
        let error = ask(leaf(&ca, uri, names)).await.unwrap_err();
        assert!(refused(&error).contains("not valid for name"), "{uri} {names:?}: {error}");
    }
    let error = ask(leaf(&TestCa::new(), SERVER, &[NAME])).await.unwrap_err();
    assert!(refused(&error).contains("signed by another CA of that name"), "{error}");
}

#[tokio::test]
async fn a_bundle_is_not_fetched_from_a_server_with_another_name() {
    let ca = TestCa::new();
    let (_kept, file) = roots(&ca);
    let ask =
        async |leaf| meet(leaf, |stream| web::connect(stream, "bundle.example", Some(&file))).await;
    ask(leaf(&ca, SERVER, &["bundle.example"])).await.unwrap();
    for names in [&[][..], &["other.example"], &["sub.bundle.example"], &["*.bundle.example"]] {
        let error = ask(leaf(&ca, SERVER, names)).await.unwrap_err();
        assert!(refused(&error).contains("not valid for name"), "{names:?}: {error}");
    }
    let error = ask(leaf(&TestCa::new(), SERVER, &["bundle.example"])).await.unwrap_err();
    assert!(refused(&error).contains("signed by another CA of that name"), "{error}");
}
