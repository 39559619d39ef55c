//! `AuthorizationPolicy`: who may talk to whom (policy.md 4).
//!
//! Objects are read and validated once ([`model`]), compiled once a change into what each workload
//! needs ([`Authorizations`]), and then asked for every connection and request without allocating.

mod ask;
mod index;
mod model;
mod read;
mod verdict;

pub use ask::{Connection, Headers, Request};
pub use index::{Authorizations, AuthzSettings, RefusedPolicy, WorkloadAuthorization};
pub use model::{Action, AuthorizationPolicy, Condition, Operation, Rule, Source, Values};
pub use verdict::{Hit, Reason, Verdict};
