//! What a connection's two halves tell each other: the guard, which sees bytes, and the exchange,
//! which sees requests.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::refusal::Refusal;

/// Bytes on the client's side. Readable also when the connection is cut short.
#[derive(Debug, Default)]
pub struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Traffic {
    pub(super) fn sent(&self, count: usize) {
        self.sent.fetch_add(count as u64, Relaxed);
    }

    pub(super) fn received(&self, count: usize) {
        self.received.fetch_add(count as u64, Relaxed);
    }

    /// From the client.
    pub fn total_sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Back to it.
    pub fn total_received(&self) -> u64 {
        self.received.load(Relaxed)
    }
}

/// What follows a request that asked for another protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Http,
    Tunnel,
}

/// Both ends belong to one thread; the library that owns the stream wants it to be `Send`.
pub struct Link {
    pub traffic: Arc<Traffic>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    refusal: Option<Refusal>,
    /// Requests answered, in order, and what the last one turned the connection into.
    answered: u64,
    turn: Option<Turn>,
    waker: Option<Waker>,
}

impl Link {
    pub fn new(traffic: Arc<Traffic>) -> Self {
        Self { traffic, state: Mutex::default() }
    }

    pub fn refuse(&self, refusal: Refusal) {
        self.state().refusal = Some(refusal);
    }

    pub fn refusal(&self) -> Option<Refusal> {
        self.state().refusal
    }

    /// The next request in order is answered.
    pub fn answer(&self, turn: Turn) {
        let mut state = self.state();
        state.answered += 1;
        state.turn = Some(turn);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// Ready once `request`, counted from 1, is answered.
    pub fn poll_turn(&self, cx: &mut Context<'_>, request: u64) -> Poll<Turn> {
        let mut state = self.state();
        if state.answered >= request
            && let Some(turn) = state.turn
        {
            return Poll::Ready(turn);
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
