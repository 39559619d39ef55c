//! Sessions that are resumed, and those that must not be.

use super::revoked::{Lists, identity_of};
use super::*;
use crate::identity::revocations::Rules;

/// One address that several servers answer at, one after the other.
struct Address(TcpListener);

type Met = (Result<Known, HandshakeError>, Result<Known, HandshakeError>);

#[derive(Debug)]
struct Known {
    peer: AuthenticatedPeer,
    summary: TlsSummary,
    kind: Option<rustls::HandshakeKind>,
}

impl Address {
    async fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    /// A connection with a byte each way, so that the server's last handshake bytes arrive too.
    async fn meet_as(&self, client: &TlsIdentity, server: &TlsIdentity, expected: &[&str]) -> Met {
        let expected = expecting(expected);
        let near = TcpStream::connect(self.0.local_addr().unwrap()).await.unwrap();
        let (far, _) = self.0.accept().await.unwrap();
        let connecting = async {
            let (mut stream, peer, summary) = connect(near, client, &expected, SNI).await?;
            stream.write_all(b"x").await?;
            stream.flush().await?;
            // The server may have refused us since: then it is the server that says why.
            stream.read_exact(&mut [0]).await.ok();
            Ok(Known { peer, summary, kind: stream.get_ref().1.handshake_kind() })
        };
        let accepting = async {
            let (mut stream, peer, summary) = accept(Replay::new(far), server, None).await?;
            stream.read_exact(&mut [0]).await?;
            stream.write_all(b"y").await?;
            stream.flush().await?;
            Ok(Known { peer, summary, kind: stream.get_ref().1.handshake_kind() })
        };
        let both = async { tokio::join!(connecting, accepting) };
        tokio::time::timeout(LIMIT, both).await.expect("in time")
    }

    async fn meet(&self, client: &TlsIdentity, server: &TlsIdentity) -> Met {
        self.meet_as(client, server, &[server.id().as_str()]).await
    }

    /// Whether it was resumed; both sides know each other.
    async fn resumed(&self, client: &TlsIdentity, server: &TlsIdentity) -> bool {
        let (connected, accepted) = self.meet(client, server).await;
        let (connected, accepted) = (connected.unwrap(), accepted.unwrap());
        assert_eq!((connected.peer.id(), accepted.peer.id()), (server.id(), client.id()));
        assert_eq!(connected.summary, accepted.summary);
        assert_eq!(connected.kind, accepted.kind);
        let resumed = connected.kind == Some(rustls::HandshakeKind::Resumed);
        assert_eq!(connected.summary.resumed, resumed);
        resumed
    }
}

fn keeping() -> Lists {
    let mut lists = Lists::new(Rules::default());
    lists.resumption = true;
    lists
}

#[tokio::test]
async fn a_peer_that_comes_back_is_resumed_and_known_as_before() {
    let (ca, lists, place) = (TestCa::new(), keeping(), Address::new().await);
    let (client, server) = (lists.identity(&ca, CLIENT), lists.identity(&ca, SERVER));
    let (connected, accepted) = place.meet(&client, &server).await;
    let (first, first_client) = (connected.unwrap(), accepted.unwrap());
    assert!(!first.summary.resumed);
    for _ in 0..3 {
        let (connected, accepted) = place.meet(&client, &server).await;
        let (again, client_again) = (connected.unwrap(), accepted.unwrap());
        assert_eq!(again.kind, Some(rustls::HandshakeKind::Resumed));
        assert_eq!(client_again.kind, Some(rustls::HandshakeKind::Resumed));
        assert!(again.peer.is_same(&first.peer) && client_again.peer.is_same(&first_client.peer));
        assert_eq!(client_again.peer.not_after(), first_client.peer.not_after());
        assert_eq!(again.summary.group, "X25519MLKEM768", "keys of its own");
    }
}

