//! Two hosts with units that share their namespaces with everything else: what tests of host workloads use.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::curl::{self, Curl};
use crate::host::Unit;
use crate::process::Process;
use crate::world::{World, event, serve};
use crate::{Daemon, DaemonSpec, Mesh, Pod, Testbed};

/// What `web` and `other` declare.
pub const WEB: u16 = 8080;
pub const OTHER: u16 = 9090;
/// What `web` listens on beside it.
pub const UNDECLARED: u16 = 7070;
/// In every request of [`get`].
pub const CANARY: &str = "canary-on-the-host";

/// `client` on host a; `web` and `other` on host b, at one address. Dropped in this order.
pub struct Hosts {
    pub servers: Vec<Process>,
    pub client: Unit,
    pub web: Unit,
    pub other: Unit,
    pub world: World,
}

impl Hosts {
    /// Configured; the configuration is not written, and nothing runs.
    ///
    /// # Errors
    /// As [`World::new`].
    pub fn prepare() -> Result<Self> {
        let world = World::of(&[], |bed| Mesh::new(bed.config_directory()))?;
        let bed = &world.bed;
        let client = Unit::new(bed, 0, "client", &[])?;
        let web = Unit::new(bed, 1, "web", &[WEB])?;
        let other = Unit::new(bed, 1, "other", &[OTHER])?;
        let mut hosts = Self { servers: Vec::new(), client, web, other, world };
        for unit in [&hosts.client, &hosts.web, &hosts.other] {
            unit.enrol(&mut hosts.world.mesh, &hosts.world.bed);
        }
        Ok(hosts)
    }

    /// With daemons and servers, the units under this mode.
    ///
    /// # Errors
    /// As [`World::new`].
    pub fn stand(mode: &str) -> Result<Self> {
        Self::stand_with(mode, |spec| spec)
    }

    /// The same with changes to how the daemons run.
    ///
    /// # Errors
    /// As [`World::new`].
    pub fn stand_with(mode: &str, run: impl Fn(DaemonSpec) -> DaemonSpec) -> Result<Self> {
        let mut hosts = Self::prepare()?;
        hosts.world.mesh.namespace_mode("metal", mode);
        hosts.world.start(run)?;
        hosts.serve()?;
        Ok(hosts)
    }

    /// Starts the units' servers.
    ///
    /// # Errors
    /// When one does not listen.
    pub fn serve(&mut self) -> Result<()> {
        for (unit, port) in [(&self.web, WEB), (&self.web, UNDECLARED), (&self.other, OTHER)] {
            self.servers.push(serve(&unit.pod, "http", port)?);
        }
        Ok(())
    }

    pub fn bed(&self) -> &Testbed {
        &self.world.bed
    }

    /// Marks in both access logs.
    pub fn marks(&self) -> (usize, usize) {
        (self.world.a().mark(), self.world.b().mark())
    }

    /// Waits for the two access log lines of a connection over mTLS, and checks whose it was.
    ///
    /// # Errors
    /// When it was somebody else's, or none.
    pub fn mutual(&self, marks: (usize, usize), from: &str, to: &str) -> Result<()> {
        let (out, into) = marks;
        let id = |name: &str| format!("spiffe://cluster.local/ns/metal/sa/{name}");
        for (daemon, mark, direction, workload) in
            [(self.world.a(), out, "outbound", from), (self.world.b(), into, "inbound", to)]
        {
            let line = daemon.logged(mark, direction, |line| {
                line["direction"] == direction && line["workload"] == format!("metal/{workload}")
            })?;
            ensure!(line["security"] == "mutual_tls", "{line}");
            let text = line.to_string();
            ensure!(text.contains(&id(from)) && text.contains(&id(to)), "{line}");
        }
        Ok(())
    }
}

/// One request, whose canary is looked for on the wire.
///
/// # Errors
/// When curl is not installed.
pub fn get(pod: &Pod, to: SocketAddr) -> Result<Curl> {
    curl::curl(pod, "web.example", to, "/", CANARY)
}

/// A process there that has a connection, until it ends.
///
/// # Errors
/// When it gets none.
pub fn open(pod: &Pod, to: SocketAddr) -> Result<Process> {
    talk(pod, to, &[])
}

/// The same, and it has not said a word. Its end is a reset.
///
/// # Errors
/// As [`open`].
pub fn open_silent(pod: &Pod, to: SocketAddr) -> Result<Process> {
    talk(pod, to, &["--silent"])
}

fn talk(pod: &Pod, to: SocketAddr, more: &[&str]) -> Result<Process> {
    let to = to.to_string();
    let process = pod.helper(&[&["talk", &to], more].concat())?;
    event(&process, 0, "open").with_context(|| format!("{to}: {:?}", process.stderr.all()))?;
    Ok(process)
}

/// What `status` says of a workload.
///
/// # Errors
/// When it does not know it.
pub fn entry(daemon: &Daemon, workload: &str) -> Result<Value> {
    let status = daemon.status()?;
    let workloads = status["workloads"].as_array().context("workloads")?;
    let found = workloads.iter().find(|entry| entry["workload"] == workload);
    Ok(found.with_context(|| format!("{workload} in {status}"))?.clone())
}
