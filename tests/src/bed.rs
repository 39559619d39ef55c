//! Nodes, pods and the wire between the nodes.
//!
//! ```text
//!   node a (namespace)                        node b (namespace)
//!     bridge br0 10.244.1.1 ── wire ───────── bridge br0 10.244.2.1
//!      │        │            10.200.0.1/.2     │        │
//!     pod      pod                            pod      pod      10.244.<node>.<10…>
//! ```
//!
//! Every interface is made inside the namespace it lives in, so that no name can clash with the
//! host's or another testbed's, and all testbeds use the same addresses.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use crate::process::{self, Place, Process};
use crate::{cgroup, leftovers, netns};

/// The interface of a node that leads to the other node.
pub const WIRE: &str = "wire";

/// What a pod is to be.
#[derive(Debug, Clone)]
pub struct PodSpec {
    pub node: usize,
    pub name: String,
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

impl PodSpec {
    /// A pod with an address of each family in its node's range.
    pub fn new(node: usize, name: &str, host: u8) -> Self {
        let net = u8::try_from(node + 1).expect("a testbed has two nodes");
        Self {
            node,
            name: name.into(),
            v4: Some(Ipv4Addr::new(10, 244, net, host)),
            v6: Some(Ipv6Addr::new(0xfd00, 0x244, net.into(), 0, 0, 0, 0, host.into())),
        }
    }

    /// The same pod at other addresses, for example outside the mesh's ranges.
    #[must_use]
    pub fn at(mut self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> Self {
        (self.v4, self.v6) = (v4, v6);
        self
    }
}

/// One machine's side of the network. The daemon runs here.
#[derive(Debug, Clone)]
pub struct Node {
    /// Unique on this machine, as the daemon's pins are named after it.
    pub name: String,
    pub place: Place,
}

/// One pod: a network namespace and, where cgroup v2 is mounted, a cgroup.
#[derive(Debug, Clone)]
pub struct Pod {
    /// As the spec named it.
    pub name: String,
    /// Index of its node.
    pub node: usize,
    /// Name of its network namespace.
    pub netns: String,
    pub place: Place,
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

impl Pod {
    /// Its IPv4 address with `port`.
    ///
    /// # Panics
    /// When the spec gave it none.
    pub fn v4(&self, port: u16) -> SocketAddr {
        (self.v4.expect("the pod has an IPv4 address"), port).into()
    }

    /// Its IPv6 address with `port`.
    ///
    /// # Panics
    /// When the spec gave it none.
    pub fn v6(&self, port: u16) -> SocketAddr {
        (self.v6.expect("the pod has an IPv6 address"), port).into()
    }

    pub fn has(&self, address: IpAddr) -> bool {
        self.v4.map(IpAddr::from) == Some(address) || self.v6.map(IpAddr::from) == Some(address)
    }

    /// Runs `work` on a thread in the pod's network namespace.
    ///
    /// # Errors
    /// What `work` returns.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        netns::inside(&self.place.netns, work)
    }

    /// Starts `mtls-testbed` with `arguments` as a process of this pod.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn helper(&self, arguments: &[&str]) -> Result<Process> {
        let mut command =
            self.place.command(process::sibling("mtls-testbed", "MTLS_TESTBED_BIN")?)?;
        command.args(arguments);
        Process::start(format!("{} in {}", arguments.join(" "), self.name), command)
    }
}

/// Two nodes, their pods, and a directory; all gone when dropped.
pub struct Testbed {
    pub prefix: String,
    /// For configuration, state and sockets.
    pub directory: PathBuf,
    pub nodes: Vec<Node>,
    pub pods: Vec<Pod>,
    /// Leave it all standing when dropped.
    pub keep: bool,
}

impl Testbed {
    /// Two nodes, joined by a wire, with `pods`.
    ///
    /// # Errors
    /// When the caller is not root or the kernel lacks something; nothing is left behind.
    pub fn new(pods: &[PodSpec]) -> Result<Self> {
        static SWEPT: OnceLock<()> = OnceLock::new();
        let lock = leftovers::exclusively()?;
        if SWEPT.set(()).is_ok() {
            leftovers::sweep()?;
        }
        let prefix = leftovers::new_prefix();
        let directory = Path::new(leftovers::DIRECTORY).join(&prefix);
        // Made first, so that a failure further down drops it and cleans up.
        let mut bed = Self {
            directory,
            nodes: Vec::new(),
            pods: Vec::new(),
            keep: false,
            prefix: prefix.clone(),
        };
        for directory in [leftovers::nodes_directory(&bed.directory), bed.directory.join("config")]
        {
            fs::create_dir_all(directory)?;
        }
        for name in ["a", "b"] {
            let place = bed.place(&format!("node-{name}"))?;
            bed.nodes.push(Node { name: format!("{prefix}-{name}"), place });
        }
        for pod in pods {
            ensure!(pod.node < 2, "a testbed has two nodes");
            let place = bed.place(&pod.name)?;
            let netns = format!("{prefix}-{}", pod.name);
            let (name, node, v4, v6) = (pod.name.clone(), pod.node, pod.v4, pod.v6);
            bed.pods.push(Pod { name, node, netns, place, v4, v6 });
        }
        bed.make_namespaces()?;
        drop(lock);
        bed.connect()?;
        Ok(bed)
    }

