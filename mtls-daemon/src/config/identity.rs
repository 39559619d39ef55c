//! Where SVIDs come from.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{ConfigError, NodeName};
use crate::identity::source::istio_ca::Credential;
use crate::identity::source::spiffe;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SourceKind {
    /// A CA inside the daemon: nothing else to install
    Embedded,
    /// A server that speaks Istio's protocol: `mtls-daemon ca`, istiod, istio-csr
    IstioCa,
    /// Certificates and keys that something else puts into a directory
    Files,
    /// An agent of this host, by SPIFFE's Workload API or SPIRE's Delegated Identity API
    Spiffe,
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

    /// Directory of certificates, keys and roots, for the source `files` (docs/identity.md)
    #[arg(
        long,
        env = "MTLS_SVID_DIR",
        value_name = "DIR",
        default_value = "/etc/mtls-daemon/svids"
    )]
    pub svid_dir: PathBuf,

    /// Socket of the Workload API, for the source `spiffe`: unix:///PATH
    #[arg(
        long,
        env = "SPIFFE_ENDPOINT_SOCKET",
        value_name = "SOCKET",
        value_parser = spiffe::socket
    )]
    pub spiffe_endpoint_socket: Option<PathBuf>,

    /// Admin socket of a SPIRE agent, for the source `spiffe`: workloads' certificates by its Delegated
    /// Identity API instead of what the daemon itself is registered for
    #[arg(
        long,
        env = "MTLS_DELEGATED_IDENTITY_SOCKET",
        value_name = "SOCKET",
        value_parser = spiffe::socket
    )]
    pub delegated_identity_socket: Option<PathBuf>,

    /// Selector that describes a workload to that API, with {namespace}, {service-account} or {path} of
    /// its identity (repeatable; comma-separated in the environment)
    #[arg(
        long,
        env = "MTLS_DELEGATED_IDENTITY_SELECTOR",
        value_name = "TYPE:VALUE",
        value_delimiter = ',',
        default_values = spiffe::DEFAULT_SELECTORS
    )]
    pub delegated_identity_selector: Vec<String>,
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
    Files(PathBuf),
    Spiffe {
        api: spiffe::Api,
        socket: PathBuf,
    },
}

fn poll(text: &str) -> Result<Duration, String> {
    super::flags::duration(text, Duration::from_secs(1), Duration::from_secs(3600))
}

impl IdentityArgs {
    pub(super) fn source(self, node: &NodeName) -> Result<IdentitySource, ConfigError> {
        match self.identity_source {
            SourceKind::Embedded => Ok(IdentitySource::Embedded),
            SourceKind::Spiffe => {
                let selectors = self.delegated_identity_selector.iter().map(String::as_str);
                match (self.delegated_identity_socket, self.spiffe_endpoint_socket) {
                    (Some(socket), _) => {
                        let selectors =
                            spiffe::Selectors::parse(selectors).map_err(ConfigError::Selector)?;
                        Ok(IdentitySource::Spiffe {
                            api: spiffe::Api::Delegated(selectors),
                            socket,
                        })
                    }
                    (None, Some(socket)) => {
                        Ok(IdentitySource::Spiffe { api: spiffe::Api::Workload, socket })
                    }
                    (None, None) => Err(ConfigError::NoAgentSocket),
                }
            }
            SourceKind::Files => Ok(IdentitySource::Files(self.svid_dir)),
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
