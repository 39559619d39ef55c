//! What the mesh looks like right now: workloads, services and their endpoints, compiled with the
//! policy into one immutable [`Snapshot`] that everything else reads.

mod accept;
mod build;
mod compile;
mod hosts;
mod in_place;
mod kernel;
mod kinds;
mod legacy;
mod members;
pub mod names;
pub mod naming;
pub mod objects;
mod place;
pub mod plan;
pub mod service;
mod service_entry;
mod services;
pub mod snapshot;
#[cfg(test)]
mod tests;
mod unmatched;
pub mod workload;
mod workload_entry;

pub use accept::Accepted;
pub use objects::Objects;
pub use plan::{AskFor, ClientTls, InboundPlan, Origination, OutboundPlan, PeerKnowledge};
pub use service::{Endpoint, Service, ServicePort};
pub use snapshot::{MeshSettings, Snapshot};
pub use workload::{Cgroup, NodeWorkload, Place, Workload};
