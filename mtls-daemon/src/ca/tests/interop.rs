//! What Istio's clients see, and what other tools say to it.

use std::process::Command;

use clap::ValueEnum;
use rcgen::{BasicConstraints, DistinguishedName, DnType, IsCa, Issuer, KeyUsagePurpose};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::*;
use crate::identity::ca::Authority;
use crate::identity::ca::sealed::SealingKey;

fn names(der: &CertificateDer<'_>) -> Vec<String> {
    let (_, leaf) = X509Certificate::from_der(der).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    names
        .value
        .general_names
        .iter()
        .map(|name| match name {
            GeneralName::URI(uri) => (*uri).to_owned(),
            other => format!("{other:?}"),
        })
        .collect()
}

/// `openssl verify` of an answer against its own last element.
fn openssl_verifies(folder: &Path, answer: &[String]) {
    let [leaf, between @ .., roots] = answer else { panic!("leaf and roots") };
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let mut openssl = Command::new("openssl");
    openssl.args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"]);
    openssl.arg(write("roots.pem", roots));
    if !between.is_empty() {
        openssl.arg("-untrusted").arg(write("between.pem", &between.concat()));
    }
    let output = openssl.arg(write("leaf.pem", leaf)).output().expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_token_brings_the_callers_own_identity_whatever_the_csr_says() {
    let running = Running::start().await;
    let key = KeyPair::generate().unwrap();
    let asked = Asked { csr: csr(&key), seconds: 7200, impersonated: None };
    let answer = running.ask(Some("shop/web"), asked).await.unwrap();
    assert_eq!(answer.len(), 2, "leaf, roots");
    let leaf = &certificates(&answer[0])[0];
    assert_eq!(names(leaf), ["spiffe://cluster.local/ns/shop/sa/web"]);
    let (_, parsed) = X509Certificate::from_der(leaf).unwrap();
    let validity = parsed.validity();
    let life = validity.not_after.timestamp() - validity.not_before.timestamp();
    assert_eq!(life, 7200 + 120, "back-dated by two minutes");
    assert_eq!(parsed.subject().iter().count(), 0);
    openssl_verifies(running.place.path(), &answer);

    let line = running.audit.last();
    assert_eq!(line["verdict"], "issued");
    assert_eq!(line["identity"], "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(line["caller"], "service account shop/web (pod web-0)");
    assert_eq!(line["serial"].as_str().unwrap(), parsed.serial.to_str_radix(16));
    assert!(line["lifetime_seconds"].as_u64().is_some_and(|it| (7199..=7200).contains(&it)));
}

#[tokio::test]
async fn a_node_proxy_gets_what_runs_on_its_node_and_nothing_else() {
    let running = Running::start().await;
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    let answer = running.ask(Some("mtls/agent"), Asked::of(web)).await.unwrap();
    assert_eq!(names(&certificates(&answer[0])[0]), [web]);
    for other in ["spiffe://cluster.local/ns/shop/sa/db", "spiffe://other/ns/shop/sa/web"] {
        refused(running.ask(Some("mtls/agent"), Asked::of(other)).await);
        assert_eq!(running.audit.last()["verdict"], "refused");
        assert_eq!(running.audit.last()["identity"], other);
    }
    refused(running.ask(Some("shop/web"), Asked::of(web)).await);
    let reason = running.audit.last()["reason"].to_string();
    assert!(reason.contains("no trusted node account"), "{reason}");
}

#[tokio::test]
async fn a_lifetime_is_bounded_and_has_a_default() {
    let running = Running::start().await;
    for (seconds, lives) in [(0, 24 * 3600), (-5, 24 * 3600), (60, 60)] {
        let asked = Asked { seconds, ..Asked::own() };
        running.ask(Some("shop/web"), asked).await.unwrap();
        let line = running.audit.last();
        assert!(
            line["lifetime_seconds"].as_i64().is_some_and(|it| (lives - 1..=lives).contains(&it))
        );
    }
    let asked = Asked { seconds: 91 * 24 * 3600, ..Asked::own() };
    let status = running.ask(Some("shop/web"), asked).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let line = running.audit.last();
    assert_eq!(line["identity"], "spiffe://cluster.local/ns/shop/sa/web", "{line}");
}

#[tokio::test]
async fn roots_of_every_kind_sign_chains_that_openssl_verifies() {
    for &key_type in KeyType::value_variants() {
        let place = tempfile::tempdir().unwrap();
        let settings = Settings { key_type, ..settings(place.path()) };
        let running = Running::with(place, settings).await;
        let answer = running.ask(Some("shop/web"), Asked::own()).await.unwrap();
        openssl_verifies(running.place.path(), &answer);
    }
}

/// An offline root of RSA, and a directory of `cacerts` below it.
fn cacerts(folder: &Path, chain_has_all: bool) {
    std::fs::create_dir(folder).unwrap();
    let (_, root_pem) = {
        let (authority, pem) =
            Authority::generate(&domain(), KeyType::EcdsaP384, SystemTime::now()).unwrap();
        std::fs::write(folder.join("root.key"), authority.key_pem().as_bytes()).unwrap();
        (authority, pem)
    };
    let root_key =
        KeyPair::from_pem(&std::fs::read_to_string(folder.join("root.key")).unwrap()).unwrap();
    let root = CertificateDer::from_pem_slice(root_pem.as_bytes()).unwrap();
    let issuer = Issuer::from_ca_cert_der(&root, &root_key).unwrap();
    let key = KeyType::Rsa2048.generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Intermediate CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    let own = params.signed_by(&key, &issuer).unwrap().pem();
    let chain = if chain_has_all { format!("{own}{root_pem}") } else { own.clone() };
    for (name, text) in [
        ("ca-cert.pem", own),
        ("ca-key.pem", key.serialize_pem()),
        ("cert-chain.pem", chain),
        ("root-cert.pem", root_pem),
    ] {
        std::fs::write(folder.join(name), text).unwrap();
    }
}

#[tokio::test]
async fn a_plugged_in_intermediate_shows_its_chain() {
    for chain_has_all in [false, true] {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("cacerts");
        cacerts(&folder, chain_has_all);
        let settings = Settings { plugged_in: Some(folder.clone()), ..settings(place.path()) };
        let running = Running::with(place, settings).await;
        let answer = running.ask(Some("shop/web"), Asked::own()).await.unwrap();
        assert_eq!(answer.len(), 3, "leaf, intermediate, root");
        let own = std::fs::read_to_string(folder.join("ca-cert.pem")).unwrap();
        assert_eq!(certificates(&answer[1]), certificates(&own));
        let root = std::fs::read_to_string(folder.join("root-cert.pem")).unwrap();
        assert_eq!(certificates(&answer[2]), certificates(&root));
        openssl_verifies(running.place.path(), &answer);
        // What `ca root show` prints, as long as that is what signs.
        let place = &running.place;
        let shown = place.path().join("ca").join(roots::PLUGGED_IN);
        assert_eq!(certificates(&std::fs::read_to_string(&shown).unwrap()), certificates(&root));
        let prepared = roots::prepare(
            running.ca.directory(),
            &domain(),
            KeyType::default(),
            None,
            SystemTime::now(),
        );
        assert!(prepared.is_err());
        let own = super::settings(place.path());
        Ca::open(own, Audit::to(Lines::default()), SystemTime::now()).unwrap();
        assert!(!shown.exists());
    }
}

#[test]
fn a_plugged_in_chain_that_leads_nowhere_is_refused_at_the_start() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("cacerts");
    cacerts(&folder, false);
    let (_, stranger) =
        Authority::generate(&domain(), KeyType::default(), SystemTime::now()).unwrap();
    std::fs::write(folder.join("root-cert.pem"), stranger).unwrap();
    let settings = Settings { plugged_in: Some(folder), ..settings(place.path()) };
    let opened = Ca::open(settings, Audit::to(Lines::default()), SystemTime::now());
    let error = opened.err().expect("must be refused").to_string();
    assert!(error.contains("not trusted"), "{error}");
}

#[test]
fn a_sealed_root_opens_again_with_its_file() {
    use std::os::unix::fs::PermissionsExt;
    let place = tempfile::tempdir().unwrap();
    let kek = place.path().join("kek");
    std::fs::write(&kek, [9; 32]).unwrap();
    std::fs::set_permissions(&kek, std::fs::Permissions::from_mode(0o600)).unwrap();
    let open = |sealing| {
        let settings = Settings { sealing, ..settings(place.path()) };
        Ca::open(settings, Audit::to(Lines::default()), SystemTime::now())
    };
    let first = open(Some(SealingKey::read(&kek).unwrap())).unwrap().signing().anchors.clone();
    let again = open(Some(SealingKey::read(&kek).unwrap())).unwrap().signing().anchors.clone();
    assert_eq!(first, again);
    assert!(open(None).is_err());
}
