//! The data path: accepts redirected connections, shakes hands, relays.

pub mod failure;
