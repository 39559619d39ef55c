//! Certificates between a leaf and the root: which may sign.

use super::*;

const KEY_USAGE: &[u64] = &[2, 5, 29, 15];

/// What our server makes of a client whose leaf `above` signed, and who shows that one and `others`
/// too.
async fn shown(
    root: &TestCa,
    above: &TestCa,
    others: &[&TestCa],
) -> Result<AuthenticatedPeer, HandshakeError> {
    let mut leaf = above.sign(CLIENT, |_| {});
    leaf.above.push(above.certificate.clone());
    leaf.above.extend(others.iter().map(|other| other.certificate.clone()));
    let server = root.identity(SERVER);
    let (near, far) = pair().await;
    let name = ServerName::try_from(SNI).unwrap();
    let shake = stranger::connector(Some(leaf), &[b"istio"]).connect(name, near);
    let (_connected, accepted) = tokio::join!(shake, accept(Replay::new(far), &server, None));
    accepted.map(|(_, peer, _)| peer)
}

#[tokio::test]
async fn an_intermediate_that_may_not_sign_is_refused() {
    type Spoil = (fn(&mut CertificateParams), &'static str);
    let spoilt: [Spoil; 3] = [
        (|p| p.key_usages = Vec::new(), "has no key usage"),
        (|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature], "without keyCertSign"),
        (|p| p.key_usages = vec![KeyUsagePurpose::CrlSign], "without keyCertSign"),
    ];
    let root = TestCa::new();
    for (spoil, why) in spoilt {
        let error = shown(&root, &root.intermediate(spoil), &[]).await.expect_err(why);
        assert!(refused(&error).contains(why), "{why}: {error}");
        assert!(refused(&error).contains(CLIENT), "{error}");
    }
}

#[tokio::test]
async fn an_intermediate_that_may_sign_is_accepted() {
    let root = TestCa::new();
    let allowed: [fn(&mut CertificateParams); 3] = [
        |_| {},
        |p| p.key_usages.push(KeyUsagePurpose::CrlSign),
        // An ID of its own, of any trust domain, with a path or without.
        |p| {
            let uri = "spiffe://elsewhere".try_into().unwrap();
            p.subject_alt_names = vec![SanType::URI(uri)];
        },
    ];
    for change in allowed {
        let peer = shown(&root, &root.intermediate(change), &[]).await.expect("a sound chain");
        assert_eq!(peer.id(), &id(CLIENT));
    }
}

#[tokio::test]
async fn only_those_on_the_way_to_the_root_count() {
    let root = TestCa::new();
    let idle = root.intermediate(|p| {
        p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        p.distinguished_name.push(DnType::CommonName, "idle");
    });
    let peer = shown(&root, &root.intermediate(|_| {}), &[&idle]).await.expect("a sound chain");
    assert_eq!(peer.id(), &id(CLIENT));
}

#[test]
fn a_key_usage_that_is_odd_is_refused_whatever_it_says() {
    let root = TestCa::new();
    let may_sign = || CustomExtension::from_oid_content(KEY_USAGE, vec![3, 2, 2, 4]);
    let one = root.intermediate(|p| {
        p.key_usages = Vec::new();
        p.custom_extensions.push(may_sign());
    });
    assert_eq!(svid_rules::signer(&one.certificate), Ok(()));
    let two = root.intermediate(|p| p.custom_extensions.push(may_sign()));
    assert!(svid_rules::signer(&two.certificate).unwrap_err().contains("twice"));
    let unreadable = root.intermediate(|p| {
        p.key_usages = Vec::new();
        let usage = CustomExtension::from_oid_content(KEY_USAGE, vec![4, 1, 0x80]);
        p.custom_extensions.push(usage);
    });
    let why = svid_rules::signer(&unreadable.certificate).unwrap_err();
    assert!(why.contains("(2.5.29.15) that cannot be parsed"), "{why}");
    let why = svid_rules::signer(b"rubbish").unwrap_err();
    assert!(why.starts_with("cannot be parsed"), "{why}");
}

#[test]
fn an_svid_of_our_own_has_sound_signers_only() {
    let root = TestCa::new();
    let chain = |spoil: fn(&mut CertificateParams)| {
        let above = root.intermediate(spoil);
        let mut leaf = above.sign(SERVER, |_| {});
        leaf.above.push(above.certificate.clone());
        TlsIdentity::new(&leaf.svid(SERVER), &root.bundles(&["cluster.local"]))
    };
    chain(|_| {}).expect("a sound chain");
    let error = chain(|p| p.key_usages.clear()).expect_err("no key usage").to_string();
    assert!(error.contains("has no key usage"), "{error}");
    let error = chain(|p| p.is_ca = IsCa::ExplicitNoCa).expect_err("no CA").to_string();
    assert!(error.contains("is not a CA's"), "{error}");
}

#[tokio::test]
async fn a_chain_that_is_too_long_is_not_looked_at() {
    let root = TestCa::new();
    let leaf = |above: usize| {
        let mut leaf = root.sign(CLIENT, |_| {});
        leaf.above = vec![root.certificate.clone(); above];
        leaf
    };
    let server = root.identity(SERVER);
    let (accepted, _) = accept_stranger(&server, Some(leaf(16)), &[b"istio"]).await;
    let error = accepted.expect_err("17 certificates");
    assert!(refused(&error).contains("has 17 certificates"), "{error}");
    assert!(svid::parse_svid(&leaf(16).chain()).is_err());
    assert!(svid::parse_svid(&leaf(15).chain()).is_ok());
}

#[test]
fn a_key_usage_that_is_not_critical_can_be_read_and_is_refused_by_whoever_sees_it() {
    let root = TestCa::new();
    let leaf = root.sign(SERVER, |p| {
        p.key_usages = Vec::new();
        let usage = CustomExtension::from_oid_content(KEY_USAGE, vec![3, 2, 7, 0x80]);
        p.custom_extensions.push(usage);
    });
    let facts = svid::parse_svid(&leaf.chain()).unwrap();
    assert_eq!(facts.id, id(SERVER));
    assert!(facts.warning.is_some_and(|why| why.contains("key usage is not critical")));
    let bundles = root.bundles(&["cluster.local"]);
    let error = svid::verify_svid(&leaf.chain(), &bundles, None, SystemTime::now()).unwrap_err();
    assert!(error.to_string().contains("key usage is not critical"), "{error}");
    let error = TlsIdentity::new(&leaf.svid(SERVER), &bundles).unwrap_err().to_string();
    assert!(error.contains("key usage is not critical"), "{error}");

    let sound = root.sign(SERVER, |_| {});
    assert_eq!(svid::parse_svid(&sound.chain()).unwrap().warning, None);
    let accepted = [id(SERVER)];
    let verify =
        |accepted| svid::verify_svid(&sound.chain(), &bundles, accepted, SystemTime::now());
    assert_eq!(verify(Some(&accepted)).unwrap().id, id(SERVER));
    assert!(verify(Some(&[])).is_err(), "nobody");
}
