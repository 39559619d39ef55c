//! gRPC: what was generated from `proto/`, and a client's and a server's plumbing. Connections come
//! from outside: TLS is named in `tls` alone.

pub mod channel;
#[rustfmt::skip]
pub mod istio_v1_auth;
#[rustfmt::skip]
pub mod mtls_ca_v1;

pub use channel::Channel;

#[cfg(test)]
mod fresh;
