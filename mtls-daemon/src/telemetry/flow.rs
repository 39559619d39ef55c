//! One connection, as it is logged and counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::tcp::Counters;
use crate::identity::SpiffeId;
use crate::mesh::{Service, Workload};
use crate::policy::Mode;
use crate::policy::authz::Verdict;
use crate::proxy::failure::Failure;
use crate::tls::verify::TlsSummary;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    Inbound,
    Outbound,
}

impl Direction {
    /// As logs and metrics spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// How the bytes crossed the wire between the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Security {
    MutualTls,
    /// TLS that the daemon originated for the application, to a server outside the mesh.
    OriginatedTls,
    Plaintext,
    /// The application's own TLS, relayed as it is.
    TlsPassthrough,
    /// Nothing was relayed.
    None,
}

impl Security {
    /// As the access log spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::OriginatedTls => "originated_tls",
            Self::Plaintext => "plaintext",
            Self::TlsPassthrough => "tls_passthrough",
            Self::None => "none",
        }
    }
}

/// Everything known about one connection. The proxy fills it in as it learns.
#[derive(Debug)]
pub struct FlowRecord {
    pub direction: Direction,
    /// The enrolled workload of this node.
    pub workload: Arc<Workload>,
    pub source: SocketAddr,
    pub source_workload: Option<Arc<Workload>>,
    /// Authenticated (or own) identity of the client side; None for plaintext.
    pub source_id: Option<SpiffeId>,
    /// The destination that the client asked for.
    pub destination: SocketAddr,
    /// Where the daemon connected to.
    pub endpoint: Option<SocketAddr>,
    pub destination_workload: Option<Arc<Workload>>,
    pub destination_id: Option<SpiffeId>,
    pub service: Option<Arc<Service>>,
    pub mode: Option<Mode>,
    pub security: Security,
    /// What decided: the policy object or rule.
    pub because: Option<Arc<str>>,
    /// What AuthorizationPolicy said, where it let the connection be; a denial is a failure.
    pub verdict: Option<Verdict>,
    pub tls: Option<TlsSummary>,
    pub started: Instant,
    /// Towards the server. (Istio's metrics have the other point of view: there it is `received`.)
    pub sent: u64,
    /// Back to the client.
    pub received: u64,
    /// How long it took, of one that succeeded.
    pub handshake: Option<std::time::Duration>,
    pub failure: Option<Failure>,
    /// Where it is counted, from `Telemetry::opened` on: what is learned later changes no label.
    pub(super) counters: Option<Arc<Counters>>,
}

impl FlowRecord {
    /// A connection of which only this much is known. The source is the unspecified address until
    /// the proxy sets it.
    pub fn new(direction: Direction, workload: Arc<Workload>, destination: SocketAddr) -> Self {
        Self {
            direction,
            workload,
            source: SocketAddr::from(([0; 4], 0)),
            source_workload: None,
            source_id: None,
            destination,
            endpoint: None,
            destination_workload: None,
            destination_id: None,
            service: None,
            mode: None,
            security: Security::None,
            because: None,
            verdict: None,
            tls: None,
            started: Instant::now(),
            sent: 0,
            received: 0,
            handshake: None,
            failure: None,
            counters: None,
        }
    }
}
