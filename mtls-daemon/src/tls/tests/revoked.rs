//! What is asked of revocation lists, in both directions of a handshake and after it.

use super::*;
use crate::identity::Revocations;
use crate::identity::revocations::{Compiled, RevocationList, Revoked, Rules, What};

pub struct Lists {
    list: Arc<Revocations>,
    pub checks: Arc<Checks>,
    number: u64,
    pub resumption: bool,
}

impl Lists {
    pub fn new(rules: Rules) -> Self {
        let list = Revocations::new(rules);
        Self { checks: Checks::new(list.clone()), list, number: 0, resumption: false }
    }

    pub fn put(&mut self, what: impl IntoIterator<Item = What>) {
        self.put_of(what, SystemTime::now());
    }

    fn put_of(&mut self, what: impl IntoIterator<Item = What>, issued: SystemTime) {
        self.number += 1;
        let issued = issued.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let entry = |what| Revoked { what, at: 1, reason: "leaked".into(), until: None };
        let entries = what.into_iter().map(entry).collect();
        let (trust_domain, number) = ("cluster.local".to_owned(), self.number);
        let list = RevocationList { trust_domain, number, issued, entries };
        self.list.replace(Compiled::new(&list, &domain("cluster.local")));
    }

    pub fn identity(&self, ca: &TestCa, uri: &str) -> Arc<TlsIdentity> {
        let svid = ca.sign(uri, |_| {}).svid(uri);
        let bundles = ca.bundles(&["cluster.local", "old.example"]);
        let (checks, resumption) = (self.checks.clone(), self.resumption);
        TlsIdentity::with(&svid, &bundles, &HandshakeSettings { checks, resumption }).unwrap()
    }
}

pub fn identity_of(uri: &str) -> What {
    What::Identity(uri.to_owned())
}

type Both = (Result<AuthenticatedPeer, HandshakeError>, Result<AuthenticatedPeer, HandshakeError>);

/// What the client makes of the server, and the server of the client.
async fn shake(client: &TlsIdentity, server: &TlsIdentity) -> Both {
    let (near, far) = pair().await;
    let expected: Arc<[SpiffeId]> = [server.id().clone()].into();
    let both = async {
        tokio::join!(connect(near, client, &expected, SNI), accept(Replay::new(far), server, None))
    };
    let (connected, accepted) = tokio::time::timeout(LIMIT, both).await.expect("in time");
    (connected.map(|it| it.1), accepted.map(|it| it.1))
}

#[tokio::test]
async fn each_side_refuses_what_its_list_names_and_nobody_else() {
    let ca = TestCa::new();
    let (mut ours, theirs) = (Lists::new(Rules::default()), Lists::new(Rules::default()));
    let server = ours.identity(&ca, SERVER);
    let other = "spiffe://cluster.local/ns/full/sa/other";
    let (client, sound) = (theirs.identity(&ca, CLIENT), theirs.identity(&ca, other));
    let (connected, accepted) = shake(&client, &server).await;
    assert_eq!((connected.unwrap().id(), accepted.unwrap().id()), (&id(SERVER), &id(CLIENT)));

    ours.put([identity_of(CLIENT)]);
    let (_, accepted) = shake(&client, &server).await;
    let error = accepted.unwrap_err();
    assert!(
        matches!(&error, HandshakeError::PeerRevoked(why) if why.ends_with("leaked")),
        "{error}"
    );
    assert!(shake(&sound, &server).await.1.is_ok());
    // The other way round: a server that is revoked for its clients.
    let (connected, accepted) = shake(&server, &client).await;
    assert!(matches!(connected, Err(HandshakeError::PeerRevoked(_))), "{connected:?}");
    let alert = accepted.unwrap_err().to_string();
    assert!(alert.contains("certificate_revoked"), "it is told: {alert}");

    ours.put([]);
    assert!(shake(&client, &server).await.1.is_ok(), "taken back");
}

#[tokio::test]
async fn a_serial_is_one_certificate_and_not_the_identity() {
    let ca = TestCa::new();
    let mut lists = Lists::new(Rules::default());
    let server = lists.identity(&ca, SERVER);
    let numbered = |serial: &[u8]| {
        let leaf =
            ca.sign(CLIENT, |p| p.serial_number = Some(rcgen::SerialNumber::from_slice(serial)));
        TlsIdentity::new(&leaf.svid(CLIENT), &ca.bundles(&["cluster.local"])).unwrap()
    };
    lists.put([What::Certificate { serial: "5f:01".into(), issuer: None }]);
    let (_, accepted) = shake(&numbered(&[0x5f, 1]), &server).await;
    assert!(accepted.unwrap_err().to_string().contains("serial 5f01"));
    assert!(shake(&numbered(&[0x5f, 2]), &server).await.1.is_ok());
}

