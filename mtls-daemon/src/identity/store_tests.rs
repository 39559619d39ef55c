use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, mpsc};

use super::*;
use crate::identity::KeyType;
use crate::identity::ca::Authority;
use crate::identity::source::SourceError;
use crate::identity::{Svid, TrustDomain};

const SOON: Duration = Duration::from_secs(10);

/// A source whose lifetime and faults a test sets while it runs.
struct Source {
    authority: Authority,
    lifetime: Mutex<Duration>,
    /// By how much the clock is ahead when the next one is made.
    ahead: Mutex<Duration>,
    broken: AtomicBool,
    /// In the order in which they were asked for.
    asked: mpsc::Sender<SpiffeId>,
}

impl SvidSource for Source {
    fn issue(&self, id: &SpiffeId) -> Result<Svid, SourceError> {
        self.asked.send(id.clone()).ok();
        if self.broken.load(Ordering::SeqCst) {
            return Err(SourceError::Other("the CA is on holiday".to_owned()));
        }
        let lifetime = *self.lifetime.lock().unwrap();
        let now = SystemTime::now() + std::mem::take(&mut *self.ahead.lock().unwrap());
        Ok(self.authority.issue(id, KeyType::default(), lifetime, now)?)
    }

    fn bundle(&self) -> Result<Bundle, SourceError> {
        let anchors = vec![self.authority.certificate().clone()];
        Ok(Bundle { trust_domain: domain(), anchors })
    }

    fn name(&self) -> &'static str {
        "test"
    }
}

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::istio(&domain(), "foo", account).unwrap()
}

fn source(lifetime: Duration) -> (Arc<Source>, mpsc::Receiver<SpiffeId>) {
    let (authority, _) =
        Authority::generate(&domain(), KeyType::default(), SystemTime::now()).unwrap();
    let (asked, order) = mpsc::channel();
    let (lifetime, ahead) = (Mutex::new(lifetime), Mutex::default());
    let broken = AtomicBool::new(false);
    (Arc::new(Source { authority, lifetime, ahead, broken, asked }), order)
}

/// Waits for a condition, with a deadline.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "did not come: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_svid_comes_without_being_waited_for_twice() {
    let (source, _order) = source(Duration::from_secs(3600));
    let store = SvidStore::new(source, Vec::new(), HandshakeSettings::plain());
    let slot = store.slot(&id("web"));
    assert!(slot.current().is_none());
    assert_eq!(store.missing(), [id("web")]);
    assert!(slot.wait(Duration::from_millis(20)).await.is_none(), "nobody runs the store");
    let running = tokio::spawn(store.clone().run());
    let svid = slot.wait(SOON).await.expect("an SVID");
    assert_eq!(svid.id(), &id("web"));
    assert!(Arc::ptr_eq(&slot, &store.slot(&id("web"))), "one slot per identity");
    // One that is asked for while the store already sleeps.
    assert!(store.slot(&id("late")).wait(SOON).await.is_some());
    assert_eq!((store.issued_ok(), store.issued_failed()), (2, 0));
    assert!(store.missing().is_empty());
    running.abort();
}

#[tokio::test]
async fn rotation_replaces_the_svid_in_place_at_about_half_life() {
    let (source, _order) = source(Duration::from_secs(4));
    let store = SvidStore::new(source, Vec::new(), HandshakeSettings::plain());
    let slot = store.slot(&id("web"));
    let running = tokio::spawn(store.clone().run());
    let first = slot.wait(SOON).await.unwrap();
    let began = Instant::now();
    until("a second SVID", || {
        slot.current().expect("never without one").serial() != first.serial()
    })
    .await;
    let took = began.elapsed();
    assert!(took > Duration::from_secs(1) && took < Duration::from_millis(3500), "{took:?}");
    running.abort();
}

#[tokio::test]
async fn an_svid_from_when_the_clock_was_ahead_is_replaced() {
    let (source, _order) = source(Duration::from_secs(24 * 3600));
    *source.ahead.lock().unwrap() = Duration::from_secs(3600);
    let store = SvidStore::new(source, Vec::new(), HandshakeSettings::plain());
    let slot = store.slot(&id("web"));
    let running = tokio::spawn(store.clone().run());
    assert!(slot.wait(SOON).await.is_some());
    until("one that peers believe", || {
        slot.current().is_some_and(|svid| svid.not_before() <= SystemTime::now())
    })
    .await;
    assert_eq!(store.issued_ok(), 2, "and no more than that");
    running.abort();
}

#[tokio::test]
async fn a_failing_issuer_keeps_the_valid_svid_until_it_expires() {
    let (source, _order) = source(Duration::from_secs(3));
    let store = SvidStore::new(source.clone(), Vec::new(), HandshakeSettings::plain());
    let slot = store.slot(&id("web"));
    let running = tokio::spawn(store.clone().run());
    let first = slot.wait(SOON).await.unwrap();
    source.broken.store(true, Ordering::SeqCst);
    until("a failed renewal", || store.issued_failed() > 0).await;
    let status = &store.status()[0];
    assert_eq!(status.serial.as_deref(), Some(first.serial()));
    assert_eq!(status.last_error.as_deref(), Some("the CA is on holiday"));
    assert!(status.next_renewal.is_some());
    until("the expiry", || slot.current().is_none()).await;
    assert!(first.not_after() <= SystemTime::now());
    let expired = &store.status()[0];
    assert_eq!(expired.serial.as_deref(), Some(first.serial()), "it says which one has ended");
    assert!(expired.not_after.is_some_and(|end| end <= SystemTime::now()));
    // And it recovers by itself.
    *source.lifetime.lock().unwrap() = Duration::from_secs(3600);
    source.broken.store(false, Ordering::SeqCst);
    assert!(slot.wait(SOON).await.is_some());
    assert_eq!(store.status()[0].last_error, None);
    running.abort();
}

