//! Where SVIDs come from, chosen by configuration.

mod denial;
pub mod embedded;
pub mod files;
pub mod istio_ca;
pub mod spiffe;

use std::collections::BTreeSet;
use std::time::SystemTime;

use super::ca::CaError;
use super::{Bundle, SpiffeId, Svid, SvidStatus};

/// Makes SVIDs. Blocking: called off the data path.
pub trait SvidSource: Send + Sync + 'static {
    /// A new SVID (new key) for `id`.
    fn issue(&self, id: &SpiffeId) -> Result<Svid, SourceError>;
    /// The trust domain's current bundle.
    fn bundle(&self) -> Result<Bundle, SourceError>;
    /// Both, from one moment: what `id` shows, and what its own trust domain is verified against.
    fn obtain(&self, id: &SpiffeId) -> Result<(Svid, Bundle), SourceError> {
        let svid = self.issue(id)?;
        // After it: a CA server's answer brings the bundle as well.
        Ok((svid, self.bundle()?))
    }
    /// Whether asking brings a new SVID. What only hands out what others made tells of changes, and is
    /// looked at again before the end all the same.
    fn makes(&self) -> bool {
        true
    }
    /// Identities other than these are not wanted any more.
    fn retain(&self, _ids: &BTreeSet<SpiffeId>) {}
    /// An SVID beside those of workloads: the node's own, which the CA knows it by.
    fn own(&self) -> Option<SvidStatus> {
        None
    }
    /// Says that such a one nears its end.
    fn warn_of_expiry(&self, _now: SystemTime) {}
    /// What is wrong with what the source has to keep.
    fn trouble(&self) -> Option<String> {
        None
    }
    /// As `status` prints it.
    fn name(&self) -> &'static str;
}

/// Why no SVID could be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Ca(#[from] CaError),
    /// A server was asked, or a directory.
    #[error("{text}")]
    Asked { reason: Reason, text: String },
    #[error("{0}")]
    Other(String),
}

impl SourceError {
    pub fn reason(&self) -> Reason {
        match self {
            Self::Ca(_) => Reason::Ca,
            Self::Asked { reason, .. } => *reason,
            Self::Other(_) => Reason::Invalid,
        }
    }
}

/// Kinds of failures, for metrics: who has to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The embedded CA: its directory, its key, its root's end.
    Ca,
    /// No connection, or not to whom it should be.
    Unreachable,
    Timeout,
    /// The server said no.
    Refused,
    /// Nothing is there for this identity: no file, no registration entry.
    Absent,
    /// The node cannot show who it is: no token, no certificate of its own.
    Credential,
    /// What came cannot be used: for another key, not verifiable, expired, unreadable.
    Invalid,
}

impl Reason {
    pub const ALL: [Self; 7] = [
        Self::Ca,
        Self::Unreachable,
        Self::Timeout,
        Self::Refused,
        Self::Absent,
        Self::Credential,
        Self::Invalid,
    ];

    /// Of an identity that is not among what can be used, with what else was there.
    fn of_missing<T>(unusable: &[T]) -> Self {
        if unusable.is_empty() { Self::Absent } else { Self::Invalid }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ca => "ca",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Absent => "absent",
            Self::Credential => "credential",
            Self::Invalid => "invalid",
        }
    }
}
