//! Namespaces with clients (`sleep`) and servers (`httpbin`), enrolled or not.
//!
//! Clients live on node a and servers on node b, so that everything crosses the wire. A namespace's
//! servers are behind one service, `httpbin.<namespace>`, 8000 to 80 in the pods.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use serde_json::json;

use crate::bed::{Pod, PodSpec, Testbed};
use crate::daemon::DaemonSpec;
use crate::mesh::{Mesh, Service};
use crate::walkthrough::{Family, Walkthrough};
use crate::wire::Capture;
use crate::world::{SERVICE_PORT, TARGET_PORT, World};

/// One pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// `<app>-<namespace>` unless a namespace has two of one app.
    pub pod: &'static str,
    pub namespace: &'static str,
    /// `sleep` or `httpbin`; its label and, when it is enrolled, its service account.
    pub app: &'static str,
    pub enrolled: bool,
}

impl Member {
    pub const fn new(
        pod: &'static str,
        namespace: &'static str,
        app: &'static str,
        enrolled: bool,
    ) -> Self {
        Self { pod, namespace, app, enrolled }
    }

    fn node(&self) -> usize {
        usize::from(self.app != "sleep")
    }

    /// Puts it into the configuration as what it is.
    pub fn join(&self, mesh: &mut Mesh, bed: &Testbed) {
        let pod = bed.pod(self.pod);
        if self.enrolled {
            mesh.enrol(&bed.nodes[self.node()], pod, self.namespace, self.app, self.app);
        } else {
            mesh.workload(pod, self.namespace, self.app, "default", false);
        }
    }
}

/// The running town. Dropped in this order.
pub struct Town {
    pub capture: Capture,
    pub world: World,
    pub members: Vec<Member>,
    turn: AtomicUsize,
}

impl Town {
    /// Two nodes with daemons, the members' pods with their servers, and the wire captured.
    ///
    /// # Errors
    /// When a part of it cannot be made; nothing is left behind.
    pub fn of(walkthrough: &Walkthrough) -> Result<Self> {
        let mut town = Self::new(&walkthrough.members, |spec| spec)?;
        for (pod, port) in &walkthrough.servers {
            town.world.serve(pod, "http", *port)?;
        }
        Ok(town)
    }

    /// The same for any members, with changes to how the daemons run.
    ///
    /// # Errors
    /// As [`Town::of`].
    pub fn new(members: &[Member], run: impl Fn(DaemonSpec) -> DaemonSpec) -> Result<Self> {
        let host = |index: usize| u8::try_from(10 + index).expect("a town is small");
        let pods: Vec<PodSpec> = members
            .iter()
            .enumerate()
            .map(|(index, member)| PodSpec::new(member.node(), member.pod, host(index)))
            .collect();
        let servers: Vec<&str> = members
            .iter()
            .filter(|member| member.app != "sleep")
            .map(|member| member.pod)
            .collect();
        let configure = |bed: &Testbed| {
            let mut mesh = Mesh::new(bed.config_directory());
            for member in members {
                member.join(&mut mesh, bed);
            }
            for (namespace, app) in services(members) {
                mesh.service(&Service {
                    namespace,
                    name: app,
                    addresses: vec![
                        address(members, namespace, Family::V4, 0).ip(),
                        address(members, namespace, Family::V6, 0).ip(),
                    ],
                    ports: vec![(SERVICE_PORT, "http", "HTTP", TARGET_PORT)],
                    selector: json!({"app": app}),
                });
            }
            mesh
        };
        let mut world = World::of(&pods, configure)?;
        for server in servers {
            world.serve(server, "http", TARGET_PORT)?;
        }
        world.start(run)?;
        let capture = Capture::start(world.node(0))?;
        Ok(Self { capture, world, members: members.to_vec(), turn: AtomicUsize::new(0) })
    }

    /// The member that is the app of that namespace, the first of them.
    ///
    /// # Panics
    /// When there is none.
    pub fn member(&self, app: &str, namespace: &str) -> &Member {
        let is = |member: &&Member| member.app == app && member.namespace == namespace;
        self.members.iter().find(is).unwrap_or_else(|| panic!("no {app} in {namespace}"))
    }

    /// The client of a namespace.
    pub fn client(&self, namespace: &str) -> &Pod {
        self.world.pod(self.member("sleep", namespace).pod)
    }

    /// The pods behind a namespace's service.
    pub fn behind(&self, namespace: &str) -> Vec<&Pod> {
        let is = |member: &&Member| member.app != "sleep" && member.namespace == namespace;
        self.members.iter().filter(is).map(|member| self.world.pod(member.pod)).collect()
    }

    /// The address of a namespace's service, as an enrolled client uses it.
    pub fn service(&self, namespace: &str, family: Family, port: u16) -> SocketAddr {
        address(&self.members, namespace, family, port)
    }

    /// The pod that a service's address stands for, for those whom no daemon translates it: each in
    /// its turn, as a cluster's own load balancer would.
    pub fn next(&self, namespace: &str) -> &Pod {
        let behind = self.behind(namespace);
        behind[self.turn.fetch_add(1, Ordering::Relaxed) % behind.len()]
    }
}

/// Namespace and app of every service.
fn services(members: &[Member]) -> Vec<(&'static str, &'static str)> {
    let mut found: Vec<_> = members
        .iter()
        .filter(|member| member.app != "sleep")
        .map(|member| (member.namespace, member.app))
        .collect();
    found.dedup();
    found
}

fn address(members: &[Member], namespace: &str, family: Family, port: u16) -> SocketAddr {
    let found = services(members).iter().position(|service| service.0 == namespace);
    let number =
        u8::try_from(found.expect("a service in the namespace") + 1).expect("a small town");
    match family {
        Family::V4 => (Ipv4Addr::new(10, 96, 0, number), port).into(),
        Family::V6 => (Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number.into()), port).into(),
    }
}
