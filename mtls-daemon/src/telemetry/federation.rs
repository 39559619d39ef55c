//! Other trust domains' bundles.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DomainLabel {
    trust_domain: String,
}

#[derive(Default)]
pub struct FederationMetrics {
    authorities: Family<DomainLabel, Gauge>,
    age: Family<DomainLabel, Gauge>,
}

impl FederationMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let new = Self::default();
        registry.register(
            "mtls_federated_authorities",
            "CA certificates that are believed for another trust domain",
            new.authorities.clone(),
        );
        registry.register(
            "mtls_federated_bundle_age_seconds",
            "Seconds since another trust domain's bundle was read or fetched",
            new.age.clone(),
        );
        new
    }

    /// Replaces all. For a hook, so that ages are current.
    pub fn set<'a>(&self, domains: impl Iterator<Item = (&'a str, usize, Option<Duration>)>) {
        self.authorities.clear();
        self.age.clear();
        for (domain, authorities, age) in domains {
            let label = DomainLabel { trust_domain: domain.to_owned() };
            let authorities = i64::try_from(authorities).unwrap_or(i64::MAX);
            self.authorities.get_or_create(&label).set(authorities);
            if let Some(age) = age {
                let age = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
                self.age.get_or_create(&label).set(age);
            }
        }
    }
}
