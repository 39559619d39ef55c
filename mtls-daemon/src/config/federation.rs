//! Other trust domains.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::ConfigError;
use crate::identity::TrustDomain;
use crate::identity::federation::{Endpoint, Origin, Settings};
use crate::mesh::snapshot::MeshSettings;

/// Whose certificates are believed beside the own trust domain's.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Identity")]
pub struct FederationArgs {
    /// Believe certificates of another trust domain by the CA certificates in a file: a SPIFFE bundle
    /// document or PEM (repeatable; comma-separated in the environment)
    ///
    /// Changes take effect at once, also on open connections. Without the file nobody of that trust
    /// domain is believed.
    #[arg(
        long,
        env = "MTLS_FEDERATED_BUNDLE",
        value_name = "TD=FILE",
        value_delimiter = ',',
        value_parser = pair::<PathBuf>
    )]
    pub federated_bundle: Vec<(TrustDomain, PathBuf)>,

    /// The same by the SPIFFE bundle document at a URL, asked for as often as it says (the https_web
    /// profile; repeatable; comma-separated in the environment)
    #[arg(
        long,
        env = "MTLS_FEDERATED_ENDPOINT",
        value_name = "TD=URL",
        value_delimiter = ',',
        value_parser = pair::<Endpoint>
    )]
    pub federated_endpoint: Vec<(TrustDomain, Endpoint)>,

    /// PEM file of the authorities that sign for those URLs' servers [default: the system's]
    #[arg(long, env = "MTLS_FEDERATED_ENDPOINT_CA", value_name = "FILE")]
    pub federated_endpoint_ca: Option<PathBuf>,
}

impl FederationArgs {
    pub(super) fn settings(
        self,
        mesh: &MeshSettings,
        state_dir: PathBuf,
    ) -> Result<Settings, ConfigError> {
        let files = self.federated_bundle.into_iter().map(|(td, path)| (td, Origin::File(path)));
        let web = self.federated_endpoint.into_iter().map(|(td, it)| (td, Origin::Web(it)));
        let mut own = vec![mesh.trust_domain.clone()];
        own.extend(mesh.trust_domain_aliases.iter().cloned());
        let mut domains = BTreeMap::new();
        for (domain, origin) in files.chain(web) {
            if own.contains(&domain) {
                return Err(ConfigError::FederatedSelf(domain));
            }
            if domains.insert(domain.clone(), origin).is_some() {
                return Err(ConfigError::FederatedTwice(domain));
            }
        }
        Ok(Settings { domains, endpoint_ca: self.federated_endpoint_ca, own, state_dir })
    }
}

fn pair<T>(text: &str) -> Result<(TrustDomain, T), String>
where
    T: FromStr,
    T::Err: ToString,
{
    let (domain, value) = text
        .split_once('=')
        .ok_or("write the trust domain, '=', and where its bundle is".to_owned())?;
    let domain = domain.parse::<TrustDomain>().map_err(|error| error.to_string())?;
    if value.is_empty() {
        return Err(format!("where is the bundle of {domain}?"));
    }
    Ok((domain, value.parse().map_err(|error: T::Err| error.to_string())?))
}
