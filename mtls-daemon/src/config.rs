//! What the daemon is told at start: read once from flags and environment, checked, and passed on
//! as values.

mod federation;
mod flags;
mod http;
mod identity;
mod node_name;
mod revocation;

pub use federation::FederationArgs;
pub use flags::{MeshArgs, NodeArgs, OnOff, RunArgs};
pub use http::HttpArgs;
pub use identity::{IdentityArgs, IdentitySource, SourceKind};
pub use node_name::{NodeName, NodeNameError};
pub use revocation::{RevocationArgs, RevocationMode, RevocationSettings};

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mtls_common::names::MAX_WORKERS;

use crate::bpf::Feature;
use crate::identity::{KeyType, TrustDomain};
use crate::mesh::snapshot::MeshSettings;
use crate::proxy::HttpSettings;
use crate::telemetry::{access, logs};

/// Longest path of a Unix socket: `sun_path` is 108 bytes with its final NUL.
const MAX_SOCKET_PATH: usize = 107;

/// A setting that is well formed by itself and still cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("this host's name cannot be the node's name ({0}); give one with --node")]
    Hostname(NodeNameError),
    #[error("cannot read this host's name from {HOSTNAME}: {0}; give one with --node")]
    NoHostname(std::io::Error),
    #[error(
        "the path of the admin socket, {}, is {} bytes long and may be at most {MAX_SOCKET_PATH}; \
         give a shorter --run-dir",
        .0.display(), .0.as_os_str().len()
    )]
    SocketPath(PathBuf),
    #[error(
        "--trust-domain-alias {0} is the trust domain itself; an alias is another name that its \
         certificates may have"
    )]
    Alias(TrustDomain),
    #[error("this node's name makes no SPIFFE ID: {0}; give another with --node")]
    NodeIdentity(crate::identity::SpiffeIdError),
    #[error(
        "{0} is this mesh's own trust domain or an alias of it: its bundle comes from the source of \
         certificates, not from --federated-bundle or --federated-endpoint"
    )]
    FederatedSelf(TrustDomain),
    #[error("the bundle of {0} is said to be in two places: give one")]
    FederatedTwice(TrustDomain),
    #[error(
        "--identity-source spiffe needs the agent's socket: --spiffe-endpoint-socket (or \
         SPIFFE_ENDPOINT_SOCKET), or --delegated-identity-socket"
    )]
    NoAgentSocket,
    #[error("--delegated-identity-selector: {0}")]
    Selector(String),
    #[error(
        "{0} needs somebody who says what is revoked: a CA server (--identity-source istio-ca) or, for \
         --revocation required, lists in files (--crl-file)"
    )]
    NoRevocationList(&'static str),
    #[error(
        "--ca-poll {} is not shorter than --revocation-max-age {}: between two polls everybody would be \
         refused; give a shorter --ca-poll or a longer --revocation-max-age",
        humantime::format_duration(*poll), humantime::format_duration(*most)
    )]
    PollTooSlow { poll: Duration, most: Duration },
    #[error("{0}")]
    LogLevel(String),
    #[error("{0} times --mesh-range; at most {MOST_RANGES}: give larger ranges")]
    MeshRanges(usize),
}

/// Two configurations' have a place in the kernel's table at once, and what takes in everything when
/// its other tables are full.
const MOST_RANGES: usize = 500;
const HOSTNAME: &str = "/proc/sys/kernel/hostname";

/// Where the running daemon of one node name has its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePaths {
    pub node: NodeName,
    /// `--run-dir` itself, which the daemons of several nodes share.
    pub run_base: PathBuf,
    /// `<run-dir>/<node>`.
    pub run_dir: PathBuf,
    /// `<run-dir>/<node>/admin.sock`.
    pub admin_socket: PathBuf,
}

/// Everything that `mtls-daemon run` was told.
#[derive(Debug, Clone)]
pub struct Config {
    pub node: NodeName,
    pub config_dir: PathBuf,
    /// One daemon's: it locks it. Created when it is not there.
    pub state_dir: PathBuf,
    /// `<run-dir>/<node>`, which the daemon creates.
    pub run_dir: PathBuf,
    /// `<run-dir>/<node>/admin.sock`.
    pub admin_socket: PathBuf,
    pub ca_dir: PathBuf,
    pub identity: IdentitySource,
    pub federation: crate::identity::federation::Settings,
    pub revocation: RevocationSettings,
    pub mesh: MeshSettings,
    pub http: HttpSettings,
    /// What is not to be used of this kernel.
    pub without_kernel_feature: Vec<Feature>,
    pub workers: NonZeroUsize,
    pub detect_timeout: Duration,
    pub mtls_wait: Duration,
    pub svid_lifetime: Duration,
    pub key_type: KeyType,
    pub session_resumption: bool,
    /// None: metrics and readiness are not served over HTTP.
    pub http_address: Option<SocketAddr>,
    pub access_log: access::Sink,
    pub log_format: logs::Format,
    pub log_level: logs::Level,
    pub drain: Duration,
    pub max_connection_age: Option<Duration>,
}

