//! One request by curl, and what the daemons and the wire say about it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::curl::curl;
use crate::daemon::Daemon;
use crate::demo::Row;
use crate::packet::Flow;
use crate::wire::Capture;
use crate::world::{SERVICE_PORT, TARGET_PORT, World};

/// Which addresses are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// How a request crossed the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crossing {
    /// Bytes crossed, and the request's canary was not among them.
    Encrypted,
    /// The canary was there to read.
    Clear,
    /// No byte of a connection crossed.
    Nothing,
}

impl std::fmt::Display for Crossing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Encrypted => "encrypted",
            Self::Clear => "in the clear",
            Self::Nothing => "nothing",
        })
    }
}

/// What came of one request.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// HTTP status code; 0 for none.
    pub code: u16,
    /// curl's exit code.
    pub exit: i32,
    pub curl_said: String,
    /// The client's identity, as the daemon of the server says (the client's own daemon when the
    /// server is not enrolled). None: plaintext, or no daemon on either side.
    pub identity: Option<String>,
    /// What that log says of the connection's security; empty when there is no such log.
    pub security: String,
    /// Whose access log the identity is from.
    pub witness: &'static str,
    pub wire: Crossing,
    /// The connection as it crossed.
    pub flow: Option<Flow>,
}

/// Whether a pod of the shared topology is enrolled.
fn enrolled(pod: &str) -> bool {
    ["sleep-full", "httpbin-full", "httpbin-partial"].contains(&pod)
}

fn ip_of(value: &Value) -> Option<std::net::IpAddr> {
    Some(value.as_str()?.parse::<SocketAddr>().ok()?.ip())
}

/// Makes the request of `row`, and asks the daemons and the wire about it.
///
/// # Errors
/// When something that should have been said about it was not. How the request ended is a result.
pub fn attempt(world: &World, capture: &Capture, row: &Row, family: Family) -> Result<Attempt> {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let canary = format!("canary-{}-{}", world.bed.prefix, NUMBER.fetch_add(1, Ordering::Relaxed));
    let client = world.pod(row.from.pod());
    let to = match (row.pod, family) {
        (None, Family::V4) => row.to.v4(SERVICE_PORT),
        (None, Family::V6) => row.to.v6(SERVICE_PORT),
        (Some(pod), Family::V4) => world.pod(pod).v4(TARGET_PORT),
        (Some(pod), Family::V6) => world.pod(pod).v6(TARGET_PORT),
    };
    let (mark_a, mark_b) = (world.a().mark(), world.b().mark());
    let seen = capture.flows()?.len();
    let curl = curl(client, &row.to.host(), to, "/headers", &canary)?;

    // Where it went: the client's daemon chose, or the client itself did.
    let chosen = match row.pod {
        Some(_) => Some(to),
        None => {
            let line = world.a().logged(mark_a, &format!("about {to}"), |line| {
                line["direction"] == "outbound" && line["destination"]["address"] == to.to_string()
            })?;
            line["destination"]["endpoint"].as_str().map(str::parse).transpose()?
        }
    };
    let server = chosen
        .and_then(|chosen| world.bed.pods.iter().find(|pod| pod.has(chosen.ip())))
        .map(|pod| pod.name.as_str());
    let from = [client.v4(0).ip(), client.v6(0).ip()];
    let (witness, line) = match server {
        Some(server) if enrolled(server) && curl.code == 200 => {
            ("server's daemon", inbound(world.b(), mark_b, &from, chosen)?)
        }
        _ if row.pod.is_none() => ("client's daemon", outbound(world.a(), mark_a, to)?),
        Some(server) if enrolled(server) => {
            ("server's daemon", inbound(world.b(), mark_b, &from, chosen)?)
        }
        _ => ("nobody", Value::Null),
    };
    let mutual = line["security"] == "mutual_tls";
    let identity = line["source"]["identity"].as_str().filter(|_| mutual).map(str::to_owned);

    let flows = capture.flows()?;
    let flow =
        flows.get(seen..).unwrap_or_default().iter().find(|flow| Some(flow.server) == chosen);
    let wire = match flow {
        Some(flow) if flow.holds(canary.as_bytes())? => Crossing::Clear,
        Some(flow) if !flow.to_server.bytes()?.is_empty() => Crossing::Encrypted,
        _ => Crossing::Nothing,
    };
    Ok(Attempt {
        code: curl.code,
        exit: curl.exit,
        curl_said: curl.said,
        identity,
        security: line["security"].as_str().unwrap_or_default().to_owned(),
        witness,
        wire,
        flow: flow.cloned(),
    })
}

fn inbound(
    daemon: &Daemon,
    mark: usize,
    from: &[std::net::IpAddr],
    to: Option<SocketAddr>,
) -> Result<Value> {
    let to = to.context("a connection has a destination")?;
    daemon.logged(mark, &format!("about a connection to {to}"), |line| {
        line["direction"] == "inbound"
            && line["destination"]["address"] == to.to_string()
            && ip_of(&line["source"]["address"]).is_some_and(|ip| from.contains(&ip))
    })
}

fn outbound(daemon: &Daemon, mark: usize, to: SocketAddr) -> Result<Value> {
    daemon.logged(mark, &format!("about a connection to {to}"), |line| {
        line["direction"] == "outbound" && line["destination"]["address"] == to.to_string()
    })
}
