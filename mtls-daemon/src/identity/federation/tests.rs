use std::fs;
use std::path::Path;

use serde_json::json;

use super::*;
use crate::identity::ca::Authority;
use crate::identity::source::{SourceError, SvidSource};
use crate::identity::{KeyType, SpiffeId, Svid, SvidStore};
use crate::tls::HandshakeSettings;

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn other() -> TrustDomain {
    domain("other.example")
}

fn authority(domain: &TrustDomain) -> Authority {
    Authority::generate(domain, KeyType::default(), SystemTime::now()).unwrap().0
}

/// A SPIFFE bundle document.
pub(super) fn document(authorities: &[&Authority], sequence: Option<u64>, hint: u64) -> String {
    let keys: Vec<_> = authorities
        .iter()
        .map(|ca| {
            let der = data_encoding::BASE64.encode(ca.certificate());
            json!({"kty": "EC", "use": "x509-svid", "x5c": [der]})
        })
        .collect();
    let mut document = json!({"keys": keys, "spiffe_refresh_hint": hint});
    if let Some(sequence) = sequence {
        document["spiffe_sequence"] = json!(sequence);
    }
    document.to_string()
}

fn settings(state: &Path, origin: Origin) -> Settings {
    Settings {
        domains: BTreeMap::from([(other(), origin)]),
        endpoint_ca: None,
        own: vec![domain("cluster.local")],
        state_dir: state.to_owned(),
    }
}

fn federated(settings: Settings) -> Arc<Federation> {
    Federation::new(settings, Arc::default())
}

fn one(federation: &Federation) -> FederatedStatus {
    let status = federation.status();
    assert_eq!(status.len(), 1);
    status.into_iter().next().unwrap()
}

async fn until(what: &str, federation: &Federation, is: impl Fn(&FederatedStatus) -> bool) {
    let began = std::time::Instant::now();
    while !is(&one(federation)) {
        let status = one(federation);
        assert!(began.elapsed() < Duration::from_secs(20), "did not come: {what}: {status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One identity of `ca`'s trust domain.
struct Member(Authority, TrustDomain);

impl SvidSource for Member {
    fn issue(&self, id: &SpiffeId) -> Result<Svid, SourceError> {
        let life = Duration::from_secs(3600);
        Ok(self.0.issue(id, KeyType::default(), life, SystemTime::now())?)
    }

    fn bundle(&self) -> Result<Bundle, SourceError> {
        Ok(Bundle::new(self.1.clone(), vec![self.0.certificate().clone()]))
    }

    fn name(&self) -> &'static str {
        "test"
    }
}

#[tokio::test]
async fn a_file_is_followed_and_an_older_document_refused() {
    let place = tempfile::tempdir().unwrap();
    let (state, file) = (place.path().join("state"), place.path().join("bundle.json"));
    fs::create_dir(&state).unwrap();
    let (first, second) = (authority(&other()), authority(&other()));
    let federation = federated(settings(&state, Origin::File(file.clone())));
    assert_eq!(one(&federation).authorities, 0, "never had: nothing is trusted");
    assert!(one(&federation).last_error.unwrap().contains("not there"));
    let running = tokio::spawn(federation.clone().run());
    let mut changes = federation.trust.changed();
    let write = |text: &str| {
        let beside = place.path().join(".new");
        fs::write(&beside, text).unwrap();
        fs::rename(&beside, &file).unwrap();
    };
    write(&document(&[&first], Some(3), 0));
    until("the first", &federation, |it| it.authorities == 1 && it.sequence == Some(3)).await;
    tokio::time::timeout(Duration::from_secs(5), changes.changed()).await.unwrap().unwrap();
    write(&document(&[&first, &second], Some(4), 0));
    until("the second", &federation, |it| it.authorities == 2).await;

    for (bad, why) in [
        (document(&[&first], Some(3), 0), "older document"),
        (document(&[&first], None, 0), "older document"),
        ("{".to_owned(), "JWK set"),
        ("{}".to_owned(), "keys"),
        ("nothing".to_owned(), "JWK set"),
    ] {
        write(&bad);
        let refused =
            |it: &FederatedStatus| it.last_error.as_ref().is_some_and(|e| e.contains(why));
        until(why, &federation, refused).await;
        assert_eq!(one(&federation).authorities, 2, "the last good one stays: {why}");
    }
    // As after a restart: the number is known, and the last good one is in force.
    running.abort();
    write(&document(&[&first], Some(3), 0));
    let federation = federated(settings(&state, Origin::File(file.clone())));
    assert_eq!((one(&federation).authorities, one(&federation).sequence), (2, Some(4)));
    assert!(one(&federation).last_error.unwrap().contains("older document"));
    let running = tokio::spawn(federation.clone().run());

    // No keys: nothing is trusted, not what was before.
    write(&document(&[], Some(5), 0));
    until("an empty one", &federation, |it| it.authorities == 0 && it.sequence == Some(5)).await;
    assert_eq!(one(&federation).last_error, None);
    write(&document(&[&second], Some(6), 0));
    until("another", &federation, |it| it.authorities == 1).await;
    fs::remove_file(&file).unwrap();
    until("the end", &federation, |it| it.authorities == 0 && it.last_error.is_some()).await;
    // PEM has no number, and begins anew.
    write(&pem::encode(&pem::Pem::new("CERTIFICATE", first.certificate().to_vec())));
    until("PEM", &federation, |it| it.authorities == 1).await;
    running.abort();
}

#[tokio::test]
async fn what_the_source_delivers_does_not_replace_what_is_configured() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("bundle.json");
    let (mine, theirs) = (authority(&other()), authority(&other()));
    fs::write(&file, document(&[&mine], None, 0)).unwrap();
    let federation = federated(settings(place.path(), Origin::File(file)));
    let bundle = |name: &str| Bundle::new(domain(name), vec![theirs.certificate().clone()]);
    federation.deliver(vec![
        bundle("other.example"),
        bundle("cluster.local"),
        bundle("third.example"),
    ]);
    let status = federation.status();
    let names: Vec<&str> = status.iter().map(|it| it.trust_domain.as_str()).collect();
    assert_eq!(names, ["other.example", "third.example"]);
    let published = federation.state().published.clone();
    assert_eq!(published[0].anchors, [mine.certificate().clone()]);
    federation.deliver(Vec::new());
    assert_eq!(federation.status().len(), 1);
    // One that nothing can be made of harms nobody else.
    let broken = Bundle::new(domain("broken.example"), vec![vec![0x30, 0x00].into()]);
    federation.deliver(vec![broken, bundle("third.example")]);
    assert_eq!(federation.status().len(), 2);
}

#[tokio::test]
async fn identities_follow_without_being_issued_again() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("bundle.json");
    let foreign = authority(&other());
    let handshakes = HandshakeSettings::plain();
    let trust = handshakes.checks.federated().clone();
    let federation = Federation::new(settings(place.path(), Origin::File(file.clone())), trust);
    let own = domain("cluster.local");
    let source = Arc::new(Member(authority(&own), own.clone()));
    let store = SvidStore::new(source, Vec::new(), handshakes);
    let running = tokio::spawn(store.clone().run());
    let id = SpiffeId::istio(&own, "shop", "web").unwrap();
    let identity = store.slot(&id).wait(Duration::from_secs(20)).await.unwrap();
    let peer = SpiffeId::istio(&other(), "shop", "client").unwrap();
    let life = Duration::from_secs(3600);
    let shown = foreign.issue(&peer, KeyType::default(), life, SystemTime::now()).unwrap();
    let impostor = authority(&other());
    let impostor = impostor.issue(&peer, KeyType::default(), life, SystemTime::now()).unwrap();
    let refusal = |svid: &Svid| identity.would_believe(&svid.chain).unwrap_err().to_string();

    let error = refusal(&shown);
    assert!(error.contains("bundle of its trust domain is empty"), "{error}");
    fs::write(&file, document(&[&foreign], None, 0)).unwrap();
    federation.took(&other(), origin::read_file(&file));
    let believed = identity.would_believe(&shown.chain).unwrap();
    assert_eq!(believed.id(), &peer);
    assert!(federation.trust.check_open(&believed).is_ok());
    let error = refusal(&impostor);
    assert!(error.contains("not signed by a CA"), "{error}");
    // The other domain's CA speaks for its own alone.
    let cross = foreign.issue(&id, KeyType::default(), life, SystemTime::now()).unwrap();
    assert!(refusal(&cross).contains("not signed by a CA"));

    fs::write(&file, document(&[], None, 0)).unwrap();
    federation.took(&other(), origin::read_file(&file));
    assert!(refusal(&shown).contains("is empty"));
    let ended = federation.trust.check_open(&believed).unwrap_err().to_string();
    assert!(ended.contains("no longer in the bundle"), "{ended}");
    running.abort();
}

