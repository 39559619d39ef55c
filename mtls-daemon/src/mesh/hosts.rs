//! Addresses of hosts: each declared port is one workload's, everything else is in the clear and nobody's.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::Workload;
use super::compile::{Direct, Policy};

/// Workloads that have only some ports of their addresses.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    list: Vec<Direct>,
    ports: HashMap<SocketAddr, usize>,
    addresses: HashSet<IpAddr>,
}

impl Hosts {
    pub fn add(&mut self, address: IpAddr, workload: &Arc<Workload>, policy: &Policy<'_>) {
        let index = self.index(workload).unwrap_or_else(|| {
            self.list.push(policy.direct(workload));
            self.list.len() - 1
        });
        self.addresses.insert(address);
        for port in workload.host_ports.iter().flat_map(|ports| ports.iter()) {
            self.ports.insert((address, *port).into(), index);
        }
    }

    fn index(&self, workload: &Workload) -> Option<usize> {
        let same =
            |known: &Workload| known.namespace == workload.namespace && known.name == workload.name;
        let is = |direct: &Direct| direct.workload.as_deref().is_some_and(same);
        // By a port of its own, where it has one: connections do not search.
        let port = workload.host_ports.as_ref().and_then(|ports| ports.first());
        let place = workload.addresses.first().zip(port);
        place
            .and_then(|(address, port)| self.ports.get(&SocketAddr::new(*address, *port)).copied())
            .filter(|index| is(&self.list[*index]))
            .or_else(|| self.list.iter().position(is))
    }

    /// What holds for connections straight to a workload's port. None: the host's, or no host's address.
    pub fn at(&self, address: SocketAddr) -> Option<&Direct> {
        self.ports.get(&address).map(|index| &self.list[*index])
    }

    pub fn of(&self, workload: &Workload) -> Option<&Direct> {
        workload.host_ports.as_ref()?;
        self.index(workload).map(|index| &self.list[index])
    }

    pub fn of_mut(&mut self, workload: &Workload) -> Option<&mut Direct> {
        workload.host_ports.as_ref()?;
        self.index(workload).map(|index| &mut self.list[index])
    }

    pub fn addresses(&self) -> impl Iterator<Item = &IpAddr> {
        self.addresses.iter()
    }

    /// Declared ports by address.
    pub fn by_address(&self) -> HashMap<IpAddr, Vec<(u16, &Direct)>> {
        let mut found: HashMap<IpAddr, Vec<(u16, &Direct)>> =
            self.addresses.iter().map(|address| (*address, Vec::new())).collect();
        for (place, index) in &self.ports {
            found.entry(place.ip()).or_default().push((place.port(), &self.list[*index]));
        }
        found
    }

    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.list.iter().filter_map(|direct| direct.workload.as_ref())
    }
}
