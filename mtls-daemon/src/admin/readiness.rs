//! Is the daemon ready, and what does it still wait for?

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// Named conditions, all of which have to be met. Cheap to clone.
///
/// The daemon's log says `ready` once, when the last one is met, and no line before that has the
/// word in it: scripts wait for it.
#[derive(Clone)]
pub struct Readiness {
    state: Arc<watch::Sender<Conditions>>,
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
        let readiness = Self { state: Arc::new(state), started: Instant::now() };
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

    /// What is still awaited, in alphabetical order; nothing when the daemon is ready.
    pub fn awaited(&self) -> Vec<String> {
        self.state.borrow().awaited.iter().cloned().collect()
    }

    pub fn is_ready(&self) -> bool {
        self.state.borrow().awaited.is_empty()
    }

    /// Resolves when nothing is awaited.
    pub async fn ready(&self) {
        // The sender lives in self, so that the wait cannot end by its loss.
        self.state.subscribe().wait_for(|state| state.awaited.is_empty()).await.ok();
    }

    /// Logs every `every` what is still awaited, until nothing is.
    pub async fn report(&self, every: Duration) {
        while tokio::time::timeout(every, self.ready()).await.is_err() {
            let waited = self.started.elapsed().as_secs();
            tracing::warn!(
                "not serving yet after {waited} s: still awaited: {}",
                self.awaited().join(", ")
            );
        }
    }

    fn met(&self, name: &str) {
        self.state.send_modify(|state| {
            state.awaited.remove(name);
            if state.awaited.is_empty() && !state.announced {
                state.announced = true;
                let after = self.started.elapsed().as_millis();
                tracing::info!(after_ms = u64::try_from(after).unwrap_or(u64::MAX), "ready");
            } else {
                tracing::debug!("done: {name}");
            }
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
mod tests {
    use super::*;

    #[test]
    fn every_condition_has_to_be_met() {
        let (readiness, start) = Readiness::starting();
        let kernel = readiness.condition("kernel programs");
        let svids = readiness.condition("SVID of full/server");
        start.met();
        assert_eq!(readiness.awaited(), ["SVID of full/server", "kernel programs"]);
        kernel.met();
        assert!(!readiness.is_ready());
        svids.met();
        assert!(readiness.is_ready());
        assert!(readiness.awaited().is_empty());
    }

    #[test]
    fn nothing_is_ready_before_the_start_is_over() {
        let (readiness, start) = Readiness::starting();
        readiness.condition("kernel programs").met();
        assert!(!readiness.is_ready());
        start.met();
        assert!(readiness.is_ready());
    }

    #[test]
    fn a_condition_that_was_given_up_is_awaited_for_ever() {
        let (readiness, start) = Readiness::starting();
        drop(readiness.condition("kernel programs"));
        start.met();
        assert_eq!(readiness.awaited(), ["kernel programs"]);
    }

    #[test]
    fn a_drain_makes_it_unready_again() {
        let (readiness, start) = Readiness::starting();
        start.met();
        let _drain = readiness.condition("shutting down");
        assert_eq!(readiness.awaited(), ["shutting down"]);
    }

    #[tokio::test]
    async fn whoever_waits_is_woken() {
        let (readiness, start) = Readiness::starting();
        let waiting = readiness.clone();
        let waiter = tokio::spawn(async move { waiting.ready().await });
        start.met();
        tokio::time::timeout(Duration::from_secs(30), waiter)
            .await
            .expect("woken")
            .expect("no panic");
    }
}
