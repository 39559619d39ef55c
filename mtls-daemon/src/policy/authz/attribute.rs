//! What rules ask about: the fields of `source` and `operation`, and the keys of `when`
//! (policy.md 4.6). Each knows which values it takes and whether only HTTP has it.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::template;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    Principal,
    Namespace,
    ServiceAccount,
    TrustDomain,
    SourceIp,
    RemoteIp,
    DestinationIp,
    Port,
    Sni,
    Host,
    Method,
    Path,
    /// By its name in lower case.
    Header(Arc<str>),
    /// `request.auth.*` and `requestPrincipals`: no JWT is validated here, so nobody knows.
    Token,
    /// `experimental.envoy.filters.*`: metadata of filters that do not exist here.
    Metadata,
}

/// A key of `when` that names no attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the key is empty")]
    Empty,
    #[error("the key needs a name in brackets, as request.headers[x-name]")]
    Brackets,
    #[error("a policy counts in its own namespace: put it there instead")]
    DestinationNamespace,
    #[error("workloads are selected with spec.selector instead")]
    DestinationLabels,
    #[error("there is no such key")]
    Unknown,
}

/// Largest number of `serviceAccounts` in one list, and longest.
const MAX_ACCOUNTS: usize = 16;
const MAX_ACCOUNT: usize = 320;

impl Attribute {
    /// The attribute that a key of `when` names.
    ///
    /// # Errors
    /// It names none.
    pub fn of_key(key: &str) -> Result<Self, KeyError> {
        Ok(match key {
            "" => return Err(KeyError::Empty),
            "source.ip" => Self::SourceIp,
            "remote.ip" => Self::RemoteIp,
            "source.namespace" => Self::Namespace,
            "source.serviceAccount" => Self::ServiceAccount,
            "source.principal" => Self::Principal,
            "source.trustDomain" => Self::TrustDomain,
            "destination.ip" => Self::DestinationIp,
            "destination.port" => Self::Port,
            "connection.sni" => Self::Sni,
            "request.auth.principal" | "request.auth.audiences" | "request.auth.presenter" => {
                Self::Token
            }
            "destination.namespace" => return Err(KeyError::DestinationNamespace),
            _ if key.starts_with("destination.labels") => return Err(KeyError::DestinationLabels),
            _ => return Self::of_bracketed_key(key),
        })
    }

    fn of_bracketed_key(key: &str) -> Result<Self, KeyError> {
        const METADATA: &str = "experimental.envoy.filters.";
        let (before, names) = match key.split_once('[') {
            Some((before, rest)) => (before, rest.strip_suffix(']')),
            None => (key, None),
        };
        let attribute = match before {
            "request.headers" => {
                Self::Header(names.unwrap_or_default().to_ascii_lowercase().into())
            }
            "request.auth.claims" => Self::Token,
            _ if before.starts_with(METADATA) => Self::Metadata,
            _ => return Err(KeyError::Unknown),
        };
        match names {
            Some(names) if !names.is_empty() => Ok(attribute),
            _ => Err(KeyError::Brackets),
        }
    }

    /// Only a request has it, a connection does not (policy.md 4.8).
    pub fn is_http(&self) -> bool {
        matches!(self, Self::Host | Self::Method | Self::Path | Self::Header(_) | Self::Token)
    }

    /// Whether one value can be compared with it.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn check(&self, value: &str) -> Result<(), String> {
        if value.is_empty() {
            return Err("must not be empty".to_owned());
        }
        match self {
            Self::SourceIp | Self::RemoteIp | Self::DestinationIp => {
                range(value).map(drop).ok_or_else(|| {
                    format!("{value:?} is no IP address and no range such as 10.0.0.0/8")
                })
            }
            Self::Port => port(value)
                .map(drop)
                .ok_or_else(|| format!("{value:?} is no port, 0-65535 (ports have no names here)")),
            Self::Path => template::check(value).map_err(|why| format!("{value:?}: {why}")),
            Self::ServiceAccount => check_account(value),
            Self::TrustDomain => check_wildcard(value),
            _ => Ok(()),
        }
    }

    /// Whether a list of values can be compared with it as a whole.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn check_count(&self, count: usize) -> Result<(), String> {
        if *self == Self::ServiceAccount && count > MAX_ACCOUNTS {
            return Err(format!(
                "{count} service accounts are more than the {MAX_ACCOUNTS} allowed"
            ));
        }
        Ok(())
    }
}

/// A value of `ipBlocks` and the like. v4-mapped IPv6 is the IPv4 address that it maps.
pub fn range(value: &str) -> Option<IpNet> {
    if value.contains('/') {
        let range = value.parse::<IpNet>().ok()?;
        let mapped = match range.addr() {
            IpAddr::V6(address) => address.to_ipv4_mapped(),
            IpAddr::V4(_) => None,
        };
        match (mapped, range.prefix_len().checked_sub(96)) {
            (Some(address), Some(len)) => IpNet::new(address.into(), len).ok(),
            _ => Some(range),
        }
    } else {
        value.parse::<IpAddr>().ok().map(|address| IpNet::from(address.to_canonical()))
    }
}

/// A value of `ports`: digits alone.
pub fn port(value: &str) -> Option<u16> {
    value.bytes().all(|b| b.is_ascii_digit()).then(|| value.parse().ok()).flatten()
}

/// One wildcard at most, at one end.
///
/// # Errors
/// Why the value has more than that.
pub fn check_wildcard(value: &str) -> Result<(), String> {
    if value.is_empty() {
        return Err("must not be empty".to_owned());
    }
    let inner = value.strip_prefix('*').or_else(|| value.strip_suffix('*')).unwrap_or(value);
    if inner.contains('*') {
        return Err(format!("{value:?} has a wildcard that is not its only one, at one end"));
    }
    Ok(())
}

/// A value of `trustDomains`: no path.
///
/// # Errors
/// Why it is none.
pub fn check_trust_domain(value: &str) -> Result<(), String> {
    check_wildcard(value)?;
    if value.contains('/') {
        return Err(format!("{value:?} is no trust domain: it has a slash"));
    }
    Ok(())
}

fn check_account(value: &str) -> Result<(), String> {
    let parts = value.split('/').count();
    if value.contains('*') {
        Err(format!("{value:?}: service accounts have no wildcards"))
    } else if value.len() > MAX_ACCOUNT {
        Err(format!("{} characters are more than the {MAX_ACCOUNT} allowed", value.len()))
    } else if parts > 2 || value.split('/').any(str::is_empty) {
        Err(format!("{value:?} is not ACCOUNT or NAMESPACE/ACCOUNT"))
    } else {
        Ok(())
    }
}
