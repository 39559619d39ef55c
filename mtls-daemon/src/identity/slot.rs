//! One identity's SVID: read by every connection, replaced by rotation.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use rustls_pki_types::CertificateDer;
use serde::{Serialize, Serializer};
use tokio::sync::{Notify, watch};

use super::SpiffeId;
use crate::tls::TlsIdentity;

/// Istio's agent renews at half of the lifetime, give or take a hundredth of it, so that nodes
/// started together do not ask together for ever.
const RENEW_AT: f64 = 0.5;
const JITTER: f64 = 0.01;

/// Renewal begins at half of the lifetime: with this share of it left it has failed again and again.
const LATE: u32 = 4;
/// The shortest time after which what others made is looked at again without a word from them.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

const FIRST_RETRY: Duration = Duration::from_millis(500);
/// As ztunnel: long enough for a broken issuer to breathe, far below any SVID's half life.
const LONGEST_RETRY: Duration = Duration::from_secs(150);
/// At least so long between two attempts, however many connections wait for the SVID.
const IN_DEMAND: Duration = Duration::from_secs(1);

/// One identity's current SVID, replaced in place by rotation. Read without a lock.
pub struct IdentitySlot {
    id: SpiffeId,
    current: ArcSwapOption<TlsIdentity>,
    renewal: Mutex<Renewal>,
    changed: watch::Sender<()>,
    /// Connections that cannot go on without an SVID.
    waiters: AtomicUsize,
    /// Wakes the store.
    wake: Arc<Notify>,
}

/// What rotation alone reads and writes.
struct Renewal {
    next: Next,
    /// When the latest attempt began.
    begun: Option<Instant>,
    failures: u32,
    last_error: Option<String>,
    /// The attempt under way may have missed what the next one has to bring.
    again: bool,
    /// Of the SVID that is there: from when it came to its end, if it was made for us. What is in its
    /// certificate begins earlier, by what issuers allow for clocks that are behind.
    life: Duration,
    /// The SVID that is there was made for us: asking brings another.
    made: bool,
    /// What has been said of the end of the SVID that is there.
    warned: Warned,
    /// The CAs of the own trust domain that came with it.
    roots: Roots,
    /// Nobody wants this identity any more: what is still being issued for it is thrown away.
    retired: bool,
}

pub(super) type Roots = Arc<[CertificateDer<'static>]>;

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Warned {
    #[default]
    Nothing,
    EndsSoon,
    HasEnded,
}

impl Warned {
    /// What has to be said, after this, of an SVID with `left` of its `life`.
    pub(super) fn next(self, left: Duration, life: Duration) -> Option<Self> {
        let due = match left {
            Duration::ZERO => Self::HasEnded,
            left if left < life / LATE => Self::EndsSoon,
            _ => return None,
        };
        (self < due).then_some(due)
    }
}

#[derive(Clone, Copy)]
enum Next {
    /// An attempt is under way.
    Working,
    /// A valid SVID, to be renewed at this time of the wall clock.
    RenewAt(SystemTime),
    /// After a failure, or at once for a new slot.
    RetryAt(Instant),
}

/// What an attempt brings.
pub(super) struct Issued {
    pub(super) identity: Arc<TlsIdentity>,
    /// Asking again brings another.
    pub(super) made: bool,
    /// The CAs of the own trust domain.
    pub(super) roots: Roots,
}

/// How urgent a slot's next attempt is. Sorts the most urgent first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Due {
    /// Zero: now.
    pub(super) wait: Duration,
    /// No connection waits for it.
    idle: bool,
    /// A workload without an SVID cannot talk; one that renews has half a lifetime.
    has_svid: bool,
    expires: Option<SystemTime>,
}

/// One identity as `status` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct SvidStatus {
    pub id: SpiffeId,
    /// Lower-case hex. None, as issuer and times: there was no SVID yet. One that has expired is told.
    pub serial: Option<String>,
    /// Distinguished name.
    pub issuer: Option<String>,
    #[serde(serialize_with = "rfc3339")]
    pub not_before: Option<SystemTime>,
    #[serde(serialize_with = "rfc3339")]
    pub not_after: Option<SystemTime>,
    /// When the next attempt is made. None: it is under way.
    #[serde(serialize_with = "rfc3339")]
    pub next_renewal: Option<SystemTime>,
    /// Of the latest attempt, if that failed.
    pub last_error: Option<String>,
    /// Where SVIDs come from.
    pub source: &'static str,
}

impl IdentitySlot {
    pub(super) fn new(id: SpiffeId, wake: Arc<Notify>) -> Self {
        let renewal = Renewal {
            next: Next::RetryAt(Instant::now()),
            begun: None,
            failures: 0,
            last_error: None,
            again: false,
            life: Duration::ZERO,
            made: false,
            warned: Warned::Nothing,
            roots: Arc::default(),
            retired: false,
        };
        Self {
            id,
            current: ArcSwapOption::empty(),
            renewal: Mutex::new(renewal),
            changed: watch::Sender::new(()),
            waiters: AtomicUsize::new(0),
            wake,
        }
    }

    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// None until the first SVID has been issued, and after the last one has expired.
    pub fn current(&self) -> Option<Arc<TlsIdentity>> {
        let current = self.current.load();
        let current = current.as_ref()?;
        (current.not_after() > SystemTime::now()).then(|| current.clone())
    }

