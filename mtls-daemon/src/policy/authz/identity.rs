//! What rules ask of an identity: its parts, and the trust domains that it may be in.

use super::index::AuthzSettings;

/// An Istio identity: exactly `<trust domain>/ns/<namespace>/sa/<service account>`. Others have a
/// trust domain and nothing that `namespaces` or `serviceAccounts` could match (policy.md 4.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
}

impl<'a> Account<'a> {
    /// Of a SPIFFE ID without `spiffe://`.
    pub fn of(principal: &'a str) -> Option<Self> {
        let mut parts = principal.split('/');
        let _domain = parts.next()?;
        let ("ns", namespace) = (parts.next()?, parts.next()?) else { return None };
        let ("sa", name) = (parts.next()?, parts.next()?) else { return None };
        parts.next().is_none().then_some(Self { namespace, name })
    }
}

pub fn trust_domain_of(principal: &str) -> &str {
    principal.split('/').next().unwrap_or_default()
}

/// Istio's default, and in a policy always a name for the mesh's own trust domain.
const CLUSTER_LOCAL: &str = "cluster.local";

/// Principals as written to those that they stand for: one of the mesh's own trust domain counts in
/// each of its aliases as well, so that a mesh can change its name (policy.md 4.7).
pub fn expand_principals<T: AsRef<str>>(values: &[T], settings: &AuthzSettings<'_>) -> Vec<String> {
    let mut all = Vec::new();
    for value in values {
        let value = value.as_ref();
        let domain = trust_domain_of(value);
        let of_mesh = value.split('/').count() == 5
            && domain != "*"
            && (domain == CLUSTER_LOCAL || domains(settings).any(|own| overlap(domain, own)));
        if !of_mesh {
            all.push(value.to_owned());
            continue;
        }
        let rest = &value[domain.len()..];
        let first = all.len();
        for own in domains(settings) {
            // `*-td` covers `old-td` already; the others are added beside it.
            let covered = domain.strip_prefix('*').is_some_and(|suffix| own.ends_with(suffix));
            let principal = if covered { value.to_owned() } else { format!("{own}{rest}") };
            if !all[first..].contains(&principal) {
                all.push(principal);
            }
        }
    }
    all
}

/// Trust domains as written to those that they stand for.
pub fn expand_domains<T: AsRef<str>>(values: &[T], settings: &AuthzSettings<'_>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for value in values {
        let value = value.as_ref();
        if domains(settings).any(|own| own == value) {
            all.extend(domains(settings).map(str::to_owned));
        } else {
            all.push(value.to_owned());
        }
    }
    all
}

fn domains<'a>(settings: &AuthzSettings<'a>) -> impl Iterator<Item = &'a str> {
    std::iter::once(settings.trust_domain).chain(settings.aliases.iter().map(String::as_str))
}

/// Equal, or one of them is a wildcard that the other falls under.
fn overlap(a: &str, b: &str) -> bool {
    let under = |name: &str, wildcard: &str| {
        wildcard.strip_prefix('*').is_some_and(|suffix| name.ends_with(suffix))
            || wildcard.strip_suffix('*').is_some_and(|prefix| name.starts_with(prefix))
    };
    a == b || under(a, b) || under(b, a)
}
