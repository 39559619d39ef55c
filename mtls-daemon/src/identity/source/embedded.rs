//! The CA inside the daemon: nothing else to install, and several daemons may share its directory.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::{SourceError, SvidSource};
use crate::identity::ca::{self, Authority, CaError};
use crate::identity::{Bundle, KeyType, SpiffeId, Svid, TrustDomain};

/// Below this the operator hears of the root's end, at every start and every day.
const ROOT_ENDS_SOON: Duration = Duration::from_secs(90 * 24 * 3600);
const DAY: u64 = 24 * 3600;

/// Signs SVIDs of one trust domain with a root kept in a directory.
pub struct EmbeddedCa {
    authority: Authority,
    trust_domain: TrustDomain,
    key_type: KeyType,
    lifetime: Duration,
    warned: Warned,
}

/// When the root's end was said last, in seconds since 1970.
#[derive(Default)]
struct Warned(AtomicU64);

impl Warned {
    /// Whether it is to be said now: a daemon may run for longer than the root has left.
    fn due(&self, not_after: SystemTime, now: SystemTime) -> bool {
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let last = self.0.load(Ordering::Relaxed);
        if not_after >= now + ROOT_ENDS_SOON || seconds < last.saturating_add(DAY) {
            return false;
        }
        self.0.store(seconds, Ordering::Relaxed);
        true
    }
}

impl EmbeddedCa {
    /// Opens the CA in `directory`; the first to come makes it, with a key of
    /// this type, which SVIDs get, too. `lifetime`: how long its SVIDs are
    /// valid (cut to the root's own end). Blocking; waits at most 30 s for another daemon that is
    /// opening the same directory.
    pub fn open(
        directory: &Path,
        trust_domain: TrustDomain,
        key_type: KeyType,
        lifetime: Duration,
    ) -> Result<Self, CaError> {
        if lifetime < Duration::from_secs(1) {
            return Err(CaError::Lifetime);
        }
        let authority = ca::open_or_make(directory, &trust_domain, key_type)?;
        if authority.organization() != Some(trust_domain.as_str()) {
            tracing::warn!(
                directory = %directory.display(),
                made_for = authority.organization().unwrap_or("no trust domain"),
                %trust_domain,
                "the CA was made for another trust domain: whoever shares it can issue for both"
            );
        }
        let ca = Self { authority, trust_domain, key_type, lifetime, warned: Warned::default() };
        ca.warn(SystemTime::now());
        Ok(ca)
    }

    fn warn(&self, now: SystemTime) {
        let not_after = self.authority.not_after();
        if !self.warned.due(not_after, now) {
            return;
        }
        let end = humantime::format_rfc3339_seconds(not_after);
        if now < not_after {
            tracing::warn!(trust_domain = %self.trust_domain, %end, "the CA's root expires soon");
        } else {
            tracing::error!(trust_domain = %self.trust_domain, %end, "the CA's root has expired");
        }
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
}

impl SvidSource for EmbeddedCa {
    fn issue(&self, id: &SpiffeId) -> Result<Svid, SourceError> {
        if id.trust_domain() != self.trust_domain.as_str() {
            let (id, trust_domain) = (id.to_string(), self.trust_domain.to_string());
            return Err(CaError::ForeignTrustDomain { id, trust_domain }.into());
        }
        let now = SystemTime::now();
        // Every SVID is renewed within its life: often enough to be told.
        self.warn(now);
        Ok(self.authority.issue(id, self.key_type, self.lifetime, now)?)
    }

    fn bundle(&self) -> Result<Bundle, SourceError> {
        Ok(Bundle {
            trust_domain: self.trust_domain.clone(),
            anchors: vec![self.authority.certificate().clone()],
        })
    }

    fn name(&self) -> &'static str {
        "embedded CA"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roots_end_is_said_every_day_of_its_last_months() {
        let day = Duration::from_secs(DAY);
        let now = SystemTime::now();
        let end = now + 100 * day;
        let warned = Warned::default();
        assert!(!warned.due(end, now), "it is far off");
        assert!(warned.due(end, now + 11 * day));
        assert!(!warned.due(end, now + 11 * day + day / 2), "once a day");
        assert!(warned.due(end, now + 12 * day));
        assert!(warned.due(end, now + 101 * day), "and when it has ended");
    }
}
