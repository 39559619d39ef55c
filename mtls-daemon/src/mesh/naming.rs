//! Secure naming: which identities a server may show, and the server name that is asked for
//! (policy.md 2.3, 2.5).

use std::sync::Arc;

use super::MeshSettings;
use crate::identity::SpiffeId;
use crate::identity::spiffe_id::SpiffeIdError;
use crate::policy::host::is_dns_name;

/// The workload's own identity first, then the same one in every alias of the trust domain.
pub fn expected(
    settings: &MeshSettings,
    namespace: &str,
    service_account: &str,
) -> Result<Arc<[SpiffeId]>, SpiffeIdError> {
    std::iter::once(&settings.trust_domain)
        .chain(&settings.trust_domain_aliases)
        .map(|domain| SpiffeId::istio(domain, namespace, service_account))
        .collect()
}

/// An identity that no workload holds, for a server whose service account is not known: a
/// handshake that expects it fails, and nothing is sent unverified. Service accounts only ever
/// get IDs of the form `/ns/<namespace>/sa/<service account>`.
pub fn nobody(settings: &MeshSettings) -> SpiffeId {
    let text = format!("spiffe://{}/unknown-service-account", settings.trust_domain);
    SpiffeId::parse(&text).expect("a trust domain followed by one valid path segment")
}

/// Istio's server name for a service port without a subset, as far as it is a valid DNS name.
pub fn service_sni(port: u16, host: &str, name: &str, namespace: &str) -> Arc<str> {
    [
        format!("outbound_.{port}_._.{host}"),
        format!("outbound_.{port}_._.{name}.{namespace}"),
        format!("outbound_.{port}_._.unnamed"),
    ]
    .into_iter()
    .find(|sni| is_dns_name(sni))
    .unwrap_or_default()
    .into()
}

/// The server name for a workload that is addressed directly. Informative: the native wire
/// selects nothing by it.
pub fn direct_sni(name: &str, namespace: &str) -> Arc<str> {
    let sni = format!("{name}.{namespace}");
    if is_dns_name(&sni) { sni.into() } else { "workload.unnamed".into() }
}
