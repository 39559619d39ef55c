//! The flags, their environment variables and their help.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgAction, Args, ValueEnum};
use ipnet::IpNet;

use super::NodeName;
use super::http::HttpArgs;
use crate::bpf::Feature;
use crate::identity::{KeyType, TrustDomain};
use crate::telemetry::{access, logs};

/// Which daemon: several of them, with different node names, can share a host.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// Name of this node [default: the host's name]
    ///
    /// One daemon runs per node name. NodeWorkload objects with `spec.node` are enrolled by the
    /// daemon of that name only.
    #[arg(long, env = "MTLS_NODE", value_name = "NAME")]
    pub node: Option<NodeName>,

    /// Directory of running state: <DIR>/<node>/admin.sock and its lock
    #[arg(long, env = "MTLS_RUN_DIR", value_name = "DIR", default_value = "/run/mtls-daemon")]
    pub run_dir: PathBuf,
}

/// Settings of the whole mesh: the same on every node, or nodes will not understand each other.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Mesh")]
pub struct MeshArgs {
    /// Trust domain of every identity in this mesh: spiffe://<TD>/ns/<namespace>/sa/<account>
    #[arg(
        long,
        env = "MTLS_TRUST_DOMAIN",
        value_name = "TD",
        default_value = "cluster.local",
        value_parser = trust_domain
    )]
    pub trust_domain: TrustDomain,

    /// Another name of the trust domain, accepted from peers (repeatable; comma-separated in the
    /// environment)
    #[arg(
        long,
        env = "MTLS_TRUST_DOMAIN_ALIAS",
        value_name = "TD",
        value_delimiter = ',',
        value_parser = trust_domain
    )]
    pub trust_domain_alias: Vec<TrustDomain>,

    /// Namespace whose policies hold for the whole mesh
    #[arg(
        long,
        env = "MTLS_ROOT_NAMESPACE",
        value_name = "NS",
        default_value = "istio-system",
        value_parser = NonEmptyStringValueParser::new()
    )]
    pub root_namespace: String,

    /// Use mTLS to every endpoint that speaks it, unless a DestinationRule says otherwise
    ///
    /// With false, every connection without a DestinationRule leaves in the clear.
    #[arg(
        long,
        env = "MTLS_ENABLE_AUTO_MTLS",
        value_name = "BOOL",
        default_value_t = true,
        action = ArgAction::Set
    )]
    pub enable_auto_mtls: bool,

    /// Range in which an unknown address is never assumed to be outside the mesh (repeatable;
    /// comma-separated in the environment)
    ///
    /// Connections to such addresses go through the daemon, which looks them up; they do not bypass
    /// it because a map was late.
    #[arg(
        long,
        env = "MTLS_MESH_RANGE",
        value_name = "CIDR",
        value_delimiter = ',',
        default_values = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"],
        value_parser = cidr
    )]
    pub mesh_range: Vec<IpNet>,
}

