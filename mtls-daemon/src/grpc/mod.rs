//! gRPC: what was generated from `proto/`, and a client's and a server's plumbing. Connections come
//! from outside: TLS is named in `tls` alone.

pub mod channel;
#[rustfmt::skip]
pub mod istio_v1_auth;
#[rustfmt::skip]
pub mod mtls_ca_v1;
#[rustfmt::skip]
pub mod spiffe_workload;
#[rustfmt::skip]
pub mod spire_delegated;
mod without_keys;

pub use channel::Channel;

#[cfg(test)]
mod fresh;
