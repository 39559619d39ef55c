//! Workloads of a host: a node's own namespace, and a cgroup there for each, as a service manager gives one
//! to a unit.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::bed::{Pod, Testbed};
use crate::cgroup;
use crate::mesh::Mesh;
use crate::process::Place;

/// The address that a node has on the wire.
pub fn v4(node: usize) -> IpAddr {
    Ipv4Addr::new(10, 200, 0, node as u8 + 1).into()
}

/// Its other one.
pub fn v6(node: usize) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 0, node as u16 + 1).into()
}

/// A workload of a node's host.
#[derive(Debug, Clone)]
pub struct Unit {
    pub name: String,
    pub node: usize,
    pub ports: Vec<u16>,
    /// Below the cgroup root.
    pub cgroup: String,
    directory: PathBuf,
    /// To run what pods run.
    pub pod: Pod,
}

impl Unit {
    /// A unit of node number `node`, whose cgroup is there already.
    ///
    /// # Errors
    /// When there are no cgroups to make.
    pub fn new(bed: &Testbed, node: usize, name: &str, ports: &[u16]) -> Result<Self> {
        let cgroup = format!("{}/{name}.service", bed.prefix);
        let root = cgroup::root().context("host workloads need cgroup v2 to be mounted")?;
        let unit = Self {
            name: name.into(),
            node,
            ports: ports.to_vec(),
            directory: root.join(&cgroup),
            pod: resident(bed, node, name, Some(root.join(&cgroup))),
            cgroup,
        };
        unit.start()?;
        Ok(unit)
    }

    /// As a service manager does when the unit starts.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn start(&self) -> Result<()> {
        fs::create_dir_all(&self.directory)
            .with_context(|| format!("making the cgroup {}", self.directory.display()))
    }

    /// As it does when the unit has stopped.
    ///
    /// # Errors
    /// When something in it survives.
    pub fn stop(&self) -> Result<()> {
        cgroup::remove(&self.directory)
    }

    pub fn v4(&self, port: u16) -> SocketAddr {
        (v4(self.node), port).into()
    }

    pub fn v6(&self, port: u16) -> SocketAddr {
        (v6(self.node), port).into()
    }

    /// `NodeWorkload` and its entries, in namespace `metal`, with a service account of its name.
    pub fn enrol(&self, mesh: &mut Mesh, bed: &Testbed) {
        let mut place = self.place(mesh);
        place["node"] = json!(bed.nodes[self.node].name);
        place["cgroup"] = json!(self.cgroup);
        mesh.put("mtls-ebpf.dev/v1alpha1", "NodeWorkload", "metal", &self.name, place);
    }

    /// The spec of its `NodeWorkload`, without a place.
    pub fn place(&self, mesh: &mut Mesh) -> Value {
        let entries = mesh.workload(&self.pod, "metal", &self.name, &self.name, true);
        json!({"ports": self.ports, "workloadEntries": entries})
    }
}

/// A process of the host that is no workload's: in the node's namespace, and in a cgroup of its own.
///
/// # Errors
/// When no cgroup can be made.
pub fn stranger(bed: &Testbed, node: usize) -> Result<Pod> {
    let cgroup = cgroup::make(&format!("{}/stranger-{node}.service", bed.prefix))?;
    Ok(resident(bed, node, &format!("stranger-{node}"), cgroup))
}

fn resident(bed: &Testbed, node: usize, name: &str, cgroup: Option<PathBuf>) -> Pod {
    let netns = bed.nodes[node].place.netns.clone();
    let (IpAddr::V4(v4), IpAddr::V6(v6)) = (v4(node), v6(node)) else {
        unreachable!("one of each family")
    };
    Pod {
        name: name.into(),
        node,
        netns: netns.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        place: Place { netns, cgroup },
        v4: Some(v4),
        v6: Some(v6),
    }
}
