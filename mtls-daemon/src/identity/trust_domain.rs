//! Trust domain names (SPIFFE-ID §2.1), in their canonical form only.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::SpiffeIdError;

/// SPIFFE-ID §2.3: longest trust domain name.
pub(super) const MAX_TRUST_DOMAIN: usize = 255;

/// A trust domain name, for example `cluster.local`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a bare name such as `cluster.local` (SPIFFE-ID §2.1). Names need not look like DNS.
    pub fn parse(name: &str) -> Result<Self, SpiffeIdError> {
        check(name)?;
        Ok(Self(name.into()))
    }

    /// Parses a name from configuration, where Istio allows '@' and reads it as '.' (trust domains
    /// made from a cloud service account have one; policy.md 6.1.4).
    pub fn configured(name: &str) -> Result<Self, SpiffeIdError> {
        Self::parse(&name.replace('@', "."))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

pub(super) fn check(name: &str) -> Result<(), SpiffeIdError> {
    if name.is_empty() {
        return Err(SpiffeIdError::NoTrustDomain);
    }
    if let Some(c) = name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_')) {
        return Err(SpiffeIdError::TrustDomainCharacter(c));
    }
    if name.len() > MAX_TRUST_DOMAIN {
        return Err(SpiffeIdError::TrustDomainTooLong);
    }
    Ok(())
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    /// As [`TrustDomain::configured`]: command lines are configuration.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::configured(name)
    }
}

impl AsRef<str> for TrustDomain {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for TrustDomain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}
