//! Whether the clock can be believed: what is forgotten by a wrong one does not come back.

use std::time::{Duration, Instant, SystemTime};

/// So long it has to go right.
pub const HOUR: Duration = Duration::from_secs(3600);

/// By how much it may be put forward or back meanwhile.
const APART: Duration = Duration::from_secs(120);

/// Compares the wall clock with one that nobody sets.
#[derive(Debug, Clone, Copy)]
pub struct Steady {
    since: Instant,
    wall: SystemTime,
}

impl Steady {
    pub fn new(now: Instant, wall: SystemTime) -> Self {
        Self { since: now, wall }
    }

    /// To be asked often. True: for an hour the clock went right; then another one begins.
    pub fn for_an_hour(&mut self, now: Instant, wall: SystemTime) -> bool {
        let passed = now.saturating_duration_since(self.since);
        let expected = self.wall + passed;
        let apart = wall.duration_since(expected).unwrap_or_else(|behind| behind.duration());
        let whole = passed >= HOUR;
        if whole || apart > APART {
            *self = Self::new(now, wall);
        }
        whole && apart <= APART
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_counts_when_no_one_set_the_clock_in_it() {
        let (start, wall) = (Instant::now(), SystemTime::now());
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        let mut steady = Steady::new(start, wall);
        let mut ask = |passed, wall: SystemTime| steady.for_an_hour(start + minutes(passed), wall);
        assert!(!ask(0, wall) && !ask(59, wall + minutes(59)));
        assert!(ask(60, wall + minutes(61)), "a clock may be a little off");
        assert!(!ask(61, wall + minutes(62)), "the next hour");
        // Put back by two days in the middle of it: from then on.
        let right = wall - minutes(2 * 24 * 60);
        assert!(!ask(90, right + minutes(90)) && !ask(121, right + minutes(121)));
        assert!(!ask(149, right + minutes(149)));
        assert!(ask(150, right + minutes(150)));
        // At the very end of it.
        assert!(!ask(210, wall + minutes(210)));
    }
}
