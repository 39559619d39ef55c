//! A connection to an enrolled workload, as AuthorizationPolicy is asked about it: once before a
//! byte reaches the application, and again whenever the policy changes.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::http::InFlight;
use crate::identity::SpiffeId;
use crate::mesh::{Snapshot, Workload};
use crate::policy::authz::{Connection, Verdict};

/// Who talks to whom. Comes from the handshake and the sockets, never from what the client sends.
#[derive(Debug, Clone)]
pub struct Parties {
    /// The server's side.
    pub workload: Arc<Workload>,
    pub destination: SocketAddr,
    /// The client's, from its verified SVID. None: plaintext.
    pub client: Option<SpiffeId>,
    pub source: IpAddr,
    /// The server name that the client asked for in its handshake.
    pub sni: Option<Box<str>>,
}

impl Parties {
    pub fn connection(&self) -> Connection<'_> {
        Connection {
            principal: self.client.as_ref().map(principal),
            source: self.source,
            remote: self.source,
            destination: self.destination,
            sni: self.sni.as_deref(),
        }
    }

    /// The same for its server's side as it is described now: labels can change under a connection.
    pub fn now(&self, workload: &Arc<Workload>) -> Self {
        Self { workload: workload.clone(), ..self.clone() }
    }

    /// What `snapshot` says of the requests that are open on it: the first that it denies.
    pub fn judge_requests(&self, snapshot: &Snapshot, open: &InFlight) -> Option<Verdict> {
        let plan = snapshot.inbound(&self.workload, self.destination.port());
        open.denied(self.connection(), |connection, request| {
            plan.authorization.request(connection, request)
        })
    }

    /// What `snapshot` says of the connection as a whole, without looking into it.
    pub fn judge(&self, snapshot: &Snapshot) -> Verdict {
        let plan = snapshot.inbound(&self.workload, self.destination.port());
        plan.authorization.connection(&self.connection())
    }
}

/// As policies write it: without the scheme, which every SPIFFE ID has.
fn principal(id: &SpiffeId) -> &str {
    id.as_str().trim_start_matches("spiffe://")
}

/// The client, as an error names it.
impl fmt::Display for Parties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.client {
            Some(id) => id.fmt(f),
            None => write!(f, "{} without an identity (plaintext)", self.source),
        }
    }
}
