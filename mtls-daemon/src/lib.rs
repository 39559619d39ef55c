//! One daemon per node gives every workload on it a SPIFFE identity and mutual TLS.
//!
//! This is the table of contents; ARCHITECTURE.md tells the story in order.

pub mod admin;
pub mod app;
pub mod bpf;
pub mod ca;
pub mod cli;
pub mod config;
pub mod drain;
pub mod grpc;
pub mod identity;
pub mod mesh;
pub mod node;
pub mod policy;
pub mod proxy;
pub mod source;
pub mod telemetry;
pub mod tls;
pub mod untrusted;
