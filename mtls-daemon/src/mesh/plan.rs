//! The answers that the data path asks the snapshot for.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{Service, Workload};
use crate::identity::SpiffeId;
use crate::policy::authz::WorkloadAuthorization;
use crate::policy::{EffectiveMode, PortProtocol, TlsSettings};

/// What to do with one outbound connection of an enrolled workload.
#[derive(Debug, Clone)]
pub enum OutboundPlan {
    Connect {
        /// The endpoint that was chosen.
        address: SocketAddr,
        tls: ClientTls,
        /// The service that the client addressed, if it addressed one.
        service: Option<Arc<Service>>,
        /// The workload at `address`, if the mesh knows it.
        workload: Option<Arc<Workload>>,
    },
    /// Several services have their server at the address, and their rules want different TLS there:
    /// whichever were chosen could send in the clear, or to the wrong server.
    RulesDisagree { address: SocketAddr, service: Arc<Service>, others: Vec<Arc<Service>> },
    /// No endpoint of `service` is ready.
    NoEndpoint { service: Arc<Service> },
    /// The address is a service's, the port is not one of its ports.
    NoSuchPort { service: Arc<Service> },
    /// The address is a service's that is not exported to the client's namespace. Nobody else
    /// answers there, and nothing is sent there in the clear.
    NotExported { service: Arc<Service> },
}

/// The client side of one connection, DestinationRule over auto mTLS.
#[derive(Debug, Clone)]
pub enum ClientTls {
    Plaintext {
        /// Which rule decided, as the access log prints it.
        because: Arc<str>,
    },
    IstioMutual {
        /// Secure naming: the server's SVID must be one of these. Never empty: an endpoint whose
        /// identity is unknown is expressed as an ID nobody can hold, or refused when planned.
        expected: Arc<[SpiffeId]>,
        /// Server name sent in the ClientHello.
        sni: Arc<str>,
        because: Arc<str>,
    },
    /// TLS for an application that speaks plaintext, to a server that need not be a workload:
    /// SIMPLE and MUTUAL (policy.md 2.3).
    Originate { origination: Arc<Origination>, because: Arc<str> },
    /// Nothing is sent: the rule for this host was refused, so nobody knows how.
    Refused { because: Arc<str> },
}

impl ClientTls {
    pub(super) fn is_plaintext(&self) -> bool {
        match self {
            Self::Plaintext { .. } => true,
            Self::IstioMutual { .. } | Self::Originate { .. } | Self::Refused { .. } => false,
        }
    }

    /// Whether connections may follow either of two rules. Where none originates TLS, the mesh's own
    /// order of services decides.
    pub(super) fn agrees_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Originate { origination: a, .. }, Self::Originate { origination: b, .. }) => {
                // What is spoken inside is no rule about TLS, and nobody is believed for it.
                a.settings == b.settings && a.ask_for == b.ask_for
            }
            (Self::Refused { .. }, Self::Refused { .. }) => true,
            (Self::Originate { .. } | Self::Refused { .. }, _)
            | (_, Self::Originate { .. } | Self::Refused { .. }) => false,
            (
                Self::Plaintext { .. } | Self::IstioMutual { .. },
                Self::Plaintext { .. } | Self::IstioMutual { .. },
            ) => true,
        }
    }
}

/// How TLS is originated to one service's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origination {
    /// SIMPLE or MUTUAL.
    pub settings: Arc<TlsSettings>,
    pub ask_for: AskFor,
    /// The port is declared to speak HTTP/2: some servers speak it only where it was offered (ALPN).
    pub http2: bool,
}

/// Where the server's name comes from: sent as SNI and, without `subjectAltNames`, to be proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AskFor {
    /// The rule's `sni`, or the service's only host.
    Name(Arc<str>),
    /// The service has several hosts, or a wildcard: the one that an HTTP request names. For
    /// other protocols the first that is no wildcard.
    HostOfRequest(Arc<[Arc<str>]>),
}

/// What to do with one inbound connection to a port of an enrolled workload.
#[derive(Debug, Clone)]
pub struct InboundPlan {
    pub mode: EffectiveMode,
    pub protocol: PortProtocol,
    /// The AuthorizationPolicy objects that select the workload.
    pub authorization: Arc<WorkloadAuthorization>,
}

/// What the snapshot knows about a connection's source. Sets how long first bytes are awaited,
/// never the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerKnowledge {
    SpeaksMtls,
    Plaintext,
    Unknown,
}

/// One row of the kernel's outbound table for a client workload: the decision for a direct
/// destination, port 0 standing for every port that has no row of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OutboundRow {
    pub address: std::net::IpAddr,
    pub port: u16,
    /// True: the connection stays the application's own, in the clear by policy.
    pub untouched: bool,
}

/// The kernel's inbound table for one workload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InboundTable {
    /// The answer for ports without a row: true leaves them untouched.
    pub untouched_by_default: bool,
    /// Ports whose answer differs from the default.
    pub exceptions: Vec<u16>,
}