    /// As [`Self::current`], waiting at most `timeout` for the first SVID, which is asked for before
    /// what nobody waits for. None at once if the store no longer keeps this identity.
    pub async fn wait(&self, timeout: Duration) -> Option<Arc<TlsIdentity>> {
        let mut changed = self.changed.subscribe();
        if let Some(current) = self.current() {
            return Some(current);
        }
        let _waiter = Waiter::of(self);
        let issued = async {
            loop {
                if let Some(current) = self.current() {
                    return Some(current);
                }
                if self.renewal().retired || changed.changed().await.is_err() {
                    return None;
                }
            }
        };
        tokio::time::timeout(timeout, issued).await.ok().flatten()
    }

    /// Of the latest attempt, if that failed.
    pub fn last_error(&self) -> Option<String> {
        self.renewal().last_error.clone()
    }

    /// Somebody waits: what a broken issuer is spared is cut short.
    fn hurry(&self) {
        let mut renewal = self.renewal();
        if let Next::RetryAt(at) = renewal.next {
            let now = Instant::now();
            let may = renewal.begun.map_or(now, |begun| now.max(begun + IN_DEMAND));
            renewal.next = Next::RetryAt(at.min(may));
        }
        drop(renewal);
        self.wake.notify_one();
    }

    /// None: an attempt is under way.
    pub(super) fn due(&self, now: Instant, wall: SystemTime) -> Option<Due> {
        let current = self.current();
        let begins = current.as_ref().map(|current| current.not_before());
        let renewal = self.renewal();
        let wait = match renewal.next {
            Next::Working => return None,
            // Made while the clock was ahead: every peer refuses it until then.
            Next::RenewAt(_) if renewal.made && begins.is_some_and(|begins| begins > wall) => {
                let may = renewal.begun.map_or(now, |begun| begun + IN_DEMAND);
                may.saturating_duration_since(now)
            }
            Next::RenewAt(at) => at.duration_since(wall).unwrap_or_default(),
            Next::RetryAt(at) => at.saturating_duration_since(now),
        };
        drop(renewal);
        let expires = current.map(|current| current.not_after());
        let idle = self.waiters.load(Ordering::Relaxed) == 0;
        Some(Due { wait, idle, has_svid: expires.is_some(), expires })
    }

    /// Takes the next attempt. False: somebody else has.
    pub(super) fn begin(&self) -> bool {
        let mut renewal = self.renewal();
        let free = !matches!(renewal.next, Next::Working) && !renewal.retired;
        if free {
            renewal.next = Next::Working;
            renewal.begun = Some(Instant::now());
        }
        free
    }

    /// Asks for a new SVID although this one is good: within `soon`, not all slots together.
    pub(super) fn renew(&self, soon: Duration) {
        let mut renewal = self.renewal();
        let soon = Instant::now() + soon.mul_f64(fastrand::f64());
        match renewal.next {
            Next::Working => renewal.again = true,
            // After failures that may be a long time.
            Next::RetryAt(at) => renewal.next = Next::RetryAt(at.min(soon)),
            Next::RenewAt(_) => renewal.next = Next::RetryAt(soon),
        }
    }

    /// The issuer is back: what failed is asked for at once.
    pub(super) fn retry(&self) {
        let mut renewal = self.renewal();
        if let Next::RetryAt(at) = renewal.next {
            renewal.next = Next::RetryAt(at.min(Instant::now()));
        }
    }

    /// The source has something else: asked for at once, whatever was waited for.
    pub(super) fn changed(&self) {
        let mut renewal = self.renewal();
        match renewal.next {
            Next::Working => renewal.again = true,
            Next::RetryAt(_) | Next::RenewAt(_) => renewal.next = Next::RetryAt(Instant::now()),
        }
    }

    /// A failure keeps the SVID that is there.
    pub(super) fn finish(&self, result: Result<Issued, String>) {
        let mut renewal = self.renewal();
        if renewal.retired {
            return;
        }
        let again = std::mem::take(&mut renewal.again);
        match result {
            Ok(issued) => {
                let (now, svid) = (SystemTime::now(), &issued.identity);
                let begin = if issued.made { now } else { svid.not_before() };
                renewal.made = issued.made;
                renewal.life = svid.not_after().duration_since(begin).unwrap_or_default();
                renewal.next = match again {
                    false => Next::RenewAt(renewal_time(&issued, now)),
                    true => Next::RetryAt(Instant::now()),
                };
                renewal.failures = 0;
                renewal.last_error = None;
                renewal.warned = Warned::Nothing;
                renewal.roots = issued.roots;
                // Under the lock: `retire` must not come in between and be undone.
                self.current.store(Some(issued.identity));
            }
            Err(error) => {
                let not_after = self.current().map(|current| current.not_after());
                let left = not_after.and_then(|it| it.duration_since(SystemTime::now()).ok());
                let most = match self.waiters.load(Ordering::Relaxed) {
                    0 => longest_retry(left),
                    _ => longest_retry(left).min(IN_DEMAND),
                };
                let retry = retry_after(renewal.failures, most);
                let wait = if again { Duration::ZERO } else { retry.wait };
                renewal.next = Next::RetryAt(Instant::now() + wait);
                renewal.failures = retry.failures;
                renewal.last_error = Some(error);
            }
        }
        drop(renewal);
        self.changed.send_replace(());
    }

