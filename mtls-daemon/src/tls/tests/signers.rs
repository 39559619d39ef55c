//! Certificates between a leaf and the root: which may sign.

use super::*;

const KEY_USAGE: &[u64] = &[2, 5, 29, 15];

/// What our client makes of a server whose leaf `above` signed, and who shows that one and `others`
/// too.
async fn shown(
    root: &TestCa,
    above: &TestCa,
    others: &[&TestCa],
) -> Result<AuthenticatedPeer, HandshakeError> {
    let mut svid = above.sign(SERVER, |_| {}).svid(SERVER);
    svid.chain.push(above.certificate.clone());
    svid.chain.extend(others.iter().map(|other| other.certificate.clone()));
    let server = TlsIdentity::new(&svid, &root.bundles(&["cluster.local"])).unwrap();
    let client = root.identity(CLIENT);
    let (near, far) = pair().await;
    let expected = expecting(&[SERVER]);
    let (connected, _accepted) = tokio::join!(
        connect(near, &client, &expected, SNI),
        accept(Replay::new(far), &server, None)
    );
    connected.map(|(_, peer, _)| peer)
}

#[tokio::test]
async fn an_intermediate_that_may_not_sign_is_refused() {
    type Spoil = (fn(&mut CertificateParams), &'static str);
    let spoilt: [Spoil; 2] = [
        (|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature], "without keyCertSign"),
        (|p| p.key_usages = vec![KeyUsagePurpose::CrlSign], "without keyCertSign"),
    ];
    let root = TestCa::new();
    for (spoil, why) in spoilt {
        let error = shown(&root, &root.intermediate(spoil), &[]).await.expect_err(why);
        assert!(refused(&error).contains(why), "{why}: {error}");
        assert!(refused(&error).contains(SERVER), "{error}");
    }
}

#[tokio::test]
async fn an_intermediate_that_may_sign_is_accepted() {
    let root = TestCa::new();
    let allowed: [fn(&mut CertificateParams); 3] = [
        |_| {},
        |p| p.key_usages.push(KeyUsagePurpose::CrlSign),
        // Older CAs: basic constraints alone.
        |p| p.key_usages = Vec::new(),
    ];
    for change in allowed {
        let peer = shown(&root, &root.intermediate(change), &[]).await.expect("a sound chain");
        assert_eq!(peer.id(), &id(SERVER));
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
    assert_eq!(peer.id(), &id(SERVER));
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
    assert_eq!(svid_rules::signer(&two.certificate), Err("has two key usages"));
    let unreadable = root.intermediate(|p| {
        p.key_usages = Vec::new();
        let usage = CustomExtension::from_oid_content(KEY_USAGE, vec![4, 1, 0x80]);
        p.custom_extensions.push(usage);
    });
    let why = svid_rules::signer(&unreadable.certificate);
    assert_eq!(why, Err("has a key usage that cannot be parsed"));
    assert_eq!(svid_rules::signer(b"rubbish"), Err("cannot be parsed"));
}
