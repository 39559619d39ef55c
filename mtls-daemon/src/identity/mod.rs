//! Who a workload is: SPIFFE IDs, SVIDs, trust bundles, and where they come from.

pub mod bundle;
pub mod ca;
pub mod encoding;
pub mod federation;
pub mod istio;
pub mod key_type;
pub mod node;
pub mod revocations;
pub mod slot;
pub mod source;
pub mod spiffe_bundle;
pub mod spiffe_id;
pub mod store;
pub mod svid;
pub mod trust;
pub mod trust_domain;

pub use bundle::Bundle;
pub use federation::Federation;
pub use istio::IstioIdentity;
pub use key_type::KeyType;
pub use node::NodeName;
pub use revocations::Revocations;
pub use slot::{IdentitySlot, SvidStatus};
pub use spiffe_bundle::SpiffeBundle;
pub use spiffe_id::{SpiffeId, SpiffeIdError};
pub use store::SvidStore;
pub use svid::Svid;
pub use trust_domain::TrustDomain;

#[cfg(test)]
mod rotation_tests;
#[cfg(test)]
mod secrecy_tests;
