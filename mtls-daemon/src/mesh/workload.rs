//! One thing with an identity, addresses and labels, and where on this node it runs.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::identity::SpiffeId;

/// A member of the mesh, or a known non-member, as a `WorkloadEntry` (later: a Pod) describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub service_account: Arc<str>,
    /// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    pub id: SpiffeId,
    pub labels: BTreeMap<String, String>,
    pub addresses: Vec<IpAddr>,
    /// Named workload (target) ports.
    pub ports: BTreeMap<String, u16>,
    /// It terminates and originates mesh mTLS (`security.istio.io/tlsMode: istio`).
    pub speaks_mtls: bool,
    /// Some: it is one process group of a host and has only these ports of its addresses; what else is
    /// there is the host's. None: its addresses are its own.
    pub host_ports: Option<Arc<[u16]>>,
}

impl Workload {
    /// `namespace/name`, as logs and the command line print it.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether connections to this port of its addresses are its own.
    pub fn has_port(&self, port: u16) -> bool {
        self.host_ports.as_deref().is_none_or(|ports| ports.contains(&port))
    }
}

/// Where on a node a workload runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// Path of a network namespace that it has to itself, for example `/run/netns/web`.
    Namespace(PathBuf),
    /// In the host's own network namespace.
    Host(Cgroup),
}

/// What a workload of the host is known by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Cgroup {
    /// A path below the cgroup v2 root, without a slash in front.
    Path(Arc<str>),
    /// A unit of the system's service manager, whichever slice it is in.
    Unit(Arc<str>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(path) => path.display().fmt(f),
            Self::Host(cgroup) => cgroup.fmt(f),
        }
    }
}

impl fmt::Display for Cgroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "cgroup {path}"),
            Self::Unit(unit) => write!(f, "unit {unit}"),
        }
    }
}

/// A workload that this node's daemon enrols, and the kernel object that it is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeWorkload {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub place: Place,
    /// HTTP applications in it are told who their client is, in X-Forwarded-Client-Cert
    /// (policy.md 5.1).
    pub forward_client_cert: bool,
    /// One workload, all of its addresses: the `WorkloadEntry` objects merged.
    pub workload: Arc<Workload>,
}
