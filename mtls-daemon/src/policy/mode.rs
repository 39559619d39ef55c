//! PeerAuthentication's modes.

use std::fmt;
use std::sync::Arc;

/// What a server port accepts. UNSET is resolved before a `Mode` exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    Disable,
    Permissive,
    Strict,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disable => "DISABLE",
            Self::Permissive => "PERMISSIVE",
            Self::Strict => "STRICT",
        })
    }
}

/// A mode and the object that decided it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveMode {
    pub mode: Mode,
    /// For example `PeerAuthentication istio-system/default`, or `default (no PeerAuthentication)`.
    pub because: Arc<str>,
}
