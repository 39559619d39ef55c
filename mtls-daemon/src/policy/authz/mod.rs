//! `AuthorizationPolicy`: who may talk to whom (policy.md 4).
//!
//! Objects are read and validated once ([`model`]), compiled once a change into what each workload
//! needs ([`Authorizations`]), and then asked for every connection and request without allocating.

mod ask;
pub mod attribute;
mod compile;
mod evaluate;
pub mod identity;
mod index;
mod model;
mod read;
mod refused;
mod rules;
pub mod status;
pub mod template;
#[cfg(test)]
mod tests;
pub mod text;
mod verdict;
mod workload;

pub use ask::{Connection, Headers, Request};
pub use index::{Authorizations, AuthzSettings};
pub use model::{Action, AuthorizationPolicy, Condition, Operation, Rule, Source, Values};
pub use refused::RefusedPolicy;
pub use verdict::{Hit, Reason, Verdict};
pub use workload::{InForce, WorkloadAuthorization};
