//! One thing with an identity, addresses and labels, and where on this node it runs.

use std::collections::BTreeMap;
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
}

impl Workload {
    /// `namespace/name`, as logs and the command line print it.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A workload that this node's daemon enrols, and the kernel object that it is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeWorkload {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// Path of the network namespace, for example `/run/netns/web`.
    pub network_namespace: PathBuf,
    /// HTTP applications in it are told who their client is, in X-Forwarded-Client-Cert
    /// (policy.md 5.1).
    pub forward_client_cert: bool,
    /// One workload, all of its addresses: the `WorkloadEntry` objects merged.
    pub workload: Arc<Workload>,
}
