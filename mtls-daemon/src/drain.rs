//! The end of the daemon: connections get a time to finish, and then they are ended.
//!
//! Connections live on several threads, each with a runtime of its own. They hold a [`Guard`]; the
//! main thread waits for the guards.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};

/// How long the tasks of connections that were told to end may take to write their last line.
const FAREWELL: Duration = Duration::from_secs(1);

/// What the whole daemon is told, in this order and never back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// Nothing new is accepted; what is open goes on.
    Draining,
    /// What is still open ends now.
    Closing,
}

/// Starts the drain and waits for its end. One per daemon.
pub struct Drain {
    phase: watch::Sender<Phase>,
    open: Arc<Open>,
}

/// Hears of the drain and hands out guards. Cheap to clone; for every thread and listener.
#[derive(Clone)]
pub struct Watch {
    phase: watch::Receiver<Phase>,
    open: Arc<Open>,
    group: Arc<Group>,
}

/// The drain waits for as long as this lives.
pub struct Guard {
    open: Arc<Open>,
    group: Arc<Group>,
}

/// What had to be cut at the end of the drain time: group names and how many in each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StillOpen(Vec<(String, usize)>);

struct Open {
    total: AtomicUsize,
    none_left: Notify,
    groups: Mutex<Vec<Arc<Group>>>,
}

struct Group {
    name: String,
    count: AtomicUsize,
}

/// A drain and its first watch, whose guards belong to no named group.
pub fn channel() -> (Drain, Watch) {
    let (sender, phase) = watch::channel(Phase::Serving);
    let open = Arc::new(Open {
        total: AtomicUsize::new(0),
        none_left: Notify::new(),
        groups: Mutex::default(),
    });
    let group = open.group("other connections");
    (Drain { phase: sender, open: open.clone() }, Watch { phase, open, group })
}

impl Watch {
    /// A watch whose guards are counted as `name`, for example `inbound full/server`. For a listener,
    /// not for a connection.
    #[must_use]
    pub fn named(&self, name: &str) -> Self {
        Self { group: self.open.group(name), ..self.clone() }
    }

    /// Makes the drain wait for the holder. Take it before the connection's first await.
    pub fn guard(&self) -> Guard {
        self.open.total.fetch_add(1, Ordering::AcqRel);
        self.group.count.fetch_add(1, Ordering::AcqRel);
        Guard { open: self.open.clone(), group: self.group.clone() }
    }

    /// Resolves when nothing new may be accepted any more. Cancel-safe.
    pub async fn draining(&self) {
        self.reached(Phase::Draining).await;
    }

    /// Resolves when what is still open has to end. Cancel-safe.
    pub async fn closing(&self) {
        self.reached(Phase::Closing).await;
    }

    pub fn is_draining(&self) -> bool {
        *self.phase.borrow() >= Phase::Draining
    }

    async fn reached(&self, phase: Phase) {
        // A drain that is gone without a word ends its connections, too.
        self.phase.clone().wait_for(|now| *now >= phase).await.ok();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.group.count.fetch_sub(1, Ordering::AcqRel);
        if self.open.total.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.open.none_left.notify_waiters();
        }
    }
}

impl Drain {
    /// Tells everyone to accept nothing new.
    pub fn start(&self) {
        self.phase.send_if_modified(|phase| {
            let first = *phase == Phase::Serving;
            if first {
                *phase = Phase::Draining;
            }
            first
        });
    }

    /// Tells everyone to end now.
    pub fn close(&self) {
        self.phase.send_replace(Phase::Closing);
    }

    /// Starts the drain (if nobody has) and waits for the guards. What is open after `timeout` is
    /// logged, told to end, and returned.
    ///
    /// # Errors
    /// What had to be cut.
    pub async fn drained(&self, timeout: Duration) -> Result<(), StillOpen> {
        self.start();
        if tokio::time::timeout(timeout, self.open.wait_for_none()).await.is_ok() {
            return Ok(());
        }
        let still = self.open.list();
        tracing::warn!(after = %humantime::format_duration(timeout), "ending what is open: {still}");
        self.close();
        tokio::time::timeout(FAREWELL, self.open.wait_for_none()).await.ok();
        Err(still)
    }
}

impl Open {
    fn group(&self, name: &str) -> Arc<Group> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = groups.iter().find(|group| group.name == name) {
            return group.clone();
        }
        // Listeners come and go with workloads: forget those that nobody can name any more.
        groups.retain(|group| Arc::strong_count(group) > 1);
        let group = Arc::new(Group { name: name.to_owned(), count: AtomicUsize::new(0) });
        groups.push(group.clone());
        group
    }

    async fn wait_for_none(&self) {
        loop {
            let left = self.none_left.notified();
            tokio::pin!(left);
            // Registered before the look, so that a guard dropped in between is not missed.
            left.as_mut().enable();
            if self.total.load(Ordering::Acquire) == 0 {
                return;
            }
            left.await;
        }
    }

    fn list(&self) -> StillOpen {
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = groups
            .iter()
            .map(|group| (group.name.clone(), group.count.load(Ordering::Acquire)))
            .filter(|(_, count)| *count > 0);
        StillOpen(counts.collect())
    }
}

impl fmt::Display for StillOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, count)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{count} {name}")?;
        }
        Ok(())
    }
}

/// SIGTERM and SIGINT, caught from [`Signals::new`] on.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// # Errors
    /// The handlers cannot be installed.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The next signal's name. Cancel-safe.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// How a drain ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Everything ended by itself.
    Drained,
    /// The drain time was over.
    TimedOut(StillOpen),
    /// A second signal came.
    Forced(StillOpen),
}

/// Drains after the first signal; `again` (the next signal) ends everything at once.
pub async fn until_drained(
    drain: &Drain,
    timeout: Duration,
    again: impl Future<Output = &'static str>,
) -> Ended {
    tokio::select! {
        ended = drain.drained(timeout) => match ended {
            Ok(()) => Ended::Drained,
            Err(still) => Ended::TimedOut(still),
        },
        signal = again => {
            let still = drain.open.list();
            tracing::warn!("{signal} again: ending at once what is open: {still}");
            drain.close();
            tokio::time::timeout(FAREWELL, drain.open.wait_for_none()).await.ok();
            Ended::Forced(still)
        }
    }
}

#[cfg(test)]
#[path = "drain_tests.rs"]
mod tests;
