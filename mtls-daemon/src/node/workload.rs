//! A workload as the node sees it: what `status` says of it, and what the kernel is told.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use mtls_common::flow::Address;
use mtls_common::workload::{self as abi, bypass};

use super::setup;
use crate::bpf::{BpfError, Bypasses};
use crate::identity::SpiffeId;
use crate::mesh::{NodeWorkload, Place, Snapshot};

/// How far a configured workload has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkloadState {
    Enrolled,
    /// Its namespace is not there yet.
    Pending(String),
    Refused(String),
}

/// One workload's line in `status`.
#[derive(Debug, Clone)]
pub struct WorkloadStatus {
    pub workload: String,
    pub identity: SpiffeId,
    pub place: Place,
    /// Of a host workload, as the kernel knows it now.
    pub cgroup_id: Option<u64>,
    /// Why the cgroup that is there now is not taken.
    pub cgroup_refused: Option<String>,
    pub state: WorkloadState,
    pub addresses: Vec<IpAddr>,
    pub outbound_port: Option<u16>,
    pub inbound_port: Option<u16>,
}

#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error("network namespace {path} does not exist (yet)")]
    Absent { path: String },
    #[error("{0}")]
    Refused(String),
    #[error("network namespace {path}: {error}")]
    Io { path: String, error: io::Error },
    #[error(transparent)]
    Setup(#[from] setup::SetupError),
    #[error(transparent)]
    Bpf(#[from] BpfError),
}

/// Destinations that are the daemon's unless a row says otherwise.
#[derive(Default, PartialEq, Eq, Clone)]
pub struct MeshAddresses {
    pub addresses: HashSet<IpAddr>,
    pub ranges: Vec<IpNet>,
}

impl MeshAddresses {
    pub fn contains(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
            || self.ranges.iter().any(|range| range.contains(&address))
    }
}

pub fn key(workload: &NodeWorkload) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}

pub fn status(wanted: &NodeWorkload, state: WorkloadState) -> WorkloadStatus {
    WorkloadStatus {
        workload: key(wanted),
        identity: wanted.workload.id.clone(),
        place: wanted.place.clone(),
        cgroup_id: None,
        cgroup_refused: None,
        state,
        addresses: wanted.workload.addresses.clone(),
        outbound_port: None,
        inbound_port: None,
    }
}

/// The addresses that the application sees as its own on a redirected connection.
pub fn shown(wanted: &NodeWorkload) -> abi::Workload {
    let first = |ipv4: bool| {
        let address = wanted.workload.addresses.iter().find(|address| address.is_ipv4() == ipv4);
        address.map_or(Address::default(), |address| Address::from(*address))
    };
    abi::Workload { address4: first(true), address6: first(false), ..abi::Workload::default() }
}

pub fn bypasses(snapshot: &Snapshot, wanted: &NodeWorkload) -> Bypasses {
    let answer = |untouched| if untouched { bypass::UNTOUCHED } else { bypass::REDIRECT };
    let workload = &wanted.workload;
    let table = snapshot.inbound_table(workload, wanted.forward_client_cert);
    let outbound = snapshot
        .outbound_rows(workload)
        .into_iter()
        .map(|row| ((Address::from(row.address), row.port), answer(row.untouched)))
        .collect();
    let inbound = table
        .exceptions
        .into_iter()
        .map(|port| (port, answer(!table.untouched_by_default)))
        .collect();
    Bypasses { outbound, inbound_untouched: table.untouched_by_default, inbound }
}
