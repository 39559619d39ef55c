//! SPIFFE IDs and trust domains (SPIFFE-ID §2): parsed once, canonical form only.
//!
//! Upper case in the scheme or the trust domain is refused, never folded: Istio and go-spiffe do
//! the same, and two spellings of one identity would be two identities to every string comparison.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

const SCHEME: &str = "spiffe://";

/// SPIFFE-ID §2.3: longest ID that must be supported, and that should be made.
const MAX_ID: usize = 2048;

/// SPIFFE-ID §2.3: longest trust domain name.
const MAX_TRUST_DOMAIN: usize = 255;

/// A trust domain name, for example `cluster.local`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// A SPIFFE ID, for example `spiffe://cluster.local/ns/foo/sa/web`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId(Arc<str>);

/// Why a text is not a SPIFFE ID or not a trust domain name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    #[error("a SPIFFE ID begins with \"spiffe://\" in lower case")]
    Scheme,
    #[error("the trust domain is empty")]
    NoTrustDomain,
    #[error(
        "the trust domain holds {0:?}; it may hold a-z, 0-9, '.', '-' and '_' (no upper case, no port, no user)"
    )]
    TrustDomainCharacter(char),
    #[error("the trust domain is longer than {MAX_TRUST_DOMAIN} bytes")]
    TrustDomainTooLong,
    #[error("the SPIFFE ID is longer than {MAX_ID} bytes")]
    TooLong,
    #[error("the path ends with '/'")]
    TrailingSlash,
    #[error("the path has an empty segment")]
    EmptySegment,
    #[error("the path has a '.' or '..' segment")]
    DotSegment,
    #[error(
        "the path holds {0:?}; it may hold letters, digits, '.', '-' and '_' (no percent encoding, no query)"
    )]
    PathCharacter(char),
    #[error("{what} {value:?} is no name: {why}")]
    Name { what: &'static str, value: String, why: &'static str },
}

impl TrustDomain {
    /// Parses a bare name such as `cluster.local` (SPIFFE-ID §2.1). Names need not look like DNS.
    pub fn parse(name: &str) -> Result<Self, SpiffeIdError> {
        check_trust_domain(name)?;
        Ok(Self(name.into()))
    }

    /// Parses a name from configuration, where Istio allows '@' and reads it as '.' (trust domains
    /// made from a cloud service account have one).
    pub fn configured(name: &str) -> Result<Self, SpiffeIdError> {
        Self::parse(&name.replace('@', "."))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SpiffeId {
    /// Parses the canonical form. An ID without a path parses: it names a trust domain itself, and
    /// can be no workload's.
    pub fn parse(id: &str) -> Result<Self, SpiffeIdError> {
        let rest = id.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        check_trust_domain(domain)?;
        check_path(path)?;
        if id.len() > MAX_ID {
            return Err(SpiffeIdError::TooLong);
        }
        Ok(Self(id.into()))
    }

    /// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`: the identity Istio gives a
    /// service account.
    pub fn istio(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeIdError> {
        check_segment("the namespace", namespace)?;
        check_segment("the service account", service_account)?;
        Self::parse(&format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}"))
    }

    /// The whole ID with its scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name between the scheme and the path.
    pub fn trust_domain(&self) -> &str {
        self.split().0
    }

    /// From the first '/' after the trust domain on; empty if there is none.
    pub fn path(&self) -> &str {
        self.split().1
    }

    /// Namespace and service account, if the path is `/ns/<namespace>/sa/<service account>`.
    pub fn istio_parts(&self) -> Option<(&str, &str)> {
        let rest = self.path().strip_prefix("/ns/")?;
        let (namespace, rest) = rest.split_once('/')?;
        let account = rest.strip_prefix("sa/")?;
        (!account.contains('/')).then_some((namespace, account))
    }

    /// The same path in another trust domain: what an alias of a trust domain means. Fails only if
    /// the result would be longer than an ID may be.
    pub fn with_trust_domain(&self, trust_domain: &TrustDomain) -> Result<Self, SpiffeIdError> {
        Self::parse(&format!("{SCHEME}{trust_domain}{}", self.path()))
    }

    fn split(&self) -> (&str, &str) {
        let rest = &self.0[SCHEME.len()..];
        rest.split_at(rest.find('/').unwrap_or(rest.len()))
    }
}

fn check_trust_domain(name: &str) -> Result<(), SpiffeIdError> {
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

fn is_path_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
}

/// `path` is empty or begins with '/'.
fn check_path(path: &str) -> Result<(), SpiffeIdError> {
    let Some(segments) = path.strip_prefix('/') else { return Ok(()) };
    if segments.is_empty() || segments.ends_with('/') {
        return Err(SpiffeIdError::TrailingSlash);
    }
    for segment in segments.split('/') {
        match segment {
            "" => return Err(SpiffeIdError::EmptySegment),
            "." | ".." => return Err(SpiffeIdError::DotSegment),
            _ => {}
        }
        if let Some(c) = segment.chars().find(|c| !is_path_character(*c)) {
            return Err(SpiffeIdError::PathCharacter(c));
        }
    }
    Ok(())
}

/// One segment that comes from an object's field: it must not be able to add segments of its own.
fn check_segment(what: &'static str, value: &str) -> Result<(), SpiffeIdError> {
    let why = match value {
        "" => "it is empty",
        "." | ".." => "it would be a dot segment",
        _ if !value.chars().all(is_path_character) => {
            "it may hold letters, digits, '.', '-' and '_'"
        }
        _ => return Ok(()),
    };
    Err(SpiffeIdError::Name { what, value: value.to_owned(), why })
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    /// As [`TrustDomain::configured`]: command lines are configuration.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::configured(name)
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(id: &str) -> Result<Self, Self::Err> {
        Self::parse(id)
    }
}

impl AsRef<str> for TrustDomain {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for SpiffeId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for TrustDomain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
#[path = "spiffe_id_tests.rs"]
mod tests;
