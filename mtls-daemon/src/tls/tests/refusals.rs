//! Certificates that are wrong in one thing each: the rule that is named, and the alert.

use super::*;

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
        "(2.5.29.15) that cannot be parsed",
    ),
    (
        |p| {
            // A sound key usage with a byte after it, which another parser might read.
            p.key_usages = Vec::new();
            let content = vec![3, 2, 7, 0x80, 0];
            let mut usage = CustomExtension::from_oid_content(&[2, 5, 29, 15], content);
            usage.set_criticality(true);
            p.custom_extensions.push(usage);
        },
        "(2.5.29.15) with bytes after its end",
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
async fn each_trust_domain_is_verified_against_its_own_bundle() {
    let (ours, partner) = (TestCa::new(), TestCa::new());
    let mut bundles = ours.bundles(&["cluster.local"]);
    bundles.extend(partner.bundles(&["partner.example"]));
    let theirs = "spiffe://partner.example/ns/a/sa/b";
    let judge = |ca: &TestCa, uri: &str, bundles: &[Bundle]| {
        let leaf = ca.sign(uri, |_| {});
        svid::verify_svid(&leaf.chain(), bundles, None, SystemTime::now()).map(|facts| facts.id)
    };
    assert_eq!(judge(&ours, CLIENT, &bundles).unwrap(), id(CLIENT));
    assert_eq!(judge(&partner, theirs, &bundles).unwrap(), id(theirs));
    for (ca, uri) in [(&ours, theirs), (&partner, CLIENT)] {
        let error = judge(ca, uri, &bundles).unwrap_err().to_string();
        assert!(error.contains("is not signed by a CA that is trusted"), "{error}");
    }
    // Taken away, and emptied: the other domain is as it was.
    let error = judge(&partner, theirs, &bundles[..1]).unwrap_err().to_string();
    assert!(error.contains("not trusted here"), "{error}");
    bundles[1].anchors.clear();
    let error = judge(&partner, theirs, &bundles).unwrap_err().to_string();
    assert!(error.contains("bundle of its trust domain is empty"), "{error}");
    assert_eq!(judge(&ours, CLIENT, &bundles).unwrap(), id(CLIENT));
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
