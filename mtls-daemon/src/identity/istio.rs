//! Istio's form of an identity: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

use std::collections::BTreeSet;

use super::{SpiffeId, TrustDomain};

/// An identity split into what policies speak of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IstioIdentity<'a> {
    pub trust_domain: &'a str,
    pub namespace: &'a str,
    pub service_account: &'a str,
}

impl<'a> IstioIdentity<'a> {
    /// Istio's own parser (policy.md 6.1.5): exactly five segments, of which the second and the
    /// fourth are `ns` and `sa`; it looks at no character and takes empty names. Peers' identities
    /// are [`SpiffeId`]s first, whose rules are stricter.
    pub fn parse(id: &'a str) -> Option<Self> {
        let mut segments = id.strip_prefix("spiffe://")?.split('/');
        let mut next = || segments.next();
        let trust_domain = next()?;
        let (Some("ns"), Some(namespace)) = (next(), next()) else { return None };
        let (Some("sa"), Some(service_account), None) = (next(), next(), next()) else {
            return None;
        };
        Some(Self { trust_domain, namespace, service_account })
    }
}

/// Whom a client accepts when a server is known by `names` and its trust domain has `aliases`: the
/// names themselves, and those of Istio's form under every alias (policy.md 6.1.6).
pub fn expand<'a>(
    names: impl IntoIterator<Item = &'a str>,
    aliases: &[TrustDomain],
) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for name in names {
        out.insert(name.to_owned());
        let Ok(id) = SpiffeId::parse(name) else { continue };
        if id.istio_parts().is_some() {
            let others = aliases.iter().filter_map(|alias| id.with_trust_domain(alias).ok());
            out.extend(others.map(|other| other.to_string()));
        }
    }
    out
}