#[tokio::test]
async fn an_identity_that_nobody_wants_loses_its_key() {
    let (source, _order) = source(Duration::from_secs(3600));
    let store = SvidStore::new(source, Vec::new(), HandshakeSettings::plain());
    let (web, db) = (store.slot(&id("web")), store.slot(&id("db")));
    let running = tokio::spawn(store.clone().run());
    let key = Arc::downgrade(&web.wait(SOON).await.unwrap());
    db.wait(SOON).await.unwrap();
    store.retain(&BTreeSet::from([id("db")]));
    assert!(web.current().is_none());
    assert!(web.wait(SOON).await.is_none());
    assert!(key.upgrade().is_none(), "the last copy of the key is gone");
    assert!(db.current().is_some());
    assert_eq!(store.status().len(), 1);
    // Wanted again: a new slot with a new SVID.
    assert!(store.slot(&id("web")).wait(SOON).await.is_some());
    running.abort();
}

/// A slot in a long backoff, as an issuer leaves it that is broken for minutes.
fn broken(store: &Arc<SvidStore>, source: &Source, account: &str) -> Arc<IdentitySlot> {
    source.broken.store(true, Ordering::SeqCst);
    let slot = store.slot(&id(account));
    for _ in 0..12 {
        assert!(slot.begin());
        slot.finish(Err("the CA is on holiday".to_owned()));
    }
    source.broken.store(false, Ordering::SeqCst);
    slot
}

#[tokio::test]
async fn a_connection_that_waits_is_not_left_to_a_backoff() {
    let (source, _order) = source(Duration::from_secs(3600));
    let store = SvidStore::new(source.clone(), Vec::new(), HandshakeSettings::plain());
    let (web, idle) = (broken(&store, &source, "web"), broken(&store, &source, "idle"));
    assert_eq!(web.last_error().as_deref(), Some("the CA is on holiday"));
    let running = tokio::spawn(store.clone().run());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(web.current().is_none(), "nobody wants it");
    assert!(web.wait(SOON).await.is_some());
    assert!(idle.current().is_none());
    store.retry();
    until("the other", || idle.current().is_some()).await;
    running.abort();
}

#[test]
fn what_is_missing_goes_before_what_is_only_due() {
    let (source, order) = source(Duration::from_secs(4));
    let store = SvidStore::new(source.clone(), Vec::new(), HandshakeSettings::plain());
    let renewing = store.slot(&id("aaa"));
    let issued = issue(&*source, &[], &HandshakeSettings::plain(), &id("aaa")).unwrap();
    order.recv().unwrap();
    assert!(renewing.begin());
    assert!(!renewing.begin(), "one attempt at a time");
    renewing.finish(Ok(issued));
    let due = || renewing.due(Instant::now(), SystemTime::now()).unwrap().wait.is_zero();
    let deadline = Instant::now() + SOON;
    while !due() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(renewing.current().is_some(), "due, and still valid");
    for account in ["b", "c", "d", "e"] {
        store.slot(&id(account));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut working = JoinSet::new();
        store.begin_due(&mut working);
        assert_eq!(working.len(), CONCURRENT);
        while working.join_next().await.is_some() {}
    });
    let first: BTreeSet<SpiffeId> = order.try_iter().collect();
    assert!(!first.contains(&id("aaa")), "{first:?}");
}

#[test]
fn status_is_json_with_dates() {
    let (source, _order) = source(Duration::from_secs(3600));
    let store = SvidStore::new(source.clone(), vec![domain()], HandshakeSettings::plain());
    let slot = store.slot(&id("web"));
    let empty = serde_json::to_value(store.status()).unwrap();
    assert_eq!(empty[0]["serial"], serde_json::Value::Null);
    assert!(slot.begin());
    let issued = issue(&*source, &store.aliases, &HandshakeSettings::plain(), &id("web"));
    slot.finish(issued.map_err(|failed| failed.text));
    let full = serde_json::to_value(store.status()).unwrap();
    assert_eq!(full[0]["id"], "spiffe://cluster.local/ns/foo/sa/web");
    assert_eq!(full[0]["source"], "test");
    let not_after = full[0]["not_after"].as_str().unwrap();
    assert!(humantime::parse_rfc3339(not_after).is_ok(), "{not_after}");
}

#[test]
fn an_alias_has_the_same_anchors_and_no_name_comes_twice() {
    let (source, _order) = source(Duration::from_secs(3600));
    let alias = TrustDomain::parse("old.example").unwrap();
    let aliases = [alias.clone(), domain(), alias.clone()];
    let bundles = with_aliases(source.bundle().unwrap(), &aliases);
    let names: Vec<&str> = bundles.iter().map(|bundle| bundle.trust_domain.as_str()).collect();
    assert_eq!(names, ["old.example", "cluster.local"]);
    assert_eq!(bundles[0].anchors, bundles[1].anchors);
}