impl TryFrom<RunArgs> for Config {
    type Error = ConfigError;

    fn try_from(args: RunArgs) -> Result<Self, ConfigError> {
        let NodePaths { node, run_dir, admin_socket, .. } = args.node.try_into()?;
        let mesh: MeshSettings = args.mesh.try_into()?;
        let identity = args.identity.source(&node)?;
        Ok(Self {
            federation: args.federation.settings(&mesh, args.state_dir.clone())?,
            revocation: args.revocation.settings(&identity, &mesh.trust_domain_aliases)?,
            identity,
            config_dir: args.config_dir,
            ca_dir: args.ca_dir.unwrap_or_else(|| args.state_dir.join("ca")),
            state_dir: args.state_dir,
            node,
            run_dir,
            admin_socket,
            mesh,
            http: args.http.into(),
            without_kernel_feature: args.without_kernel_feature,
            workers: args.workers.unwrap_or_else(|| at_most(cpus())),
            detect_timeout: args.detect_timeout,
            mtls_wait: args.mtls_wait,
            svid_lifetime: args.svid_lifetime,
            key_type: args.key_type,
            session_resumption: args.session_resumption == OnOff::On,
            http_address: args.http_address.0,
            access_log: args.access_log,
            log_format: args.log_format,
            log_level: logs::Level::or_environment(args.log_level)
                .map_err(ConfigError::LogLevel)?,
            drain: args.drain,
            max_connection_age: args.max_connection_age,
        })
    }
}

impl TryFrom<NodeArgs> for NodePaths {
    type Error = ConfigError;

    fn try_from(args: NodeArgs) -> Result<Self, ConfigError> {
        let node = args.node.map_or_else(|| hostname(Path::new(HOSTNAME)), Ok)?;
        let run_dir = args.run_dir.join(node.as_str());
        let admin_socket = run_dir.join("admin.sock");
        if admin_socket.as_os_str().as_bytes().len() > MAX_SOCKET_PATH {
            return Err(ConfigError::SocketPath(admin_socket));
        }
        Ok(Self { node, run_base: args.run_dir, run_dir, admin_socket })
    }
}

impl TryFrom<MeshArgs> for MeshSettings {
    type Error = ConfigError;

    fn try_from(args: MeshArgs) -> Result<Self, ConfigError> {
        if let Some(alias) = args.trust_domain_alias.iter().find(|it| **it == args.trust_domain) {
            return Err(ConfigError::Alias(alias.clone()));
        }
        if args.mesh_range.len() > MOST_RANGES {
            return Err(ConfigError::MeshRanges(args.mesh_range.len()));
        }
        Ok(Self {
            trust_domain: args.trust_domain,
            trust_domain_aliases: args.trust_domain_alias,
            root_namespace: args.root_namespace.into(),
            enable_auto_mtls: args.enable_auto_mtls,
            mesh_ranges: args.mesh_range,
        })
    }
}

/// The kernel's own file and not gethostname(2): no foreign code, and the same UTS namespace.
fn hostname(file: &Path) -> Result<NodeName, ConfigError> {
    let name = std::fs::read_to_string(file).map_err(ConfigError::NoHostname)?;
    name.trim().to_ascii_lowercase().parse().map_err(ConfigError::Hostname)
}

fn cpus() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// The kernel programs know of [`MAX_WORKERS`] listeners a workload, and drop what is for more of them.
fn at_most(cpus: NonZeroUsize) -> NonZeroUsize {
    NonZeroUsize::new(MAX_WORKERS as usize).map_or(cpus, |most| cpus.min(most))
}

/// The value of `--workers`.
fn workers(text: &str) -> Result<NonZeroUsize, String> {
    let most = MAX_WORKERS as usize;
    match text.parse::<NonZeroUsize>() {
        Ok(count) if count.get() <= most => Ok(count),
        _ => Err(format!("{text} is no number from 1 to {most}")),
    }
}

#[cfg(test)]
mod tests;
