//! SPIFFE IDs (SPIFFE-ID §2): parsed once, canonical form only.
//!
//! Upper case in the scheme or the trust domain is refused, never folded: Istio and go-spiffe do
//! the same, and two spellings of one identity would be two identities to every string comparison.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::istio::IstioIdentity;
use super::trust_domain::{self, MAX_TRUST_DOMAIN, TrustDomain};

const SCHEME: &str = "spiffe://";
const NAMESPACE: &str = "/ns/";
const ACCOUNT: &str = "/sa/";

/// SPIFFE-ID §2.3: longest ID that must be supported, and that should be made.
const MAX_ID: usize = 2048;

/// A SPIFFE ID, for example `spiffe://cluster.local/ns/foo/sa/web`, parsed once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Where the path begins. Like `account`, it follows from the text.
    path: u16,
    /// Where the service account begins, if this is an identity of Istio's form.
    account: Option<u16>,
}

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
    #[error("the path does not begin with '/'")]
    LeadingSlash,
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

impl SpiffeId {
    /// Parses the canonical form. An ID without a path parses: it names a trust domain itself, and
    /// can be no workload's.
    pub fn parse(id: &str) -> Result<Self, SpiffeIdError> {
        let rest = id.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        trust_domain::check(domain)?;
        check_path(path)?;
        let position = |at: usize| u16::try_from(at).map_err(|_| SpiffeIdError::TooLong);
        if id.len() > MAX_ID {
            return Err(SpiffeIdError::TooLong);
        }
        let account = match IstioIdentity::parse(id) {
            Some(istio) => Some(position(id.len() - istio.service_account.len())?),
            None => None,
        };
        Ok(Self { path: position(id.len() - path.len())?, account, text: id.into() })
    }

    /// An ID from a trust domain and its path, which is empty or begins with '/'.
    pub fn from_path(trust_domain: &TrustDomain, path: &str) -> Result<Self, SpiffeIdError> {
        if !path.is_empty() && !path.starts_with('/') {
            return Err(SpiffeIdError::LeadingSlash);
        }
        Self::parse(&format!("{SCHEME}{trust_domain}{path}"))
    }

    /// An ID from a trust domain and the segments of its path, none of which can add another.
    pub fn from_segments<'s>(
        trust_domain: &TrustDomain,
        segments: impl IntoIterator<Item = &'s str>,
    ) -> Result<Self, SpiffeIdError> {
        let mut id = format!("{SCHEME}{trust_domain}");
        for segment in segments {
            check_segment("the segment", segment)?;
            id.push('/');
            id.push_str(segment);
        }
        Self::parse(&id)
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
        &self.text
    }

    /// The name between the scheme and the path.
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..usize::from(self.path)]
    }

    /// From the first '/' after the trust domain on; empty if there is none.
    pub fn path(&self) -> &str {
        &self.text[usize::from(self.path)..]
    }

    /// Whether it is this trust domain's: its own ID, or that of anything in it.
    pub fn is_member_of(&self, trust_domain: &TrustDomain) -> bool {
        self.trust_domain() == trust_domain.as_str()
    }

    /// What it says, if its path is `/ns/<namespace>/sa/<service account>`.
    pub fn istio_identity(&self) -> Option<IstioIdentity<'_>> {
        let account = usize::from(self.account?);
        let namespace = usize::from(self.path) + NAMESPACE.len()..account - ACCOUNT.len();
        Some(IstioIdentity {
            trust_domain: self.trust_domain(),
            namespace: &self.text[namespace],
            service_account: &self.text[account..],
        })
    }

    /// Namespace and service account, if the path is `/ns/<namespace>/sa/<service account>`.
    pub fn istio_parts(&self) -> Option<(&str, &str)> {
        self.istio_identity().map(|istio| (istio.namespace, istio.service_account))
    }

    /// The same path in another trust domain: what an alias of a trust domain means. Fails only if
    /// the result would be longer than an ID may be.
    pub fn with_trust_domain(&self, trust_domain: &TrustDomain) -> Result<Self, SpiffeIdError> {
        Self::parse(&format!("{SCHEME}{trust_domain}{}", self.path()))
    }
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

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(id: &str) -> Result<Self, Self::Err> {
        Self::parse(id)
    }
}

impl AsRef<str> for SpiffeId {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

#[cfg(test)]
#[path = "spiffe_id_tests.rs"]
mod tests;
