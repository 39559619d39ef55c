//! Who a workload is: SPIFFE IDs, SVIDs, trust bundles, and where they come from.

pub mod bundle;
pub mod ca;
pub mod source;
pub mod spiffe_id;
pub mod store;
pub mod svid;

pub use bundle::Bundle;
pub use spiffe_id::{SpiffeId, SpiffeIdError, TrustDomain};
pub use store::{IdentitySlot, SvidStore};
pub use svid::Svid;
