//! Is the daemon ready, and what does it still wait for?

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// How often the checks are asked while somebody waits for them: nothing tells when their answer
/// changes.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// Says what is wrong now: nothing, or reasons.
type Check = dyn Fn() -> Vec<String> + Send + Sync;

/// Named conditions, all of which have to be met, and checks, none of which may find anything wrong.
/// Cheap to clone.
///
/// The daemon's log says `ready` once, as soon as it is known that nothing is awaited, and no line
/// before that has the word in it: scripts wait for it.
#[derive(Clone)]
pub struct Readiness {
    state: Arc<watch::Sender<Conditions>>,
    checks: Arc<Mutex<Vec<Arc<Check>>>>,
    started: Instant,
}

#[derive(Default)]
struct Conditions {
    awaited: BTreeSet<String>,
    announced: bool,
}

/// Something that readiness waits for. Dropped without [`Condition::met`], it stays awaited for ever:
/// a start that failed half-way is never mistaken for a finished one.
#[must_use = "readiness waits for it"]
pub struct Condition {
    name: String,
    readiness: Readiness,
    met: bool,
}

impl Readiness {
    /// The start itself is the first condition: to be met when all the others have been named.
    pub fn starting() -> (Self, Condition) {
        let (state, _) = watch::channel(Conditions::default());
        let checks = Arc::default();
        let readiness = Self { state: Arc::new(state), checks, started: Instant::now() };
        let start = readiness.condition("the start of the daemon");
        (readiness, start)
    }

    /// Waits for `name` from now on. Can be called after the daemon was ready, and makes it unready:
    /// `shutting down` at the drain, for example.
    pub fn condition(&self, name: &str) -> Condition {
        self.state.send_modify(|state| {
            state.awaited.insert(name.to_owned());
        });
        Condition { name: name.to_owned(), readiness: self.clone(), met: false }
    }

    /// Adds reasons that come and go: `check` is asked at every question, after all conditions are
    /// met too. It runs on the asking thread (here: the blocking pool), and may wait for a lock;
    /// whoever asks must not hold that one.
    pub fn check(&self, check: Box<dyn Fn() -> Vec<String> + Send + Sync>) {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::from(check));
    }

    /// What is still awaited, in alphabetical order; nothing when the daemon is ready. Asks the
    /// checks, and waits for them.
    pub fn awaited(&self) -> Vec<String> {
        let mut awaited = self.state.borrow().awaited.clone();
        // Copied: a check may take its time.
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        awaited.extend(checks.iter().flat_map(|check| check()));
        if awaited.is_empty() {
            self.announce();
        }
        awaited.into_iter().collect()
    }

    /// As [`Self::awaited`]: waits for the checks.
    pub fn is_ready(&self) -> bool {
        self.awaited().is_empty()
    }

    /// Resolves when nothing is awaited. Costs nothing while a condition is not met; then asks the
    /// checks a few times a second, until they find nothing.
    pub async fn ready(&self) {
        loop {
            // The sender lives in self, so that the wait cannot end by its loss.
            self.state.subscribe().wait_for(|state| state.awaited.is_empty()).await.ok();
            if self.ask().await.is_empty() {
                return;
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Logs every `every` what is still awaited, until nothing is. To be spawned at the start.
    pub async fn report(&self, every: Duration) {
        while tokio::time::timeout(every, self.ready()).await.is_err() {
            let waited = self.started.elapsed().as_secs();
            let awaited = self.ask().await.join(", ");
            tracing::warn!("not serving yet after {waited} s: still awaited: {awaited}");
        }
    }

    /// [`Self::awaited`] for the runtime.
    async fn ask(&self) -> Vec<String> {
        if !self.has_checks() {
            return self.awaited();
        }
        let readiness = self.clone();
        match tokio::task::spawn_blocking(move || readiness.awaited()).await {
            Ok(awaited) => awaited,
            Err(error) => vec![format!("a check that fails: {error}")],
        }
    }

    fn has_checks(&self) -> bool {
        !self.checks.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn met(&self, name: &str) {
        self.state.send_modify(|state| {
            state.awaited.remove(name);
        });
        tracing::debug!("done: {name}");
        if !self.state.borrow().awaited.is_empty() {
            return;
        }
        match tokio::runtime::Handle::try_current() {
            // A condition may be met on the runtime, or by somebody who holds what a check needs.
            Ok(runtime) if self.has_checks() => {
                let readiness = self.clone();
                runtime.spawn_blocking(move || readiness.is_ready());
            }
            _ => {
                self.is_ready();
            }
        }
    }

    fn announce(&self) {
        self.state.send_if_modified(|state| {
            if state.awaited.is_empty() && !state.announced {
                state.announced = true;
                let after = self.started.elapsed().as_millis();
                tracing::info!(after_ms = u64::try_from(after).unwrap_or(u64::MAX), "ready");
            }
            // Nobody waits for this.
            false
        });
    }
}

impl Condition {
    /// It is as it should be.
    pub fn met(mut self) {
        self.met = true;
        self.readiness.met(&self.name);
    }
}

impl Drop for Condition {
    fn drop(&mut self) {
        if !self.met {
            tracing::debug!("given up: {}", self.name);
        }
    }
}

#[cfg(test)]
#[path = "readiness_tests.rs"]
mod tests;
