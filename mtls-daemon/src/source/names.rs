//! Names of hosts outside the mesh, resolved by the daemon in its own namespace and by its own
//! `/etc/resolv.conf` and `/etc/hosts`; never on a connection's path.
//!
//! A name that was resolved once keeps its last good answer. Addresses that a later answer leaves
//! out are remembered for a time: clients go on using them, and whoever connects to one still means
//! the service.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::mesh::names::{Answer, Answers};
use crate::policy::field::not_a_workloads;

/// For new names, before the configuration that has them is in force.
const FIRST: Duration = Duration::from_secs(3);
/// For names that have an answer.
const LATER: Duration = Duration::from_secs(10);
/// How long an address is remembered after the last answer that had it.
const REMEMBERED: Duration = Duration::from_secs(300);
/// Names that are asked for at once.
const AT_ONCE: usize = 16;
/// Addresses of one name that count.
const MOST: usize = 256;

/// One answer, or why there is none.
type Found = Result<BTreeSet<IpAddr>, String>;

/// What is known of every name in use.
#[derive(Default)]
pub struct Names {
    known: Mutex<BTreeMap<Arc<str>, Known>>,
    changed: Notify,
}

#[derive(Default)]
struct Known {
    current: BTreeSet<IpAddr>,
    /// When an answer last had it.
    seen: BTreeMap<IpAddr, Instant>,
    /// Why there is no newer answer.
    error: Option<Arc<str>>,
}

impl Known {
    fn learn(&mut self, found: Found) {
        match found {
            Ok(addresses) => {
                let now = Instant::now();
                self.seen.retain(|_, seen| now.duration_since(*seen) < REMEMBERED);
                self.seen.extend(addresses.iter().map(|address| (*address, now)));
                self.current = addresses;
                self.error = None;
            }
            // The last good answer stays.
            Err(error) => self.error = Some(error.into()),
        }
    }

    fn answer(&self) -> Answer {
        Answer {
            current: self.current.iter().copied().collect(),
            remembered: self.seen.keys().copied().collect(),
            error: self.error.clone().filter(|_| self.current.is_empty()),
        }
    }
}

impl Names {
    fn known(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Known>> {
        // A map of answers has no half-done state.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers for `wanted`; other names are forgotten. New ones are asked for now, which takes a
    /// bounded time. Blocks.
    pub fn resolve(&self, wanted: &BTreeSet<Arc<str>>) -> Answers {
        let new: Vec<Arc<str>> = {
            let mut known = self.known();
            known.retain(|name, _| wanted.contains(name));
            wanted.iter().filter(|name| !known.contains_key(*name)).cloned().collect()
        };
        let found = ask(new, FIRST);
        let mut known = self.known();
        for (name, found) in found {
            known.entry(name).or_default().learn(found);
        }
        known.iter().map(|(name, known)| (name.clone(), known.answer())).collect()
    }

    /// Asks again for every name, each `interval`, and tells when an answer changed.
    pub async fn follow(self: Arc<Self>, interval: Duration) {
        loop {
            tokio::time::sleep(interval).await;
            let names = self.clone();
            let asked = tokio::task::spawn_blocking(move || names.ask_again()).await;
            if let Err(error) = asked {
                tracing::error!(%error, "resolving names failed");
            }
        }
    }

    fn ask_again(&self) {
        let wanted: Vec<Arc<str>> = self.known().keys().cloned().collect();
        let mut changed = false;
        for (name, found) in ask(wanted, LATER) {
            // Forgotten meanwhile: nobody wants to know.
            if let Some(known) = self.known().get_mut(&name) {
                let before = known.answer();
                let failing = known.error.is_some();
                known.learn(found);
                if let (Some(error), false) = (&known.error, failing) {
                    tracing::warn!(%name, %error, "cannot be resolved; the last answer stays");
                }
                changed |= known.answer() != before;
            }
        }
        if changed {
            self.changed.notify_one();
        }
    }

    /// Ends after the next change of an answer.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// Asks for all of `names`, at most [`AT_ONCE`] at a time, for as long as `limit`. The resolver
/// cannot be interrupted: threads that still wait end by themselves.
fn ask(names: Vec<Arc<str>>, limit: Duration) -> Vec<(Arc<str>, Found)> {
    let end = Instant::now() + limit;
    let mut missing: BTreeSet<Arc<str>> = names.iter().cloned().collect();
    let threads = names.len().min(AT_ONCE);
    let queue = Arc::new(Mutex::new(VecDeque::from(names)));
    let (sender, answers) = mpsc::channel();
    for _ in 0..threads {
        let (queue, sender) = (queue.clone(), sender.clone());
        let work = move || {
            let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            while let Some(name) = next() {
                let found = look_up(&name);
                if Instant::now() > end || sender.send((name, found)).is_err() {
                    return;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("mtls-names".into()).spawn(work) {
            tracing::warn!(%error, "no thread to resolve names with");
        }
    }
    drop(sender);
    let mut found = Vec::new();
    while let Ok((name, answer)) =
        answers.recv_timeout(end.saturating_duration_since(Instant::now()))
    {
        missing.remove(&name);
        found.push((name, answer));
    }
    let late = || Err(format!("no answer within {limit:?}"));
    found.extend(missing.into_iter().map(|name| (name, late())));
    found
}

fn look_up(name: &str) -> Found {
    let answer = (name, 0).to_socket_addrs().map_err(|error| error.to_string())?;
    let addresses = answer.map(|address| address.ip().to_canonical());
    // What means another host everywhere, or none, is no address of a service.
    let sound: BTreeSet<IpAddr> =
        addresses.filter(|address| not_a_workloads(*address).is_none()).take(MOST).collect();
    if sound.is_empty() {
        return Err("the answer holds no address that can be used".to_owned());
    }
    Ok(sound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_good_answer_stays_and_addresses_are_remembered() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let mut known = Known::default();
        known.learn(Err("no such name".into()));
        assert_eq!(known.answer().error.as_deref(), Some("no such name"));
        known.learn(Ok([address("192.0.2.1"), address("192.0.2.2")].into()));
        known.learn(Ok([address("192.0.2.3")].into()));
        let answer = known.answer();
        assert_eq!(answer.current, [address("192.0.2.3")]);
        assert_eq!(answer.remembered.len(), 3);
        known.learn(Err("timed out".into()));
        assert_eq!(known.answer(), answer);
    }

    #[test]
    fn what_cannot_be_resolved_says_so_in_bounded_time() {
        let begun = Instant::now();
        let name: Arc<str> = "no-such-name.invalid".into();
        let answers = Names::default().resolve(&[name.clone()].into());
        assert!(answers[&name].error.is_some(), "{answers:?}");
        // This machine itself is no host outside the mesh.
        let local: Arc<str> = "localhost".into();
        assert!(Names::default().resolve(&[local.clone()].into())[&local].error.is_some());
        assert!(begun.elapsed() < FIRST * 3, "{:?}", begun.elapsed());
    }
}
