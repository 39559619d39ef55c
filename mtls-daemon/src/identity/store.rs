//! The node's SVIDs: one per identity, shared by its workloads, renewed before they expire.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::slot::Issued;
use super::source::{Reason, SourceError, SvidSource};
use super::trust::TrustStatus;
use super::{Bundle, IdentitySlot, SpiffeId, SvidStatus, TrustDomain};
use crate::tls::{HandshakeError, HandshakeSettings, TlsIdentity};

/// How many SVIDs are asked for at a time: enough to hide a slow issuer's latency, few enough to
/// leave the blocking pool to others.
const CONCURRENT: usize = 4;

/// How long the nodes of a mesh take over asking for new SVIDs when roots change.
const RENEW_ALL: Duration = Duration::from_secs(2);

/// The longest sleep. Waiting goes by the monotonic clock and expiry by the wall clock; looking
/// now and then notices a suspended host or a corrected clock.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

type Slots = BTreeMap<SpiffeId, Arc<IdentitySlot>>;

/// All identities that this node holds.
pub struct SvidStore {
    source: Arc<dyn SvidSource>,
    aliases: Vec<TrustDomain>,
    handshakes: HandshakeSettings,
    slots: ArcSwap<Slots>,
    /// There is something new to issue, or somebody waits for it.
    wake: Arc<Notify>,
    issued_ok: AtomicU64,
    failed: [AtomicU64; Reason::ALL.len()],
}

/// Why an attempt came to nothing: for metrics, and for logs and `status`.
#[derive(Debug)]
struct Failed {
    reason: Reason,
    text: String,
}

impl Failed {
    fn invalid(text: String) -> Self {
        Self { reason: Reason::Invalid, text }
    }
}

impl From<SourceError> for Failed {
    fn from(error: SourceError) -> Self {
        Self { reason: error.reason(), text: error.to_string() }
    }
}

impl SvidStore {
    /// `aliases`: further names of the source's trust domain. Peers under them are verified against
    /// the same anchors.
    ///
    /// `handshakes`: what every SVID's connections share.
    pub fn new(
        source: Arc<dyn SvidSource>,
        aliases: Vec<TrustDomain>,
        handshakes: HandshakeSettings,
    ) -> Arc<Self> {
        Arc::new(Self {
            source,
            aliases,
            handshakes,
            slots: ArcSwap::default(),
            wake: Arc::default(),
            issued_ok: AtomicU64::new(0),
            failed: Default::default(),
        })
    }

    /// The slot of `id`; made (and its SVID asked for) when it is not there yet.
    pub fn slot(&self, id: &SpiffeId) -> Arc<IdentitySlot> {
        if let Some(slot) = self.slots.load().get(id) {
            return slot.clone();
        }
        let new = Arc::new(IdentitySlot::new(id.clone(), self.wake.clone()));
        let mut slot = new.clone();
        self.slots.rcu(|slots| {
            let mut slots = Slots::clone(slots);
            // Somebody else may have been first.
            slot = slots.entry(id.clone()).or_insert_with(|| new.clone()).clone();
            slots
        });
        self.wake.notify_one();
        slot
    }

    /// Keeps exactly `ids`; keys of the others are dropped (zeroized).
    pub fn retain(&self, ids: &BTreeSet<SpiffeId>) {
        let before = self.slots.rcu(|slots| {
            let kept = slots.iter().filter(|(id, _)| ids.contains(*id));
            kept.map(|(id, slot)| (id.clone(), slot.clone())).collect::<Slots>()
        });
        for (_, slot) in before.iter().filter(|(id, _)| !ids.contains(*id)) {
            slot.retire();
        }
        self.source.retain(ids);
    }

    /// Asks for new SVIDs for everybody, and with them the source's new bundle; what is there stays
    /// in use until then.
    pub fn renew_all(&self) {
        for slot in self.slots.load().values() {
            slot.renew(RENEW_ALL);
        }
        self.wake.notify_one();
    }

    /// The issuer was away and is back: what failed meanwhile is asked for at once.
    pub fn retry(&self) {
        for slot in self.slots.load().values() {
            slot.retry();
        }
        self.wake.notify_one();
    }

    /// Looks again at once: the source says that it has something else for these identities.
    pub fn changed(&self, ids: &BTreeSet<SpiffeId>) {
        for (_, slot) in self.slots.load().iter().filter(|(id, _)| ids.contains(*id)) {
            slot.changed();
        }
        self.wake.notify_one();
    }

    /// Asks at once for new SVIDs where the one that is there was revoked: a lost key costs its owner a
    /// moment, and an identity that is revoked itself gets none.
    pub fn renew_revoked(&self) {
        let now = SystemTime::now();
        for slot in self.slots.load().values() {
            let own = slot.current().map(|current| current.certificate().check(now));
            if matches!(own, Some(Err(HandshakeError::OwnRevoked(_)))) {
                slot.renew(Duration::ZERO);
            }
        }
        self.wake.notify_one();
    }