    fn place(&self, name: &str) -> Result<Place> {
        let netns = netns::path(&format!("{}-{name}", self.prefix));
        Ok(Place { netns, cgroup: cgroup::make(&format!("{}/{name}", self.prefix))? })
    }

    fn places(&self) -> impl Iterator<Item = &Place> {
        self.nodes.iter().map(|node| &node.place).chain(self.pods.iter().map(|pod| &pod.place))
    }

    fn make_namespaces(&self) -> Result<()> {
        let mut script = String::new();
        for place in self.places() {
            let name = place.netns.file_name().context("a name")?.to_string_lossy();
            writeln!(script, "netns add {name}")?;
        }
        process::ip(None, &script)?;
        for place in self.places() {
            netns::inside(&place.netns, || {
                // Addresses are ours and unique: nothing to wait for.
                for scope in ["default", "all"] {
                    set(&format!("ipv6/conf/{scope}/accept_dad"), "0")?;
                    set(&format!("ipv6/conf/{scope}/disable_ipv6"), "0")?;
                }
                Ok(())
            })?;
        }
        for node in &self.nodes {
            netns::inside(&node.place.netns, || {
                set("ipv4/ip_forward", "1")?;
                set("ipv6/conf/all/forwarding", "1")
            })?;
        }
        Ok(())
    }

    fn connect(&self) -> Result<()> {
        let [a, b] = &self.nodes[..] else { unreachable!("two nodes are made in new()") };
        let b_name = b.place.netns.file_name().context("a name")?.to_string_lossy();
        process::ip(
            Some(&a.place.netns),
            &format!("link add {WIRE} type veth peer name {WIRE} netns {b_name}\n"),
        )?;
        for (index, node) in self.nodes.iter().enumerate() {
            process::ip(Some(&node.place.netns), &self.node_script(index)?)?;
        }
        for pod in &self.pods {
            process::ip(Some(&pod.place.netns), &pod_script(pod)?)?;
        }
        Ok(())
    }

    fn node_script(&self, index: usize) -> Result<String> {
        let (net, own, other) = (index + 1, index + 1, 2 - index);
        let mut script = format!(
            "link set lo up\n\
             link add br0 type bridge mcast_snooping 0\n\
             link set br0 up\n\
             addr add 10.244.{net}.1/24 dev br0\n\
             addr add fd00:244:{net}::1/64 dev br0 nodad\n\
             link set {WIRE} up\n\
             addr add 10.200.0.{own}/30 dev {WIRE}\n\
             addr add fd00:200::{own}/126 dev {WIRE} nodad\n\
             route add 10.244.{other}.0/24 via 10.200.0.{other}\n\
             route add fd00:244:{other}::/64 via fd00:200::{other}\n",
        );
        for (number, pod) in self.pods.iter().enumerate() {
            if pod.node == index {
                let netns = &pod.netns;
                writeln!(script, "link add p{number} type veth peer name eth0 netns {netns}")?;
                writeln!(script, "link set p{number} master br0 up")?;
            }
            // Addresses outside a node's range, each its own route.
            for address in outside(pod) {
                let via = match (pod.node == index, address) {
                    (true, _) => "dev br0".to_owned(),
                    (false, IpAddr::V4(_)) => format!("via 10.200.0.{other}"),
                    (false, IpAddr::V6(_)) => format!("via fd00:200::{other}"),
                };
                writeln!(script, "route add {address} {via}")?;
            }
        }
        Ok(script)
    }

    /// The pod that the spec called `name`.
    ///
    /// # Panics
    /// When there is none.
    pub fn pod(&self, name: &str) -> &Pod {
        let found = self.pods.iter().find(|pod| pod.name == name);
        found.unwrap_or_else(|| panic!("no pod {name} in the testbed"))
    }

    /// The configuration directory that the nodes' daemons read.
    pub fn config_directory(&self) -> PathBuf {
        self.directory.join("config")
    }
}

/// A pod's addresses that its node's range does not hold.
fn outside(pod: &Pod) -> impl Iterator<Item = IpAddr> {
    let net = pod.node + 1;
    let v4 = pod.v4.filter(|v4| v4.octets()[..3] != [10, 244, net as u8]);
    let v6 = pod.v6.filter(|v6| v6.segments()[..3] != [0xfd00, 0x244, net as u16]);
    v4.map(IpAddr::from).into_iter().chain(v6.map(IpAddr::from))
}

fn pod_script(pod: &Pod) -> Result<String> {
    let net = pod.node + 1;
    let mut script = String::from("link set lo up\nlink set eth0 up\n");
    if let Some(v4) = pod.v4 {
        writeln!(script, "addr add {v4}/24 dev eth0")?;
        writeln!(script, "route add default via 10.244.{net}.1 dev eth0 onlink")?;
    }
    if let Some(v6) = pod.v6 {
        writeln!(script, "addr add {v6}/64 dev eth0 nodad")?;
        writeln!(script, "route add default via fd00:244:{net}::1 dev eth0 onlink")?;
    }
    Ok(script)
}

/// Writes a sysctl of the calling thread's network namespace.
fn set(name: &str, value: &str) -> Result<()> {
    fs::write(format!("/proc/sys/net/{name}"), value).with_context(|| format!("sysctl net/{name}"))
}

impl Drop for Testbed {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = leftovers::remove(&self.prefix) {
            // A panic while panicking would hide the test's own words.
            eprintln!("testbed: {error:#}");
            assert!(std::thread::panicking(), "the testbed left something behind: {error:#}");
        }
    }
}
