//! The answer to `GET /status`: the same structure that `mtls-daemon status -o json` prints.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// One daemon, as it is now. Times are RFC 3339 in UTC. Never holds a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub node: String,
    pub pid: u32,
    pub version: String,
    pub started: String,
    pub ready: bool,
    /// Why it is not ready: what is still awaited.
    pub awaited: Vec<String>,
    pub config: ConfigStatus,
    pub workloads: Vec<WorkloadStatus>,
    /// AuthorizationPolicy objects that select a workload of this node.
    #[serde(default)]
    pub policies: Vec<PolicyStatus>,
    pub svids: Vec<SvidStatus>,
    #[serde(default)]
    pub trust: TrustStatus,
    /// Other trust domains that are configured, or that the source of SVIDs trusts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub federation: Vec<FederatedStatus>,
    #[serde(default)]
    pub revocation: RevocationStatus,
    pub kernel: KernelStatus,
    pub connections: ConnectionsStatus,
}

/// The configuration in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigStatus {
    pub dir: PathBuf,
    pub generation: u64,
    pub loaded_at: String,
    /// Why the newest configuration was refused; None when it is the one in force.
    pub last_error: Option<String>,
    /// The objects that `last_error` is about.
    #[serde(default)]
    pub refused: Vec<RefusedStatus>,
    pub warnings: Vec<String>,
}

/// One reason why an object, or a file, was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedStatus {
    /// None: it could not be read so far.
    pub kind: Option<String>,
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub file: String,
    /// From 1; None: the file as a whole.
    pub line: Option<u32>,
    /// For example `spec.mtls.mode`.
    pub field: Option<String>,
    /// Stable, for example `E_FIELD_VALUE` (docs/configuration.md).
    pub code: String,
    pub message: String,
    /// What is in force in its place.
    pub instead: String,
}

/// A workload that this node's daemon is to enrol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadStatus {
    /// `namespace/name`.
    pub workload: String,
    pub identity: String,
    /// None: it is in the host's own.
    pub network_namespace: Option<PathBuf>,
    /// What it is known by there.
    #[serde(default)]
    pub cgroup: Option<String>,
    /// None: there is no such cgroup now, so nobody connects as this workload.
    #[serde(default)]
    pub cgroup_id: Option<u64>,
    pub state: WorkloadState,
    /// Why it is pending or refused, or why nobody connects as this workload although it is enrolled.
    pub reason: Option<String>,
    pub addresses: Vec<IpAddr>,
    /// The daemon's listeners in the workload's network namespace, by what they are for (`outbound`,
    /// `inbound`).
    pub ports: BTreeMap<String, u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadState {
    Enrolled,
    /// Tried again: its namespace is not there yet, for example.
    Pending,
    /// Not without a change of configuration.
    Refused,
}

impl WorkloadState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Pending => "pending",
            Self::Refused => "refused",
        }
    }
}

/// One AuthorizationPolicy in force on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// `namespace/name`.
    pub policy: String,
    /// `ALLOW`, `DENY`, `AUDIT` or `CUSTOM`.
    pub action: String,
    pub dry_run: bool,
    /// Why the object was refused: what it selects is denied.
    pub refused: Option<String>,
    /// What is not enforced as written on connections that are not HTTP.
    pub differs: Vec<String>,
    /// `namespace/name` of those that it selects.
    pub workloads: Vec<String>,
}

/// The certificate of one identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SvidStatus {
    pub identity: String,
    /// Where SVIDs come from, for example `embedded`.
    pub source: String,
    /// None until the first one was issued.
    pub serial: Option<String>,
    /// Distinguished name of the signer.
    #[serde(default)]
    pub issuer: Option<String>,
    pub not_before: Option<String>,
    pub not_after: Option<String>,
    /// When the issuer is asked next. None while it is being asked (and from a daemon that does not
    /// tell).
    #[serde(default)]
    pub next_renewal: Option<String>,
    /// The issuer's last error, until it succeeds again.
    pub last_error: Option<String>,
}

/// Whom the node's identities believe as CAs of their own trust domain: shows how far a new root has
/// come.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TrustStatus {
    pub trust_domain: String,
    /// Of this node, that have an SVID.
    pub identities: usize,
    pub roots: Vec<RootStatus>,
    /// Why a restarted daemon would not know them.
    pub problem: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootStatus {
    /// Distinguished name.
    pub subject: String,
    /// Of the certificate in DER: its fingerprint, in lower-case hex.
    pub sha256: String,
    pub not_after: Option<String>,
    /// How many identities believe it.
    pub identities: usize,
}

/// One other trust domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FederatedStatus {
    pub trust_domain: String,
    /// Where its bundle comes from.
    pub origin: String,
    /// CA certificates that are believed for it. 0: nobody of it is believed.
    pub authorities: usize,
    pub sequence: Option<u64>,
    /// When the bundle was last read or fetched without an error. None: never, or nobody tells.
    pub confirmed: Option<String>,
    /// Why a newer one is not used.
    pub last_error: Option<String>,
}

/// What is known of revoked certificates.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RevocationStatus {
    /// Whoever no list speaks of is refused.
    pub required: bool,
    /// An older list of the CA's refuses everybody.
    pub max_age_seconds: Option<u64>,
    /// The CA's, the newest that was verified.
    pub list: Option<RevocationListStatus>,
    /// Those in `--crl-file`.
    pub files: Vec<CrlStatus>,
    /// What is wrong with the list, or with these files.
    pub problems: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationListStatus {
    pub number: u64,
    pub entries: usize,
    /// When the CA signed it.
    pub issued: String,
    pub age_seconds: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrlStatus {
    pub file: String,
    pub issuer: String,
    pub entries: usize,
    pub this_update: String,
    pub next_update: String,
    pub age_seconds: i64,
    /// Until its issuer's certificates are refused. Negative: they are.
    pub seconds_left: i64,
}

/// The programs in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KernelStatus {
    /// Name of each program and where it is attached.
    pub programs: BTreeMap<String, String>,
    /// Instructions that the verifier went through to accept each program. Not there on kernels that do
    /// not tell (before Linux 5.16).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub instructions: BTreeMap<String, u32>,
    /// Features of newer kernels that this one is worked without (docs/kernels.md).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<String>,
    /// Tables without room, and what goes through the daemon for that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub full: Vec<String>,
    /// Connections by what the programs decided.
    pub decisions: BTreeMap<String, u64>,
}

/// Connections open now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConnectionsStatus {
    pub open_inbound: u64,
    pub open_outbound: u64,
}

/// A time as `Status` has it: RFC 3339, UTC, whole seconds.
pub fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
