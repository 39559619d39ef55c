//! The contract between the kernel programs (`mtls-ebpf`) and the daemon (`mtls-daemon`), and
//! nothing else: the layout of every map entry, the names of the maps, the numbers both sides use.
//!
//! A change to any structure here, or to the meaning of a field, is a new [`names::ABI_VERSION`].
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod event;
pub mod flow;
pub mod names;
pub mod workload;