#[tokio::test]
async fn nothing_is_kept_where_one_side_does_not_want_it() {
    let (ca, place) = (TestCa::new(), Address::new().await);
    let (on, off) = (keeping(), Lists::new(Rules::default()));
    for (ours, theirs) in [(&on, &off), (&off, &on), (&off, &off)] {
        let (client, server) = (ours.identity(&ca, CLIENT), theirs.identity(&ca, SERVER));
        assert!(!place.resumed(&client, &server).await);
        assert!(!place.resumed(&client, &server).await);
    }
}

#[tokio::test]
async fn a_client_that_was_revoked_since_is_refused() {
    let (ca, mut ours, place) = (TestCa::new(), keeping(), Address::new().await);
    let (client, server) = (keeping().identity(&ca, CLIENT), ours.identity(&ca, SERVER));
    place.resumed(&client, &server).await;
    assert!(place.resumed(&client, &server).await);
    ours.put([identity_of(CLIENT)]);
    let (_, accepted) = place.meet(&client, &server).await;
    assert!(matches!(accepted, Err(HandshakeError::PeerRevoked(_))), "{accepted:?}");
    ours.put([]);
    assert!(!place.resumed(&client, &server).await, "its session is gone");
}

#[tokio::test]
async fn a_server_that_was_revoked_since_is_refused() {
    let (ca, mut ours, place) = (TestCa::new(), keeping(), Address::new().await);
    let (client, server) = (ours.identity(&ca, CLIENT), keeping().identity(&ca, SERVER));
    place.resumed(&client, &server).await;
    assert!(place.resumed(&client, &server).await);
    ours.put([identity_of(SERVER)]);
    let (connected, _) = place.meet(&client, &server).await;
    assert!(matches!(connected, Err(HandshakeError::PeerRevoked(_))), "{connected:?}");
}

#[tokio::test]
async fn an_svid_that_expired_since_ends_its_sessions() {
    let (ca, lists) = (TestCa::new(), keeping());
    let life = Duration::from_secs(3);
    let short = |uri: &str| {
        let end = time::OffsetDateTime::now_utc() + life;
        let mut svid = ca.sign(uri, |p| p.not_after = end).svid(uri);
        svid.not_after = end.into();
        let (checks, resumption) = (lists.checks.clone(), true);
        let settings = HandshakeSettings { checks, resumption };
        TlsIdentity::with(&svid, &ca.bundles(&["cluster.local"]), &settings).unwrap()
    };
    let (places, server, client) = (
        [Address::new().await, Address::new().await],
        lists.identity(&ca, SERVER),
        lists.identity(&ca, CLIENT),
    );
    let (short_client, short_server) = (short(CLIENT), short(SERVER));
    for _ in 0..2 {
        places[0].meet(&short_client, &server).await.1.unwrap();
        places[1].meet(&client, &short_server).await.0.unwrap();
    }
    tokio::time::sleep(life + Duration::from_secs(1)).await;
    let refused = |error: HandshakeError| {
        assert!(
            matches!(&error, HandshakeError::PeerRefused(why) if why.contains("expired")),
            "{error}"
        );
    };
    refused(places[0].meet(&short_client, &server).await.1.unwrap_err());
    refused(places[1].meet(&client, &short_server).await.0.unwrap_err());
}

#[tokio::test]
async fn sessions_go_with_the_svid_and_its_bundle() {
    let (ca, other, lists, place) = (TestCa::new(), TestCa::new(), keeping(), Address::new().await);
    let (client, server) = (lists.identity(&ca, CLIENT), lists.identity(&ca, SERVER));
    place.resumed(&client, &server).await;
    assert!(place.resumed(&client, &server).await);
    // The server's SVID is renewed: its clients show themselves again.
    let renewed = lists.identity(&ca, SERVER);
    assert!(!place.resumed(&client, &renewed).await);
    assert!(place.resumed(&client, &renewed).await);
    assert!(!place.resumed(&lists.identity(&ca, CLIENT), &renewed).await, "the client's, too");
    // The root is trusted no more. On the server:
    let settings = HandshakeSettings { checks: lists.checks.clone(), resumption: true };
    let moved = |uri: &str| {
        let svid = ca.sign(uri, |_| {}).svid(uri);
        TlsIdentity::with(&svid, &other.bundles(&["cluster.local"]), &settings).unwrap()
    };
    let (_, accepted) = place.meet(&client, &moved(SERVER)).await;
    assert!(refused(&accepted.unwrap_err()).contains("not signed by a CA"));
    // On the client:
    let (connected, _) = place.meet(&moved(CLIENT), &renewed).await;
    assert!(refused(&connected.unwrap_err()).contains("not signed by a CA"));
}

