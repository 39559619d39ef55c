//! How fast one caller gets certificates: whoever stole one credential cannot fill the CA's memory of
//! what it issued, nor, once revoked, everybody's list.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// At once: more identities than a node has, renewed together.
pub const BURST: u32 = 1000;
/// From then on.
pub const PER_SECOND: f64 = 1.0;

/// Callers that are remembered before those who have not asked for long are forgotten.
const MANY: usize = 4096;

/// By caller.
#[derive(Default)]
pub struct Rates(Mutex<HashMap<String, Bucket>>);

#[derive(Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn at(self, now: Instant) -> f64 {
        let refilled = now.saturating_duration_since(self.at).as_secs_f64() * PER_SECOND;
        (self.left + refilled).min(f64::from(BURST))
    }
}

impl Rates {
    /// Whether `caller` may have one more certificate now.
    pub fn take(&self, caller: &str, now: Instant) -> bool {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MANY && !buckets.contains_key(caller) {
            // Full again is as good as never seen.
            buckets.retain(|_, bucket| bucket.at(now) < f64::from(BURST));
        }
        let full = Bucket { left: f64::from(BURST), at: now };
        let bucket = buckets.entry(caller.to_owned()).or_insert(full);
        let left = bucket.at(now);
        let granted = left >= 1.0;
        *bucket = Bucket { left: if granted { left - 1.0 } else { left }, at: now };
        granted
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_caller_gets_many_at_once_and_then_one_a_second() {
        let rates = Rates::default();
        let start = Instant::now();
        for number in 0..BURST {
            assert!(rates.take("node vm-1", start), "{number}");
        }
        assert!(!rates.take("node vm-1", start));
        assert!(rates.take("node vm-2", start), "another's are its own");
        let later = start + Duration::from_secs(2);
        let granted = [(); 3].map(|()| rates.take("node vm-1", later));
        assert_eq!(granted, [true, true, false]);
    }

    #[test]
    fn those_who_ask_no_more_are_forgotten() {
        let rates = Rates::default();
        let start = Instant::now();
        for number in 0..MANY {
            rates.take(&format!("node {number}"), start);
        }
        let later = start + Duration::from_secs(10);
        assert!(rates.take("one more", later));
        assert_eq!(rates.0.lock().unwrap().len(), 1);
    }
}
