//! SPIFFE IDs and trust domains (SPIFFE-ID §2): parsed once, canonical form only.

use std::fmt;
use std::sync::Arc;

/// A trust domain name, for example `cluster.local`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// A SPIFFE ID, for example `spiffe://cluster.local/ns/foo/sa/web`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId(Arc<str>);

/// Why a text is no SPIFFE ID or trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SpiffeIdError(String);

fn segment_ok(s: &str) -> bool {
    !s.is_empty()
        && s != "."
        && s != ".."
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

impl TrustDomain {
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        if text.is_empty()
            || text.len() > 255
            || !text.bytes().all(|b| {
                b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_')
            })
        {
            return Err(SpiffeIdError(format!("{text:?} is not a trust domain")));
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SpiffeId {
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        let bad = || SpiffeIdError(format!("{text:?} is not a SPIFFE ID"));
        let rest = text.strip_prefix("spiffe://").ok_or_else(bad)?;
        let mut parts = rest.split('/');
        TrustDomain::parse(parts.next().unwrap_or_default())?;
        if !parts.all(segment_ok) {
            return Err(bad());
        }
        Ok(Self(text.into()))
    }

    pub fn istio(td: &TrustDomain, ns: &str, sa: &str) -> Result<Self, SpiffeIdError> {
        Self::parse(&format!("spiffe://{td}/ns/{ns}/sa/{sa}"))
    }

    /// The whole ID with its scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
