//! The CA inside the daemon: nothing else to install, and several daemons may share its directory.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{SourceError, SvidSource};
use crate::identity::ca::{self, Authority, CaError};
use crate::identity::{Bundle, KeyType, SpiffeId, Svid, TrustDomain};

/// Below this the operator hears of the root's end at every start.
const ROOT_ENDS_SOON: Duration = Duration::from_secs(90 * 24 * 3600);

/// Signs SVIDs of one trust domain with a root kept in a directory.
pub struct EmbeddedCa {
    authority: Authority,
    trust_domain: TrustDomain,
    key_type: KeyType,
    lifetime: Duration,
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
        if authority.not_after() < SystemTime::now() + ROOT_ENDS_SOON {
            let end = humantime::format_rfc3339_seconds(authority.not_after());
            tracing::warn!(directory = %directory.display(), %end, "the CA's root expires soon");
        }
        Ok(Self { authority, trust_domain, key_type, lifetime })
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
        Ok(self.authority.issue(id, self.key_type, self.lifetime, SystemTime::now())?)
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
