//! One request by real curl, and what the server's application, the daemon and the wire say of it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::curl::{Curl, get};
use crate::packet::Flow;
use crate::walkthrough::{Link, Request, Town};
use crate::world::SERVICE_PORT;

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
    pub curl: Curl,
    /// X-Forwarded-Client-Cert as the application read and echoed it.
    pub header: Option<String>,
    /// The client's identity in the access log of the server's daemon, which is asked when the
    /// request crossed encrypted.
    pub logged: Option<String>,
    pub wire: Crossing,
    /// The connection as it crossed.
    pub flow: Option<Flow>,
}

impl Attempt {
    /// The client's URI in the header.
    pub fn uri(&self) -> Option<&str> {
        self.header.as_deref()?.split([';', ',']).find_map(|pair| pair.strip_prefix("URI="))
    }

    /// What differs from what `request` expects, in words; nothing when all agrees.
    pub fn differs(&self, request: &Request) -> Option<String> {
        let expected = request.expected;
        if (self.curl.code, self.curl.exit) != (expected.code, expected.exit) {
            let Curl { code, exit, said, .. } = &self.curl;
            return Some(format!("HTTP {code:03}, curl's exit {exit}: {said}"));
        }
        if expected.code == 403 && self.curl.body.trim() != "RBAC: access denied" {
            return Some(format!("another page for 403: {:?}", self.curl.body));
        }
        if let Some(uri) = request.uri()
            && self.uri() != uri.as_deref()
        {
            return Some(format!("the application read URI={:?}, not {uri:?}", self.uri()));
        }
        let mutual = match (expected.link, self.wire) {
            (Link::None, _) | (Link::NotInTheClear, Crossing::Encrypted | Crossing::Nothing) => {
                return None;
            }
            (Link::NotInTheClear, Crossing::Clear) => {
                return Some("the request crossed in the clear".into());
            }
            (Link::Mutual, _) => true,
            (Link::Clear, _) => false,
            (Link::Either, wire) => wire == Crossing::Encrypted,
        };
        let wanted = if mutual { Crossing::Encrypted } else { Crossing::Clear };
        let identity = mutual.then(|| request.identity());
        if self.wire != wanted {
            Some(format!("{} on the wire, not {wanted}", self.wire))
        } else if self.logged != identity {
            Some(format!("the access log says {:?}, not {identity:?}", self.logged))
        } else if expected.link == Link::Either && self.uri() != identity.as_deref() {
            Some(format!("the application read URI={:?}, not {identity:?}", self.uri()))
        } else {
            None
        }
    }
}

/// Makes the request, and asks everybody about it.
///
/// # Errors
/// When something that should have been said about it was not. How the request ended is a result.
pub fn attempt(town: &Town, request: &Request, family: Family) -> Result<Attempt> {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let prefix = &town.world.bed.prefix;
    let canary = format!("canary-{prefix}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let client = town.client(request.from);
    let (port, target) = request.ports;
    // An enrolled client uses the service's address. Nobody translates it for others here, so they
    // are given a pod's, as a cluster's load balancer would; so is who asks for a pod's own port.
    let direct = !town.member("sleep", request.from).enrolled || port != SERVICE_PORT;
    let to = match (direct, family) {
        (false, _) => town.service(request.to, family, port),
        (true, Family::V4) => town.next(request.to).v4(target),
        (true, Family::V6) => town.next(request.to).v6(target),
    };
    let (mark, seen) = (town.world.b().mark(), town.capture.flows()?.len());
    let curl = get(client, &format!("httpbin.{}", request.to), port, to, request.path, &canary)?;

    let flows = town.capture.flows()?;
    let own: Vec<&Flow> = flows.iter().skip(seen).filter(|f| client.has(f.client.ip())).collect();
    ensure!(own.len() < 2, "{} connections crossed for one request", own.len());
    let wire = match own.first() {
        Some(flow) if flow.holds(canary.as_bytes())? => Crossing::Clear,
        Some(flow) if !flow.to_server.bytes()?.is_empty() => Crossing::Encrypted,
        _ => Crossing::Nothing,
    };
    let logged = match own.first() {
        Some(flow) if wire == Crossing::Encrypted && curl.code != 503 => {
            let to = flow.server.to_string();
            let line = town.world.b().logged(mark, &format!("about {to}"), |line| {
                line["direction"] == "inbound"
                    && line["destination"]["address"] == to
                    && ip_of(&line["source"]["address"]).is_some_and(|ip| client.has(ip))
            })?;
            let mutual = line["security"] == "mutual_tls";
            line["source"]["identity"].as_str().filter(|_| mutual).map(str::to_owned)
        }
        _ => None,
    };
    let header = if curl.code == 200 && request.path == "/headers" {
        let echo = curl.echo().context("httpbin's answer")?;
        echo["headers"]["X-Forwarded-Client-Cert"].as_str().map(str::to_owned)
    } else {
        None
    };
    Ok(Attempt { curl, header, logged, wire, flow: own.first().map(|&flow| flow.clone()) })
}

fn ip_of(value: &Value) -> Option<IpAddr> {
    Some(value.as_str()?.parse::<std::net::SocketAddr>().ok()?.ip())
}
