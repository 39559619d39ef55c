//! What the mesh looks like right now: workloads, services and their endpoints, compiled with the
//! policy into one immutable [`Snapshot`] that everything else reads.

pub mod plan;
pub mod service;
pub mod snapshot;
pub mod workload;

pub use plan::{ClientTls, InboundPlan, OutboundPlan, PeerKnowledge};
pub use service::{Endpoint, Service, ServicePort};
pub use snapshot::Snapshot;
pub use workload::{NodeWorkload, Workload};