/// The flags of `mtls-daemon run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub node: NodeArgs,

    /// Directory of *.yaml and *.yml files with workloads, services and policies; changes in it take
    /// effect at once
    #[arg(
        long,
        env = "MTLS_CONFIG_DIR",
        value_name = "DIR",
        default_value = "/etc/mtls-daemon/config.d"
    )]
    pub config_dir: PathBuf,

    /// Directory of state that outlives the daemon
    #[arg(
        long,
        env = "MTLS_STATE_DIR",
        value_name = "DIR",
        default_value = "/var/lib/mtls-daemon"
    )]
    pub state_dir: PathBuf,

    /// Directory of the embedded CA's key and certificate; made when it is not there. Nodes that
    /// share it trust each other [default: <state-dir>/ca]
    #[arg(long, env = "MTLS_CA_DIR", value_name = "DIR")]
    pub ca_dir: Option<PathBuf>,

    #[command(flatten)]
    pub http: HttpArgs,

    /// Do as on a kernel that lacks this (repeatable; comma-separated in the environment). For tests:
    /// docs/kernels.md
    #[arg(
        long,
        hide = true,
        env = "MTLS_WITHOUT_KERNEL_FEATURE",
        value_name = "FEATURE",
        value_delimiter = ','
    )]
    pub without_kernel_feature: Vec<Feature>,

    /// Threads that relay connections, at most 16 [default: one per CPU, at most 16]
    #[arg(long, env = "MTLS_WORKERS", value_name = "N", value_parser = super::workers)]
    pub workers: Option<NonZeroUsize>,

    /// How long to wait for the first bytes of a client that may or may not speak mTLS
    ///
    /// Applies to PERMISSIVE ports and to clients that the mesh does not know. A protocol in which
    /// the server speaks first starts after this time for such a client.
    #[arg(
        long,
        env = "MTLS_DETECT_TIMEOUT",
        value_name = "DURATION",
        default_value = "100ms",
        value_parser = short_duration
    )]
    pub detect_timeout: Duration,

    /// How long to wait for the handshake of a client that is known to speak mTLS
    #[arg(
        long,
        env = "MTLS_MTLS_WAIT",
        value_name = "DURATION",
        default_value = "5s",
        value_parser = short_duration
    )]
    pub mtls_wait: Duration,

    /// Lifetime of the certificates that workloads get; renewed at half of it
    #[arg(
        long,
        env = "MTLS_SVID_LIFETIME",
        value_name = "DURATION",
        default_value = "24h",
        value_parser = svid_lifetime
    )]
    pub svid_lifetime: Duration,

    /// Type of the keys that workloads get, and of the CA's own key when that is made
    ///
    /// A CA that is there keeps its key: to have RSA throughout, begin with it.
    #[arg(
        long,
        env = "MTLS_KEY_TYPE",
        value_name = "TYPE",
        value_enum,
        default_value = "ecdsa-p256"
    )]
    pub key_type: KeyType,

    /// Whether a peer of the mesh that comes back may resume its TLS session
    ///
    /// What it showed is judged again every time: time, trust bundle, revocation, identity, policy.
    #[arg(
        long,
        env = "MTLS_SESSION_RESUMPTION",
        value_name = "on|off",
        value_enum,
        default_value = "on"
    )]
    pub session_resumption: OnOff,

    /// Address of GET /metrics, /healthz/ready and /healthz/live, or off
    #[arg(
        long,
        env = "MTLS_HTTP_ADDRESS",
        value_name = "ADDR|off",
        default_value = "127.0.0.1:15020"
    )]
    pub http_address: HttpAddress,

    /// Where to write one JSON line per connection: stdout, off, or a file (opened anew on SIGHUP)
    #[arg(long, env = "MTLS_ACCESS_LOG", value_name = "stdout|off|FILE", default_value = "stdout")]
    pub access_log: access::Sink,

    /// Format of the daemon's own log, on stderr
    #[arg(
        long,
        env = "MTLS_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value = "text"
    )]
    pub log_format: logs::Format,

    /// Level of the daemon's own log, or directives such as info,mtls_daemon::proxy=debug [default:
    /// RUST_LOG, else info]
    #[arg(long, env = "MTLS_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<logs::Level>,

    /// How long open connections may go on after SIGTERM; a second signal ends them at once
    #[arg(
        long,
        env = "MTLS_DRAIN",
        value_name = "DURATION",
        default_value = "5s",
        value_parser = drain
    )]
    pub drain: Duration,

    /// How old a connection may become, so that its ends show their certificates anew [default: as old as
    /// they like]
    ///
    /// HTTP ends between two requests; what still goes on so much later as --drain says is reset. Up to a
    /// tenth less, so that not all end together.
    #[arg(
        long,
        env = "MTLS_MAX_CONNECTION_AGE",
        value_name = "DURATION",
        value_parser = connection_age
    )]
    pub max_connection_age: Option<Duration>,

    #[command(flatten)]
    pub identity: super::IdentityArgs,

    #[command(flatten)]
    pub federation: super::FederationArgs,

    #[command(flatten)]
    pub revocation: super::RevocationArgs,

    // Last: the flags after it would stand under its heading.
    #[command(flatten)]
    pub mesh: MeshArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    On,
    Off,
}

/// `--http-address`: an address, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpAddress(pub Option<SocketAddr>);

impl FromStr for HttpAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Self(None));
        }
        text.parse().map(|address| Self(Some(address))).map_err(
            |_| "expected ADDRESS:PORT, for example 127.0.0.1:15020 or [::1]:15020, or off",
        )
    }
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::configured(text).map_err(|error| error.to_string())
}

fn cidr(text: &str) -> Result<IpNet, String> {
    let range: IpNet = text
        .parse()
        .map_err(|_| "expected an address range such as 10.0.0.0/8 or fd00::/8".to_owned())?;
    if range.trunc() != range {
        return Err(format!(
            "it has address bits beyond its prefix; did you mean {}?",
            range.trunc()
        ));
    }
    Ok(range)
}

fn short_duration(text: &str) -> Result<Duration, String> {
    duration(text, Duration::from_millis(1), Duration::from_secs(60))
}

fn svid_lifetime(text: &str) -> Result<Duration, String> {
    // Shorter ones would expire while a peer's clock is still a moment behind.
    duration(text, Duration::from_secs(5), Duration::from_secs(90 * 24 * 3600))
}

fn drain(text: &str) -> Result<Duration, String> {
    duration(text, Duration::ZERO, Duration::from_secs(24 * 3600))
}

fn connection_age(text: &str) -> Result<Duration, String> {
    duration(text, Duration::from_secs(1), Duration::from_secs(365 * 24 * 3600))
}

pub(super) fn duration(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; expected a duration such as 100ms, 5s or 24h"))?;
    if duration < least || duration > most {
        let [least, most] = [least, most].map(humantime::format_duration);
        return Err(format!("it must lie between {least} and {most}"));
    }
    Ok(duration)
}