    /// Drops the key, for holders of this slot too.
    pub(super) fn retire(&self) {
        let mut renewal = self.renewal();
        renewal.retired = true;
        self.current.store(None);
        drop(renewal);
        self.changed.send_replace(());
    }

    /// Says once that an SVID nears its end without a successor, and once that it has come to it.
    pub(super) fn warn_of_expiry(&self, now: SystemTime) {
        let current = self.current.load();
        let Some(svid) = current.as_ref() else { return };
        let left = svid.not_after().duration_since(now).unwrap_or_default();
        let mut renewal = self.renewal();
        let Some(due) = renewal.warned.next(left, renewal.life) else { return };
        if renewal.retired {
            return;
        }
        renewal.warned = due;
        let error = renewal.last_error.as_deref().unwrap_or("no attempt has failed");
        let (identity, serial) = (&self.id, svid.serial());
        if due == Warned::HasEnded {
            tracing::error!(
                %identity, serial, error,
                "the SVID has expired: connections as this identity are refused until there is a new one"
            );
        } else {
            let left_s = left.as_secs();
            tracing::warn!(%identity, serial, left_s, error, "the SVID expires soon, and there is no new one");
        }
    }

    pub(super) fn status(&self, source: &'static str) -> SvidStatus {
        let (next, last_error) = {
            let renewal = self.renewal();
            (renewal.next, renewal.last_error.clone())
        };
        let current = self.current.load();
        let current = current.as_ref();
        SvidStatus {
            id: self.id.clone(),
            serial: current.map(|svid| svid.serial().to_owned()),
            issuer: current.map(|svid| svid.issuer().to_owned()),
            not_before: current.map(|svid| svid.not_before()),
            not_after: current.map(|svid| svid.not_after()),
            next_renewal: match next {
                Next::Working => None,
                Next::RenewAt(at) => Some(at),
                Next::RetryAt(at) => {
                    Some(SystemTime::now() + at.saturating_duration_since(Instant::now()))
                }
            },
            last_error,
            source,
        }
    }

    /// What the SVID that is there is verified against.
    pub(super) fn roots(&self) -> Roots {
        self.renewal().roots.clone()
    }

    fn renewal(&self) -> MutexGuard<'_, Renewal> {
        // Nothing panics while it is held, and every state it can be left in is a valid one.
        self.renewal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counted for as long as it is there.
struct Waiter<'a>(&'a IdentitySlot);

impl<'a> Waiter<'a> {
    fn of(slot: &'a IdentitySlot) -> Self {
        slot.waiters.fetch_add(1, Ordering::Relaxed);
        slot.hurry();
        Self(slot)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiters.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for IdentitySlot {
    /// Never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentitySlot")
            .field("id", &self.id)
            .field("current", &self.current())
            .finish_non_exhaustive()
    }
}

/// Half of what is left of a fresh SVID, with jitter.
pub(super) fn half_life(not_after: SystemTime, now: SystemTime) -> SystemTime {
    let left = not_after.duration_since(now).unwrap_or_default();
    now + left.mul_f64(RENEW_AT + JITTER * (2.0 * fastrand::f64() - 1.0))
}

/// One that does not become a new one by asking has less left each time: that is not followed down to
/// nothing.
fn renewal_time(issued: &Issued, now: SystemTime) -> SystemTime {
    let not_after = issued.identity.not_after();
    let half = half_life(not_after, now);
    if issued.made { half } else { half.max(now + LOOK_AGAIN).min(not_after.max(now)) }
}

/// What follows a failure.
pub(super) struct Retry {
    pub(super) wait: Duration,
    /// To be given with the next one.
    pub(super) failures: u32,
}

/// Doubles with every failure, up to `most`; a tenth of jitter keeps nodes apart. A wait that is cut
/// short is no step towards longer ones.
pub(super) fn retry_after(failures: u32, most: Duration) -> Retry {
    let whole = FIRST_RETRY.saturating_mul(1 << failures.min(16)).min(LONGEST_RETRY);
    let wait = whole.min(most).mul_f64(1.0 - 0.1 * fastrand::f64());
    let failures = if whole <= most { failures.saturating_add(1) } else { failures };
    Retry { wait, failures }
}

/// At most a quarter of what is left of the SVID; without one there is nothing to be saved.
pub(super) fn longest_retry(left: Option<Duration>) -> Duration {
    left.map_or(LONGEST_RETRY, |left| (left / 4).clamp(FIRST_RETRY, LONGEST_RETRY))
}

fn rfc3339<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(&humantime::format_rfc3339_seconds(*time)),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
#[path = "slot_tests.rs"]
mod tests;
