//! A small mesh whose applications speak HTTP: two enrolled clients and one that is not; an
//! application that records its requests, and one that wants to hear nothing of its clients.

use std::net::{Ipv6Addr, SocketAddr};

use anyhow::Result;
use serde_json::{Value, json};

use crate::bed::{PodSpec, Testbed};
use crate::curl::{self, Curl};
use crate::daemon::DaemonSpec;
use crate::mesh::{Mesh, Service};
use crate::openssl;
use crate::recorder::Recorder;
use crate::talker::Talker;
use crate::world::World;

/// Declared HTTP.
pub const PORT: u16 = 8080;
/// Declared HTTP, and nobody listens.
pub const DEAD: u16 = 8081;
/// Declared HTTP/2.
pub const HTTP2: u16 = 8082;
/// In no service: nobody has declared anything.
pub const AUTO: u16 = 7000;
pub const XFCC: &str = "X-Forwarded-Client-Cert";
pub const CLIENT: &str = "spiffe://cluster.local/ns/web/sa/client";
pub const GATEWAY: &str = "spiffe://cluster.local/ns/edge/sa/gateway";
pub const SERVER: &str = "spiffe://cluster.local/ns/app/sa/server";

/// Running; dropped in this order.
pub struct Web {
    pub app: Recorder,
    pub auto: Recorder,
    pub quiet: Recorder,
    pub world: World,
}

/// The address of service number 1, the recording application's, or 2, with its HTTP port.
pub fn service(number: u8) -> SocketAddr {
    ([10, 96, 0, number], PORT).into()
}

/// The same in IPv6.
pub fn service_v6(number: u8) -> SocketAddr {
    (Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number.into()), PORT).into()
}

/// All of it, with daemons that `run` changes.
///
/// # Errors
/// When a part of it cannot be made; nothing is left behind.
pub fn start(run: impl Fn(DaemonSpec) -> DaemonSpec) -> Result<Web> {
    let pods = [
        PodSpec::new(0, "client", 10),
        PodSpec::new(0, "gateway", 11),
        PodSpec::new(0, "stranger", 12),
        PodSpec::new(1, "server", 20),
        PodSpec::new(1, "quiet", 21),
    ];
    let configure = |bed: &Testbed| {
        let mut mesh = Mesh::new(bed.config_directory());
        let [a, b] = [&bed.nodes[0], &bed.nodes[1]];
        mesh.enrol(a, bed.pod("client"), "web", "client", "client");
        mesh.enrol(a, bed.pod("gateway"), "edge", "gateway", "gateway");
        mesh.enrol(b, bed.pod("server"), "app", "server", "server");
        let quiet = bed.pod("quiet");
        let entries = mesh.workload(quiet, "app", "quiet", "quiet", true);
        let spec = json!({
            "node": b.name,
            "networkNamespace": quiet.netns,
            "workloadEntries": entries,
            "forwardClientCert": "off",
        });
        mesh.put("mtls-ebpf.dev/v1alpha1", "NodeWorkload", "app", "quiet", spec);
        for (name, number) in [("server", 1), ("quiet", 2)] {
            mesh.service(&Service {
                namespace: "app",
                name,
                addresses: vec![service(number).ip(), service_v6(number).ip()],
                ports: vec![
                    (PORT, "http", "HTTP", PORT),
                    (DEAD, "http-dead", "HTTP", DEAD),
                    (HTTP2, "http2", "HTTP2", HTTP2),
                ],
                selector: json!({"app": name}),
            });
        }
        mesh
    };
    let mut world = World::of(&pods, configure)?;
    let (app, auto, quiet) = (
        Recorder::start(world.pod("server"), PORT)?,
        Recorder::start(world.pod("server"), AUTO)?,
        Recorder::start(world.pod("quiet"), PORT)?,
    );
    world.start(run)?;
    Ok(Web { app, auto, quiet, world })
}

impl Web {
    /// The recording application's own address.
    pub fn server(&self, port: u16) -> SocketAddr {
        self.world.pod("server").v4(port)
    }

    /// # Errors
    /// When `client` cannot connect.
    pub fn talker(&self, client: &str, to: SocketAddr) -> Result<Talker> {
        Talker::connect(self.world.pod(client), to)
    }

    /// # Errors
    /// When curl is not installed. Its failures are results.
    pub fn curl(&self, client: &str, to: SocketAddr, path: &str, more: &[&str]) -> Result<Curl> {
        let url = format!("http://{to}{path}");
        let arguments: Vec<&str> = more.iter().copied().chain([url.as_str()]).collect();
        curl::run(self.world.pod(client), &arguments)
    }

    /// SHA-256 of the certificate that `client` shows, as openssl sees it.
    ///
    /// # Errors
    /// When it shows none.
    pub fn fingerprint(&self, client: &str) -> Result<String> {
        let to = self.world.pod(client).v4(1);
        openssl::look(self.world.pod("stranger"), to, &["-alpn", "istio"])?.fingerprint()
    }

    /// What the application is told of `client`, which has `identity`.
    ///
    /// # Errors
    /// As [`Web::fingerprint`].
    pub fn element(&self, client: &str, identity: &str) -> Result<String> {
        let hash = self.fingerprint(client)?;
        Ok(format!("By={SERVER};Hash={hash};Subject=\"\";URI={identity}"))
    }

    /// Puts an AuthorizationPolicy `app/list` in force.
    ///
    /// # Errors
    /// When a daemon does not take it.
    pub fn policy(&mut self, spec: &Value) -> Result<()> {
        self.world.change(|mesh| {
            mesh.put("security.istio.io/v1", "AuthorizationPolicy", "app", "list", spec.clone());
        })
    }

    /// Takes it away.
    ///
    /// # Errors
    /// When a daemon does not take it.
    pub fn without_policy(&mut self) -> Result<()> {
        self.world.change(|mesh| {
            mesh.remove("AuthorizationPolicy", "app", "list");
        })
    }
}