#[tokio::test]
async fn what_is_taken_away_is_gone_although_the_disk_is_full() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("bundle.json");
    let (first, second) = (authority(&other()), authority(&other()));
    let settings = || settings(place.path(), Origin::File(file.clone()));
    fs::write(&file, document(&[&first, &second], Some(1), 0)).unwrap();
    let federation = federated(settings());
    let kept = || Kept::read(place.path(), &other()).unwrap().bundle.bundle.anchors.len();
    assert_eq!((one(&federation).authorities, kept()), (2, 2));
    // In the way of the file that is to be written.
    let block = place.path().join("federation/other.example.json.new");
    fs::create_dir(&block).unwrap();
    fs::write(&file, document(&[], Some(2), 0)).unwrap();
    federation.took(&other(), origin::read_file(&file));
    assert_eq!(one(&federation).authorities, 0);
    assert!(federation.state().published[0].anchors.is_empty(), "verifiers know");
    let said = one(&federation).last_error.unwrap();
    assert!(
        said.contains("in force and cannot be kept") && said.contains("other.example"),
        "{said}"
    );
    assert_eq!(kept(), 2);
    fs::remove_dir(&block).unwrap();
    federation.keep_again(&other());
    assert_eq!(kept(), 2, "not at every look");
    let back = Instant::now().checked_sub(kept::CONFIRM).unwrap();
    federation.state().configured.get_mut(&other()).unwrap().unkept.as_mut().unwrap().tried = back;
    federation.keep_again(&other());
    assert_eq!((kept(), one(&federation).last_error), (0, None));
}

#[test]
fn urls_and_nothing_else() {
    for good in ["https://a.example/b", "https://a.example", "https://[::1]:8443/x?y=z"] {
        let endpoint: Endpoint = good.parse().unwrap();
        assert!(endpoint.to_string().starts_with(good), "{endpoint}");
    }
    for bad in ["", "http://a.example/", "a.example", "https://", "https://u@a.example/", "/x"] {
        assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
    }
}

#[tokio::test]
async fn the_owner_says_how_often_within_reason() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("bundle.json");
    let ca = authority(&other());
    for (hint, expected) in [(0, 300), (7, 7), (1_000_000_000, 24 * 3600)] {
        fs::write(&file, document(&[&ca], None, hint)).unwrap();
        let federation = federated(settings(place.path(), Origin::File(file.clone())));
        assert_eq!(federation.refresh_after(&other()), Duration::from_secs(expected));
    }
}
