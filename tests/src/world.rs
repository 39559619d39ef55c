//! The topology that most tests share.
//!
//! ```text
//!   node a                          wire        node b
//!     sleep-full     full/sleep       │           httpbin-full     full/httpbin
//!     sleep-legacy   legacy           │           httpbin-partial  partial/httpbin
//!                    (not enrolled)   │           plain-partial    not enrolled, same service
//!                                     │           httpbin-legacy   legacy, not enrolled
//! ```
//!
//! Services listen on 8000 at a virtual address of each family, and their pods on 80.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::bed::{Node, Pod, PodSpec, Testbed};
use crate::daemon::{Daemon, DaemonSpec};
use crate::mesh::{Mesh, Service};
use crate::process::Process;

/// The services' port.
pub const SERVICE_PORT: u16 = 8000;
/// The pods' port behind it.
pub const TARGET_PORT: u16 = 80;
/// The target ports of the TCP services `tcp-<port>`, declared by number: service port = target.
pub const TCP_PORTS: [u16; 4] = [9000, 9001, 9002, 9003];

/// A service of the shared topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    Full,
    Partial,
    Legacy,
}

impl To {
    pub const ALL: [Self; 3] = [Self::Full, Self::Partial, Self::Legacy];

    pub fn namespace(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Partial => "partial",
            Self::Legacy => "legacy",
        }
    }

    pub fn host(self) -> String {
        format!("httpbin.{}.svc.cluster.local", self.namespace())
    }

    /// Its virtual IPv4 address with `port`.
    pub fn v4(self, port: u16) -> SocketAddr {
        (Ipv4Addr::new(10, 96, 0, self as u8 + 1), port).into()
    }

    /// Its virtual IPv6 address with `port`.
    pub fn v6(self, port: u16) -> SocketAddr {
        (Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, self as u16 + 1), port).into()
    }
}

/// Two nodes with daemons, the pods above, HTTP servers running. Dropped in this order.
pub struct World {
    pub servers: Vec<Process>,
    /// Node a's and node b's.
    pub daemons: Vec<Daemon>,
    pub mesh: Mesh,
    pub bed: Testbed,
}

impl World {
    /// The shared topology, ready.
    ///
    /// # Errors
    /// When a part of it cannot be made; nothing is left behind.
    pub fn new() -> Result<Self> {
        Self::with(&[], |_, _| {}, |spec| spec)
    }

    /// The shared topology with more pods, changes to the configuration before the daemons read
    /// it, and changes to how the daemons run.
    ///
    /// # Errors
    /// As [`World::new`].
    pub fn with(
        more: &[PodSpec],
        configure: impl FnOnce(&mut Mesh, &Testbed),
        run: impl Fn(DaemonSpec) -> DaemonSpec,
    ) -> Result<Self> {
        let mut world = Self::without_daemons(more)?;
        configure(&mut world.mesh, &world.bed);
        world.start(run)?;
        Ok(world)
    }

    /// Other pods than the shared topology's, with their configuration, neither written nor run.
    ///
    /// # Errors
    /// As [`World::new`].
    pub fn of(pods: &[PodSpec], configure: impl FnOnce(&Testbed) -> Mesh) -> Result<Self> {
        let bed = Testbed::new(pods)?;
        let mesh = configure(&bed);
        Ok(Self { servers: Vec::new(), daemons: Vec::new(), mesh, bed })
    }

    /// Writes the configuration, and runs both nodes' daemons until they are ready.
    ///
    /// # Errors
    /// When one does not become ready.
    pub fn start(&mut self, run: impl Fn(DaemonSpec) -> DaemonSpec) -> Result<()> {
        self.mesh.write()?;
        // Both at once, as on two machines: the shared CA is made by one of them.
        for index in 0..2 {
            self.daemons.push(run(DaemonSpec::new(&self.bed, index)).spawn()?);
        }
        self.daemons.iter_mut().try_for_each(Daemon::ready)
    }

