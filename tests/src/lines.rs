//! What a process prints, collected line by line while it runs.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::wait::patience;

/// Lines of one stream, growing until it ends.
#[derive(Clone, Default)]
pub struct Lines(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    /// Collects `stream` on a thread of its own until it ends.
    pub fn of(stream: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let writer = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                let Ok(line) = line else { break };
                writer.lock().lines.push(line);
                writer.0.changed.notify_all();
            }
            writer.lock().ended = true;
            writer.0.changed.notify_all();
        });
        lines
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many lines there are: a mark for [`Lines::find_after`].
    pub fn len(&self) -> usize {
        self.lock().lines.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn all(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    /// Waits for the first line from number `mark` on for which `pick` has an answer.
    ///
    /// # Errors
    /// When `limit` passes or the stream ends first; the text holds the lines that were there.
    pub fn find_after<T>(
        &self,
        mark: usize,
        limit: Duration,
        what: &str,
        mut pick: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let limit = patience(limit);
        let deadline = Instant::now() + limit;
        let mut next = mark;
        let mut state = self.lock();
        loop {
            while let Some(line) = state.lines.get(next) {
                if let Some(found) = pick(line) {
                    return Ok(found);
                }
                next += 1;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.ended {
                let seen = state.lines.get(mark..).unwrap_or_default().join("\n  ");
                let why = if state.ended { "the stream ended" } else { "time is up" };
                bail!("no line that is {what} ({why}, limit {limit:?}); lines:\n  {seen}");
            }
            state =
                self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// [`Lines::find_after`] over lines that are JSON; others are passed over.
    ///
    /// # Errors
    /// As [`Lines::find_after`].
    pub fn find_json(
        &self,
        mark: usize,
        limit: Duration,
        what: &str,
        mut is: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        self.find_after(mark, limit, what, |line| {
            serde_json::from_str::<Value>(line).ok().filter(|value| is(value))
        })
    }

    /// The lines from `mark` on that are JSON.
    pub fn json_after(&self, mark: usize) -> Vec<Value> {
        let state = self.lock();
        let lines = state.lines.get(mark..).unwrap_or_default();
        lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}