#[tokio::test]
async fn our_own_revoked_certificate_is_not_used() {
    let ca = TestCa::new();
    let mut lists = Lists::new(Rules::default());
    let (client, server) = (lists.identity(&ca, CLIENT), ca.identity(SERVER));
    assert!(shake(&client, &server).await.0.is_ok());
    lists.put([identity_of(CLIENT)]);
    for (own, other) in [(&client, &server), (&server, &client)] {
        let (connected, accepted) = shake(own, other).await;
        let ours = if own.id() == client.id() { connected } else { accepted };
        assert!(matches!(ours, Err(HandshakeError::OwnRevoked(_))), "{ours:?}");
    }
}

#[tokio::test]
async fn an_identity_is_revoked_under_every_name_of_its_trust_domain() {
    let ca = TestCa::new();
    let aliases = vec![domain("old.example")];
    let mut lists = Lists::new(Rules { required: true, aliases, ..Rules::default() });
    lists.put([]);
    let server = lists.identity(&ca, SERVER);
    let old = ca.sign("spiffe://old.example/ns/full/sa/client", |_| {});
    let old = old.svid("spiffe://old.example/ns/full/sa/client");
    let client = TlsIdentity::new(&old, &ca.bundles(&["cluster.local"])).unwrap();
    assert!(shake(&client, &server).await.1.is_ok(), "and the list speaks of it");
    lists.put([identity_of(CLIENT)]);
    let (_, accepted) = shake(&client, &server).await;
    assert!(matches!(accepted, Err(HandshakeError::PeerRevoked(_))), "{accepted:?}");
}

#[tokio::test]
async fn where_a_list_is_required_its_absence_and_its_age_refuse_everybody() {
    let ca = TestCa::new();
    let client = ca.identity(CLIENT);
    let most = Duration::from_secs(60);
    for rules in [
        Rules { required: true, ..Rules::default() },
        Rules { max_age: Some(most), ..Rules::default() },
    ] {
        let mut lists = Lists::new(rules.clone());
        let server = lists.identity(&ca, SERVER);
        let (_, accepted) = shake(&client, &server).await;
        assert!(matches!(accepted, Err(HandshakeError::RevocationUnknown(_))), "{accepted:?}");
        lists.put([]);
        assert!(shake(&client, &server).await.1.is_ok());
        lists.put_of([], SystemTime::now() - most * 2);
        let (_, accepted) = shake(&client, &server).await;
        assert_eq!(accepted.is_ok(), rules.max_age.is_none(), "an absent CA breaks nothing else");
    }
}

#[tokio::test]
async fn an_open_connection_can_be_judged_again_and_notes_when_that_is_due() {
    let ca = TestCa::new();
    let most = Duration::from_secs(60);
    let mut lists = Lists::new(Rules { max_age: Some(most), ..Rules::default() });
    lists.put([]);
    let (client, server) = (lists.identity(&ca, CLIENT), lists.identity(&ca, SERVER));
    let peer = shake(&client, &server).await.1.unwrap();
    let mut changed = lists.checks.changed();
    let now = SystemTime::now();
    server.certificate().check_with(&peer, now).unwrap();

    lists.put([identity_of(CLIENT)]);
    assert!(changed.has_changed().unwrap());
    let error = server.certificate().check_with(&peer, now).unwrap_err();
    assert!(matches!(error, HandshakeError::PeerRevoked(_)), "{error}");
    lists.put([identity_of(SERVER)]);
    let error = server.certificate().check_with(&peer, now).unwrap_err();
    assert!(matches!(error, HandshakeError::OwnRevoked(_)), "{error}");

    lists.put([]);
    changed.mark_unchanged();
    lists.checks.tick(now);
    assert!(!changed.has_changed().unwrap());
    lists.checks.tick(now + most * 2);
    assert!(changed.has_changed().unwrap(), "time made it too old");
    let error = server.certificate().check_with(&peer, now + most * 2).unwrap_err();
    assert!(matches!(error, HandshakeError::RevocationUnknown(_)), "{error}");
}
