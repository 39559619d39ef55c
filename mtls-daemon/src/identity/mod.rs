//! Who a workload is: SPIFFE IDs, SVIDs, trust bundles, and where they come from.

pub mod bundle;
pub mod ca;
pub mod node;
pub mod revocations;
pub mod slot;
pub mod source;
pub mod spiffe_id;
pub mod store;
pub mod svid;

pub use bundle::Bundle;
pub use node::NodeName;
pub use revocations::Revocations;
pub use slot::{IdentitySlot, SvidStatus};
pub use spiffe_id::{SpiffeId, SpiffeIdError, TrustDomain};
pub use store::SvidStore;
pub use svid::Svid;

#[cfg(test)]
mod rotation_tests;
#[cfg(test)]
mod secrecy_tests;
