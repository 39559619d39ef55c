//! Where SVIDs come from, chosen by configuration.

pub mod embedded;
pub mod istio_ca;

use super::ca::CaError;
use super::{Bundle, SpiffeId, Svid};

/// Makes SVIDs. Blocking: called off the data path.
pub trait SvidSource: Send + Sync + 'static {
    /// A new SVID (new key) for `id`.
    fn issue(&self, id: &SpiffeId) -> Result<Svid, SourceError>;
    /// The trust domain's current bundle.
    fn bundle(&self) -> Result<Bundle, SourceError>;
    /// As `status` prints it.
    fn name(&self) -> &'static str;
}

/// Why no SVID could be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error("{0}")]
    Other(String),
}
