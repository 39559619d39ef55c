//! The CA server: `mtls-daemon ca`. It signs for nodes and workloads that prove who they are, speaks
//! Istio's certificate service, and tells nodes what is revoked.
//!
//! A request's way: [`server`] accepts its [`connection`], [`service`] reads it, [`authenticate`] says who asks,
//! [`allow`] for whom that one may ask, [`issue`] signs, [`audit`] writes it down. What the CA
//! remembers lies in files of one directory ([`state`]), which the command line's other verbs change
//! under the same lock: the server reads them anew when they change.

pub mod allow;
pub mod audit;
pub mod authenticate;
pub mod bearer;
pub mod connection;
pub mod csr;
pub mod domain;
pub mod issue;
pub mod issued;
pub mod nodes;
pub mod rate;
pub mod refusal;
pub mod revoke;
pub mod roots;
pub mod server;
pub mod service;
pub mod signing;
pub mod state;
pub mod steady;
pub mod token;
pub mod unexpired;

pub use issue::{Ca, Settings};
pub use refusal::Refusal;
pub use state::StateDir;

#[cfg(test)]
mod tests;

/// Seconds since 1970, as the CA's files have them.
fn seconds(time: std::time::SystemTime) -> u64 {
    time.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