    /// Issues what is missing and renews at half life with jitter, until cancelled. Runs as one
    /// task on the main runtime; issuing itself runs on the blocking pool.
    pub async fn run(self: Arc<Self>) {
        let mut working: JoinSet<()> = JoinSet::new();
        loop {
            let next = self.begin_due(&mut working);
            let full = working.len() >= CONCURRENT;
            tokio::select! {
                // Every job handles its own errors; its end frees a place.
                Some(_) = working.join_next() => {}
                () = self.wake.notified() => {}
                () = tokio::time::sleep(next), if !full => {}
            }
        }
    }

    /// Every identity's state, by name; the node's own is the last.
    pub fn status(&self) -> Vec<SvidStatus> {
        let source = self.source.name();
        let slots = self.slots.load();
        slots.values().map(|slot| slot.status(source)).chain(self.source.own()).collect()
    }

    /// Whom this node's identities believe as CAs of their own trust domain.
    pub fn trust(&self) -> TrustStatus {
        let slots = self.slots.load();
        let with_svid = slots.values().filter(|slot| slot.current().is_some());
        TrustStatus::of(with_svid.map(|slot| slot.roots()), self.source.trouble())
    }

    /// Identities that cannot be used now: not issued yet, or expired.
    pub fn missing(&self) -> Vec<SpiffeId> {
        let slots = self.slots.load();
        let missing = slots.values().filter(|slot| slot.current().is_none());
        missing.map(|slot| slot.id().clone()).collect()
    }

    /// SVIDs issued since the start.
    pub fn issued_ok(&self) -> u64 {
        self.issued_ok.load(Ordering::Relaxed)
    }

    /// Attempts that failed since the start, by reason.
    pub fn failures(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL
            .into_iter()
            .zip(&self.failed)
            .map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
    }

    /// Attempts that failed since the start.
    pub fn issued_failed(&self) -> u64 {
        self.failures().map(|(_, count)| count).sum()
    }

    /// Begins as many attempts as may run, the most urgent first; how long until the next is due.
    fn begin_due(self: &Arc<Self>, working: &mut JoinSet<()>) -> Duration {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let slots = self.slots.load_full();
        let mut waiting: Vec<_> =
            slots.values().filter_map(|slot| Some((slot.due(now, wall)?, slot))).collect();
        waiting.sort_by_key(|(due, _)| *due);
        let mut next = LONGEST_SLEEP;
        for slot in slots.values() {
            slot.warn_of_expiry(wall);
        }
        self.source.warn_of_expiry(wall);
        for (due, slot) in waiting {
            if !due.wait.is_zero() {
                next = next.min(due.wait);
            } else if working.len() < CONCURRENT && slot.begin() {
                let (store, slot) = (self.clone(), slot.clone());
                working.spawn(async move { store.renew(slot).await });
            }
        }
        next
    }

    async fn renew(self: Arc<Self>, slot: Arc<IdentitySlot>) {
        let (source, aliases, id) = (self.source.clone(), self.aliases.clone(), slot.id().clone());
        let handshakes = self.handshakes.clone();
        let work = move || issue(&*source, &aliases, &handshakes, &id);
        let result = match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => Err(Failed::invalid(format!("the issuer failed: {error}"))),
        };
        let count = match &result {
            Ok(_) => &self.issued_ok,
            Err(failed) => &self.failed[failed.reason as usize],
        };
        let known = slot.current().map(|current| current.serial().to_owned());
        if let Ok(issued) = &result
            && !issued.made
            && known.as_deref() == Some(issued.identity.serial())
        {
            // What a source that makes none shows again is no news.
            slot.finish(result.map_err(|failed| failed.text));
            return;
        }
        count.fetch_add(1, Ordering::Relaxed);
        match &result {
            Ok(issued) => tracing::info!(
                identity = %slot.id(),
                serial = issued.identity.serial(),
                not_after = %humantime::format_rfc3339_seconds(issued.identity.not_after()),
                "SVID issued"
            ),
            Err(Failed { reason, text }) => tracing::error!(
                identity = %slot.id(),
                still_valid = slot.current().is_some(),
                reason = reason.as_str(),
                error = text,
                "no new SVID"
            ),
        }
        slot.finish(result.map_err(|failed| failed.text));
    }
}

/// Blocking.
fn issue(
    source: &dyn SvidSource,
    aliases: &[TrustDomain],
    handshakes: &HandshakeSettings,
    id: &SpiffeId,
) -> Result<Issued, Failed> {
    let (svid, bundle) = source.obtain(id)?;
    let roots = bundle.anchors.clone().into();
    let bundles = with_aliases(bundle, aliases);
    let identity = TlsIdentity::with(&svid, &bundles, handshakes)
        .map_err(|error| Failed::invalid(error.to_string()))?;
    if identity.not_after() <= SystemTime::now() {
        let text = "the issuer gave an SVID that has expired already".to_owned();
        return Err(Failed::invalid(text));
    }
    Ok(Issued { identity, made: source.makes(), roots })
}

fn with_aliases(bundle: Bundle, aliases: &[TrustDomain]) -> Vec<Bundle> {
    let aliases: BTreeSet<&TrustDomain> =
        aliases.iter().filter(|alias| **alias != bundle.trust_domain).collect();
    let mut bundles: Vec<Bundle> =
        aliases.into_iter().map(|alias| bundle.under_alias(alias)).collect();
    bundles.push(bundle);
    bundles
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
