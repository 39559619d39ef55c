//! Istio's policy kinds: their model, how they are read from YAML, and how they resolve to one
//! effective answer. Pure: no IO, the same code for the daemon, the command line and the tests.

pub mod destination_rule;
pub mod mode;
pub mod parse;
pub mod peer_authentication;

pub use mode::{EffectiveMode, Mode};
