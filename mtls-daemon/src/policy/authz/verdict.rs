//! The answer, and which policy and rule gave it.

use std::fmt;
use std::sync::Arc;

/// What happens to a connection or request. Cloning one allocates nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub allowed: bool,
    /// What decided, `AuthorizationPolicy namespace/name`. None: no policy had to.
    pub policy: Option<Arc<str>>,
    /// Which of its rules, from 0. None: the policy as a whole.
    pub rule: Option<u32>,
    pub reason: Reason,
    /// The first AUDIT rule that matches. It decides nothing.
    pub audit: Option<Hit>,
    /// What dry-run policies would have decided, where they have an opinion. It decides nothing.
    pub dry_run: Option<Hit>,
}

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No ALLOW policy selects the workload, and no DENY rule matched.
    NoAllowPolicy,
    /// A rule of an ALLOW policy matched.
    AllowRule,
    /// A rule of a DENY policy matched.
    DenyRule,
    /// ALLOW policies select the workload and none of their rules matched.
    NoRuleMatched,
    /// A policy of the unsupported action CUSTOM selects the workload.
    Custom,
    /// A policy that selects the workload was refused, so what it says is not known.
    Refused,
}

/// A match that was noted and decided nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    pub policy: Arc<str>,
    pub rule: Option<u32>,
    /// What it would have decided.
    pub allowed: bool,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAllowPolicy => "no ALLOW policy selects the workload",
            Self::AllowRule => "a rule of an ALLOW policy matches",
            Self::DenyRule => "a rule of a DENY policy matches",
            Self::NoRuleMatched => "no rule of the ALLOW policies matches",
            Self::Custom => "action CUSTOM is not supported, so what it selects is denied",
            Self::Refused => "the policy was refused, so what it selects is denied",
        })
    }
}

/// `AuthorizationPolicy ns/name rule 0: reason`.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(policy) = &self.policy {
            f.write_str(policy)?;
            if let Some(rule) = self.rule {
                write!(f, " rule {rule}")?;
            }
            f.write_str(": ")?;
        }
        self.reason.fmt(f)
    }
}
