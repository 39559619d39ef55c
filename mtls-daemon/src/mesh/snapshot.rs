//! The immutable state of the mesh that the data path reads.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::plan::{InboundTable, OutboundRow};
use super::{InboundPlan, NodeWorkload, OutboundPlan, PeerKnowledge, Workload};
use crate::identity::TrustDomain;

/// Mesh-wide settings that configuration fixes at start.
#[derive(Debug, Clone)]
pub struct MeshSettings {
    pub trust_domain: TrustDomain,
    pub trust_domain_aliases: Vec<TrustDomain>,
    pub root_namespace: Arc<str>,
    pub enable_auto_mtls: bool,
    /// Addresses inside these ranges are never assumed to be outside the mesh.
    pub mesh_ranges: Vec<IpNet>,
}

/// Workloads, services and compiled policy of one configuration generation.
#[derive(Debug)]
pub struct Snapshot {
    pub generation: u64,
    pub settings: MeshSettings,
}

impl Snapshot {
    /// Nothing known: what a daemon with an empty configuration serves.
    pub fn empty(settings: MeshSettings) -> Self {
        Self { generation: 0, settings }
    }

    pub fn workload_at(&self, _address: IpAddr) -> Option<&Arc<Workload>> {
        todo!()
    }

    /// The workloads that this node's daemon enrols.
    pub fn node_workloads(&self) -> &[Arc<NodeWorkload>] {
        todo!()
    }

    /// Plans one outbound connection. `pick(n)` returns an index below `n` (random choice of an
    /// endpoint; a parameter so that tests choose).
    pub fn outbound(
        &self,
        _client: &Workload,
        _destination: SocketAddr,
        _pick: &mut dyn FnMut(usize) -> usize,
    ) -> OutboundPlan {
        todo!()
    }

    pub fn inbound(&self, _server: &Workload, _port: u16) -> InboundPlan {
        todo!()
    }

    pub fn peer_knowledge(&self, _address: IpAddr) -> PeerKnowledge {
        todo!()
    }

    /// Every address that always goes to the daemon unless an `OutboundRow` says otherwise:
    /// workloads' and services' addresses (they may lie outside the mesh ranges).
    pub fn addresses(&self) -> Vec<IpAddr> {
        todo!()
    }

    /// The kernel's outbound table for `client`.
    pub fn outbound_rows(&self, _client: &Workload) -> Vec<OutboundRow> {
        todo!()
    }

    /// The kernel's inbound table for `server`.
    pub fn inbound_table(&self, _server: &Workload) -> InboundTable {
        todo!()
    }
}
