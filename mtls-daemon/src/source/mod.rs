//! Where configuration comes from. Each source ends in the same [`crate::mesh::Snapshot`].

pub mod files;
pub mod names;
