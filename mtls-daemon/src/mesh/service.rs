//! A name with virtual addresses and the endpoints behind it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::Workload;

/// A `ServiceEntry` (later: a Kubernetes Service) with its endpoints resolved.
#[derive(Debug, Clone)]
pub struct Service {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// First host is the one that logs, metrics and the default SNI use.
    pub hosts: Vec<Arc<str>>,
    /// Virtual addresses; none for a headless service.
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    pub endpoints: Vec<Endpoint>,
    /// `location: MESH_EXTERNAL`: auto mTLS never applies.
    pub external: bool,
    pub subject_alt_names: Vec<String>,
    /// Why no address of its hosts is known, where they are to be resolved.
    pub unresolved: Option<Arc<str>>,
}

impl Service {
    /// The host that logs show, or the object's name where it has none.
    pub fn display_name(&self) -> String {
        self.hosts.first().unwrap_or(&self.name).to_string()
    }
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    pub number: u16,
    pub name: Arc<str>,
    /// Upper case, for example `HTTP`, `TCP`; `UNSPECIFIED` when not declared.
    pub protocol: Arc<str>,
    pub target_port: Option<u16>,
}

/// One address behind a service.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub address: IpAddr,
    /// Named ports that override the service's target port.
    pub ports: BTreeMap<String, u16>,
    pub labels: BTreeMap<String, String>,
    pub service_account: Option<Arc<str>>,
    pub speaks_mtls: bool,
    pub ready: bool,
    pub workload: Option<Arc<Workload>>,
}