    /// Everything but the daemons; the configuration is prepared, and not yet written.
    ///
    /// # Errors
    /// As [`World::new`].
    pub fn without_daemons(more: &[PodSpec]) -> Result<Self> {
        let mut pods = vec![
            PodSpec::new(0, "sleep-full", 10),
            PodSpec::new(0, "sleep-legacy", 11),
            PodSpec::new(1, "httpbin-full", 20),
            PodSpec::new(1, "httpbin-partial", 21),
            PodSpec::new(1, "plain-partial", 22),
            PodSpec::new(1, "httpbin-legacy", 23),
        ];
        pods.extend_from_slice(more);
        let mut world = Self::of(&pods, shared_mesh)?;
        for name in ["httpbin-full", "httpbin-partial", "plain-partial", "httpbin-legacy"] {
            world.serve(name, "http", TARGET_PORT)?;
        }
        Ok(world)
    }

    /// Starts a server of `kind` in a pod, listening on both families, and waits until it does.
    ///
    /// # Errors
    /// When it does not listen.
    pub fn serve(&mut self, pod: &str, kind: &str, port: u16) -> Result<&Process> {
        let server = serve(self.bed.pod(pod), kind, port)?;
        self.servers.push(server);
        self.servers.last().context("it was just put there")
    }

    pub fn pod(&self, name: &str) -> &Pod {
        self.bed.pod(name)
    }

    pub fn node(&self, index: usize) -> &Node {
        &self.bed.nodes[index]
    }

    /// The clients' daemon.
    pub fn a(&self) -> &Daemon {
        &self.daemons[0]
    }

    /// The servers' daemon.
    pub fn b(&self) -> &Daemon {
        &self.daemons[1]
    }

    /// Changes the configuration and waits until both daemons have it in force.
    ///
    /// # Errors
    /// When one does not take it.
    pub fn change(&mut self, change: impl FnOnce(&mut Mesh)) -> Result<()> {
        change(&mut self.mesh);
        self.apply()
    }

    /// Writes the configuration and waits until both daemons have it in force.
    ///
    /// # Errors
    /// When one does not take it.
    pub fn apply(&self) -> Result<()> {
        let before: Vec<u64> =
            self.daemons.iter().map(Daemon::generation).collect::<Result<_>>()?;
        self.mesh.write()?;
        for (daemon, before) in self.daemons.iter().zip(before) {
            daemon.reloaded_after(before)?;
        }
        Ok(())
    }
}

/// Starts a server of `kind` in `pod`, and waits until it listens.
///
/// # Errors
/// When it does not.
pub fn serve(pod: &Pod, kind: &str, port: u16) -> Result<Process> {
    let process = pod.helper(&["serve", kind, "--port", &port.to_string()])?;
    process
        .stdout
        .find_json(0, Duration::from_secs(10), "that it listens", |event| {
            event["event"] == "listening"
        })
        .with_context(|| format!("{kind} in {}: {:?}", pod.name, process.stderr.all()))?;
    Ok(process)
}

/// Waits for an event that a server prints.
///
/// # Errors
/// When it does not come.
pub fn event(server: &Process, mark: usize, kind: &str) -> Result<Value> {
    server.stdout.find_json(mark, Duration::from_secs(20), kind, |event| event["event"] == kind)
}

fn shared_mesh(bed: &Testbed) -> Mesh {
    let mut mesh = Mesh::new(bed.config_directory());
    let [a, b] = [&bed.nodes[0], &bed.nodes[1]];
    mesh.enrol(a, bed.pod("sleep-full"), "full", "sleep", "sleep");
    mesh.enrol(b, bed.pod("httpbin-full"), "full", "httpbin", "httpbin");
    mesh.enrol(b, bed.pod("httpbin-partial"), "partial", "httpbin", "httpbin");
    // Known to the mesh as not speaking mTLS: a client or an endpoint in the clear.
    mesh.workload(bed.pod("plain-partial"), "partial", "httpbin", "default", false);
    mesh.workload(bed.pod("httpbin-legacy"), "legacy", "httpbin", "default", false);
    mesh.workload(bed.pod("sleep-legacy"), "legacy", "sleep", "default", false);
    for to in To::ALL {
        let mut ports = vec![(SERVICE_PORT, "http", "HTTP", TARGET_PORT)];
        let names = ["tcp-0", "tcp-1", "tcp-2", "tcp-3"];
        ports.extend(names.iter().zip(TCP_PORTS).map(|(name, port)| (port, *name, "TCP", port)));
        mesh.service(&Service {
            namespace: to.namespace(),
            name: "httpbin",
            addresses: vec![to.v4(0).ip(), to.v6(0).ip()],
            ports,
            selector: json!({"app": "httpbin"}),
        });
    }
    mesh
}
