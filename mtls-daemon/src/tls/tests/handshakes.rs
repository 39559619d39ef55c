//! What is accepted.

use super::*;

#[tokio::test]
async fn both_sides_know_each_other_and_bytes_pass() {
    let ca = TestCa::new();
    let (client, server) = (ca.identity(CLIENT), ca.identity(SERVER));
    let (near, far) = pair().await;
    let expected = expecting(&["spiffe://cluster.local/ns/x/sa/y", SERVER]);
    let (connected, accepted) = tokio::join!(
        connect(near, &client, &expected, SNI),
        accept(Replay::new(far), &server, None)
    );
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
    let (authority, _) =
        Authority::generate(&domain("cluster.local"), KeyType::default(), SystemTime::now())
            .unwrap();
    let anchors = vec![authority.certificate().clone()];
    let bundles = [Bundle { trust_domain: domain("cluster.local"), anchors }];
    let make = |uri| {
        let svid = authority
            .issue(&id(uri), KeyType::default(), Duration::from_secs(60), SystemTime::now())
            .unwrap();
        TlsIdentity::new(&svid, &bundles).unwrap()
    };
    let (client, server) = (make(CLIENT), make(SERVER));
    let (near, far) = pair().await;
    let expected = expecting(&[SERVER]);
    let (connected, accepted) = tokio::join!(
        connect(near, &client, &expected, SNI),
        accept(Replay::new(far), &server, None)
    );
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
        let (connected, accepted) = tokio::join!(shake, accept(Replay::new(far), &server, None));
        assert_eq!(accepted.unwrap().1.id(), &id(CLIENT), "{alpn:?}");
        assert_eq!(connected.unwrap().get_ref().1.alpn_protocol(), None);
    }
}

#[tokio::test]
async fn http_that_a_sidecar_announces_is_answered_by_its_plain_name() {
    let ca = TestCa::new();
    let server = ca.identity(SERVER);
    let check = async |alpn: &[&[u8]], answer: Option<&[u8]>| {
        let leaf = ca.sign(CLIENT, |_| {});
        let (near, far) = pair().await;
        let name = ServerName::try_from(SNI).unwrap();
        let shake = stranger::connector(Some(leaf), alpn).connect(name, near);
        let serve = async {
            let mut far = Replay::new(far);
            let Kind::Tls(hello) = first_bytes(&mut far).await.unwrap() else { panic!("no TLS") };
            accept(far, &server, hello.alpn.answer).await
        };
        let (connected, accepted) = tokio::join!(shake, serve);
        accepted.unwrap();
        assert_eq!(connected.unwrap().get_ref().1.alpn_protocol(), answer, "{alpn:?}");
    };
    check(&[b"istio-http/1.1", b"istio", b"http/1.1"], Some(b"http/1.1")).await;
    check(&[b"istio-h2", b"istio", b"h2"], Some(b"h2")).await;
    check(&[b"istio-http/1.0", b"istio", b"http/1.0"], None).await;
    check(&[b"istio", b"h2", b"http/1.1"], None).await;
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
    let (_connected, accepted) = tokio::join!(shake, accept(Replay::new(far), &server, None));
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
    let intermediate = root.intermediate(|_| {});
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
    let (connected, accepted) = tokio::join!(
        connect(near, &client, &expected, SNI),
        accept(Replay::new(far), &server, None)
    );
    assert_eq!(connected.unwrap().1.id(), &id(SERVER));
    assert_eq!(accepted.unwrap().1.id(), &id(CLIENT));
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
