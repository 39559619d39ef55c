//! The data path: accepts redirected connections, shakes hands, relays.
//!
//! Each worker is one thread with a runtime of its own. A connection is accepted, shaken hands and
//! relayed on one of them and never migrates; what they share is read through immutable snapshots.

mod age;
mod authorize;
mod carry;
pub mod failure;
pub mod http;
mod http_error;
mod inbound;
mod live;
mod never_http;
mod outbound;
pub mod relay;
mod server_name;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;

pub use age::MaxAge;
pub use worker::Workers;

use crate::drain;
use crate::identity::IdentitySlot;
use crate::mesh::{MeshSettings, Snapshot, Workload};
use crate::node::{ClientPorts, Namespace};
use crate::policy::Normalisation;
use crate::telemetry::Telemetry;
use crate::tls::{Checks, Originations};

/// How long a connection may take on its way to being relayed.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For the first bytes of a source that the mesh does not know.
    pub detect: Duration,
    /// For the first bytes of a source that is known to speak mTLS, or of any on a STRICT port.
    pub mtls: Duration,
    /// For the rest of a handshake.
    pub handshake: Duration,
    pub connect: Duration,
    /// For an HTTP request's head, from its first byte.
    pub head: Duration,
    /// For an SVID that is still being issued.
    pub identity: Duration,
    /// For a connection as a whole; None: as long as its ends like.
    pub age: Option<MaxAge>,
}

/// How HTTP is treated, for every workload of the node.
#[derive(Debug, Clone, Default)]
pub struct HttpSettings {
    /// Principals without `spiffe://`, or `prefix*`, `*suffix`, `*`: clients whose
    /// X-Forwarded-Client-Cert is kept.
    pub trusted_forwarders: Vec<String>,
    /// Proxies in front whose X-Forwarded-For is believed.
    pub trusted_proxies: usize,
    pub normalisation: Normalisation,
}

/// What every connection needs. One per daemon.
pub struct Shared {
    pub snapshot: ArcSwap<Snapshot>,
    pub telemetry: Telemetry,
    pub originations: Originations,
    /// Open connections are judged again whenever it changes.
    pub checks: Arc<Checks>,
    pub timeouts: Timeouts,
    pub http: HttpSettings,
    pub drain: drain::Watch,
    /// Changes with every snapshot.
    published: watch::Sender<()>,
}

impl Shared {
    pub fn new(
        settings: MeshSettings,
        telemetry: Telemetry,
        timeouts: Timeouts,
        http: HttpSettings,
        checks: Arc<Checks>,
        drain: drain::Watch,
    ) -> Self {
        Self {
            snapshot: ArcSwap::from_pointee(Snapshot::empty(settings)),
            telemetry,
            originations: Originations::default(),
            checks,
            timeouts,
            http,
            drain,
            published: watch::Sender::new(()),
        }
    }

    /// New connections are judged by `snapshot`; open ones in the clear are judged again.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        self.snapshot.store(snapshot);
        self.published.send_replace(());
    }
}

/// Which of a workload's listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listening {
    Outbound,
    Inbound,
}

/// An enrolled workload, as its connections see it. Which listener accepted a connection says whose
/// it is: an address that a peer can choose never does.
pub struct Pod {
    pub namespace: Arc<Namespace>,
    pub outbound_port: u16,
    pub inbound_port: u16,
    /// It is in the host's own namespace, with others that are not it.
    pub on_host: bool,
    pub client_ports: ClientPorts,
    current: ArcSwap<Current>,
    life: watch::Sender<Life>,
    open: AtomicUsize,
}

/// The part of a pod that configuration may change while its listeners stand.
pub struct Current {
    pub workload: Arc<Workload>,
    pub identity: Arc<IdentitySlot>,
    /// Whether HTTP applications are told who their client is.
    pub forward_client_cert: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Life {
    Serving,
    /// Listeners close, connections go on.
    NoNewConnections,
    /// Connections end, too.
    Ended,
}

impl Pod {
    pub fn new(
        namespace: Arc<Namespace>,
        current: Current,
        outbound_port: u16,
        inbound_port: u16,
        on_host: bool,
    ) -> Self {
        Self {
            namespace,
            outbound_port,
            inbound_port,
            on_host,
            client_ports: ClientPorts::default(),
            current: ArcSwap::from_pointee(current),
            life: watch::Sender::new(Life::Serving),
            open: AtomicUsize::new(0),
        }
    }

    pub fn current(&self) -> arc_swap::Guard<Arc<Current>> {
        self.current.load()
    }

    /// New connections are made as the changed workload.
    pub fn replace(&self, current: Current) {
        self.current.store(Arc::new(current));
    }

    pub fn stop_accepting(&self) {
        self.life.send_modify(|life| *life = (*life).max(Life::NoNewConnections));
    }

    /// Resets the pod's connections and closes its listeners.
    pub fn end(&self) {
        self.life.send_replace(Life::Ended);
    }

    fn has_ended(&self) -> bool {
        *self.life.borrow() == Life::Ended
    }

    /// How many of its connections are open.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    async fn reached(&self, wanted: Life) {
        // The sender lives in this very structure: it cannot be gone.
        self.life.subscribe().wait_for(|life| *life >= wanted).await.ok();
    }
}
