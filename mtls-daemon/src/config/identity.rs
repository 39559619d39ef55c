//! Where SVIDs come from.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{ConfigError, NodeName};
use crate::identity::source::istio_ca::Credential;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SourceKind {
    /// A CA inside the daemon: nothing else to install
    Embedded,
    /// A server that speaks Istio's protocol: `mtls-daemon ca`, istiod, istio-csr
    IstioCa,
}

/// Which CA, and how it knows this node.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Identity")]
pub struct IdentityArgs {
    /// Where certificates come from
    #[arg(
        long,
        env = "MTLS_IDENTITY_SOURCE",
        value_name = "SOURCE",
        value_enum,
        default_value = "embedded"
    )]
    pub identity_source: SourceKind,

    /// Host and port of the CA server
    #[arg(
        long,
        env = "MTLS_CA_ADDRESS",
        value_name = "HOST:PORT",
        default_value = "istiod.istio-system.svc:15012"
    )]
    pub ca_address: String,

    /// DNS name that the CA's certificate must have
    #[arg(
        long,
        env = "MTLS_CA_SERVER_NAME",
        value_name = "NAME",
        default_value = "istiod.istio-system.svc"
    )]
    pub ca_server_name: String,

    /// PEM file of the CA's roots; what the CA itself says later takes its place until the file changes
    #[arg(
        long,
        env = "MTLS_CA_ROOT",
        value_name = "FILE",
        default_value = "/var/run/secrets/istio/root-cert.pem"
    )]
    pub ca_root: PathBuf,

    /// File of a Kubernetes service account's token, sent with every request
    #[arg(
        long,
        env = "MTLS_CA_TOKEN_FILE",
        value_name = "FILE",
        conflicts_with = "ca_join_token_file"
    )]
    pub ca_token_file: Option<PathBuf>,

    /// File of a join token (`mtls-daemon ca token create`), spent once for the node's own certificate
    #[arg(long, env = "MTLS_CA_JOIN_TOKEN_FILE", value_name = "FILE")]
    pub ca_join_token_file: Option<PathBuf>,

    /// How often the CA is asked what it revoked, and for new roots; a revocation reaches this node
    /// within that time and a few seconds. istiod and istio-csr cannot be asked
    #[arg(
        long,
        env = "MTLS_CA_POLL",
        value_name = "DURATION",
        default_value = "5s",
        value_parser = poll
    )]
    pub ca_poll: Duration,

    /// What istiod calls the cluster that the token is of
    #[arg(long, env = "MTLS_CA_CLUSTER_ID", value_name = "NAME", default_value = "Kubernetes")]
    pub ca_cluster_id: String,
}

/// The source, with what only that one needs.
#[derive(Debug, Clone)]
pub enum IdentitySource {
    Embedded,
    IstioCa {
        address: String,
        server_name: String,
        root_file: PathBuf,
        credential: Credential,
        cluster: String,
        poll: Duration,
    },
}

fn poll(text: &str) -> Result<Duration, String> {
    super::flags::duration(text, Duration::from_secs(1), Duration::from_secs(3600))
}

impl IdentityArgs {
    pub(super) fn source(self, node: &NodeName) -> Result<IdentitySource, ConfigError> {
        match self.identity_source {
            SourceKind::Embedded => Ok(IdentitySource::Embedded),
            SourceKind::IstioCa => Ok(IdentitySource::IstioCa {
                address: self.ca_address,
                server_name: self.ca_server_name,
                root_file: self.ca_root,
                credential: match self.ca_token_file {
                    Some(file) => Credential::TokenFile(file),
                    None => Credential::Node {
                        name: node.as_str().parse().map_err(ConfigError::NodeIdentity)?,
                        join_token: self.ca_join_token_file,
                    },
                },
                cluster: self.ca_cluster_id,
                poll: self.ca_poll,
            }),
        }
    }
}