#[tokio::test]
async fn no_workload_uses_the_session_of_another() {
    let (ca, lists, place) = (TestCa::new(), keeping(), Address::new().await);
    let (client, server) = (lists.identity(&ca, CLIENT), lists.identity(&ca, SERVER));
    let other = "spiffe://cluster.local/ns/full/sa/other";
    place.resumed(&client, &server).await;
    // Another client of this node, to the same server at the same address.
    assert!(!place.resumed(&lists.identity(&ca, other), &server).await);
    // Another server at that address, which the client expects as well.
    let impostor = lists.identity(&ca, other);
    let either = [SERVER, other];
    for (server, resumed) in
        [(&server, false), (&server, true), (&impostor, false), (&impostor, true), (&server, false)]
    {
        let (connected, accepted) = place.meet_as(&client, server, &either).await;
        assert_eq!(accepted.unwrap().peer.id(), client.id());
        let connected = connected.unwrap();
        assert_eq!((connected.peer.id(), connected.summary.resumed), (server.id(), resumed));
    }
    // Whoever is expected now is not whom the session is with.
    assert!(place.resumed(&client, &server).await);
    let (connected, _) = place.meet_as(&client, &server, &[other]).await;
    assert!(refused(&connected.unwrap_err()).contains("should be"));
    assert!(place.resumed(&client, &server).await, "which stays as it was");
}

#[tokio::test]
async fn a_chain_that_was_kept_is_judged_like_one_that_is_shown() {
    let ca = TestCa::new();
    let mut lists = keeping();
    let client = lists.identity(&ca, CLIENT);
    let chain = ca.sign(SERVER, |_| {}).chain();
    let ask = |chain: &[CertificateDer<'_>], expected| {
        client.verify_again(chain, &[id(expected)]).map(|peer| peer.id().clone())
    };
    assert_eq!(ask(&chain, SERVER).unwrap(), id(SERVER));
    assert!(refused(&ask(&chain, CLIENT).unwrap_err()).contains("should be"));
    assert!(refused(&ask(&[], SERVER).unwrap_err()).contains("no certificate"));
    let strange = TestCa::new().sign(SERVER, |_| {}).chain();
    assert!(refused(&ask(&strange, SERVER).unwrap_err()).contains("not signed"));
    let past =
        ca.sign(SERVER, |p| p.not_after = OffsetDateTime::now_utc() - Duration::from_secs(1));
    assert!(refused(&ask(&past.chain(), SERVER).unwrap_err()).contains("expired"));
    let node = "spiffe://cluster.local/node/vm-1";
    assert!(refused(&ask(&ca.sign(node, |_| {}).chain(), node).unwrap_err()).contains("node's"));
    lists.put([identity_of(SERVER)]);
    let revoked = ask(&chain, SERVER).unwrap_err();
    assert!(matches!(revoked, HandshakeError::PeerRevoked(_)), "{revoked}");
}

#[test]
fn outside_of_a_handshake_nothing_is_kept_and_nothing_resumed() {
    use rustls::server::StoresServerSessions;

    use super::super::sessions::ServerSessions;
    use super::super::verify::SvidVerifier;
    let verifier = SvidVerifier::new(&TestCa::new().bundles(&["cluster.local"]), &Checks::none());
    let later = SystemTime::now() + Duration::from_secs(60);
    let sessions = ServerSessions::new(verifier.unwrap(), later);
    assert!(!sessions.put(vec![1], vec![2]), "nobody was verified");
    assert_eq!((sessions.take(&[1]), sessions.get(&[1])), (None, None));
}
