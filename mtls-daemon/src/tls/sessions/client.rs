//! The client's side.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::{ClientConfig, NamedGroup};
use rustls_pki_types::ServerName;

use super::super::AuthenticatedPeer;
use super::super::revocation::Checks;
use super::expiry;
use crate::identity::SpiffeId;

/// Servers that one SVID has sessions with.
const MOST_SERVERS: usize = 1024;
/// A connection uses one up, and brings another.
const MOST_TICKETS: usize = 4;

/// Whose sessions they are, beside our own SVID's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::tls) struct Whom {
    pub expected: Arc<[SpiffeId]>,
    pub address: SocketAddr,
    pub sni: Box<str>,
}

/// The sessions that one SVID may come back with. In memory, and gone with it.
pub(in crate::tls) struct ClientSessions {
    config: Arc<ClientConfig>,
    checks: Arc<Checks>,
    own_not_after: SystemTime,
    servers: Mutex<HashMap<Whom, Kept>>,
}

/// A configuration whose sessions are one server's alone.
#[derive(Clone)]
pub(in crate::tls) struct Kept {
    pub config: Arc<ClientConfig>,
    /// None: too many servers, so nothing is kept.
    tickets: Option<Arc<Tickets>>,
}

struct Tickets {
    own_not_after: SystemTime,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// The one that the last full handshake found.
    peer: Option<AuthenticatedPeer>,
    tickets: VecDeque<Ticket>,
    /// What the server chose: it saves a round trip.
    group: Option<NamedGroup>,
}

struct Ticket {
    value: Tls13ClientSessionValue,
    expires: SystemTime,
}

impl ClientSessions {
    /// `config` keeps no sessions.
    pub(in crate::tls) fn new(
        config: Arc<ClientConfig>,
        checks: Arc<Checks>,
        own_not_after: SystemTime,
    ) -> Self {
        Self { config, checks, own_not_after, servers: Mutex::default() }
    }

    /// The configuration for this server. What it has kept and would not be believed now is forgotten.
    pub(in crate::tls) fn with(&self, whom: Whom, now: SystemTime) -> Kept {
        let kept = self.find(whom, now);
        if let Some(tickets) = &kept.tickets {
            let mut held = tickets.lock();
            let good = held.peer.as_ref().is_some_and(|peer| {
                peer.not_after() > now && self.checks.check(peer.id(), peer.path(), now).is_ok()
            });
            if good {
                held.tickets.retain(|ticket| ticket.expires > now);
            } else {
                held.tickets.clear();
            }
        }
        kept
    }

    fn find(&self, whom: Whom, now: SystemTime) -> Kept {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = servers.get(&whom) {
            return kept.clone();
        }
        if servers.len() >= MOST_SERVERS {
            servers.retain(|_, kept| kept.is_worth_keeping(now));
        }
        if servers.len() >= MOST_SERVERS {
            return Kept::nothing(self.config.clone());
        }
        let (own_not_after, held) = (self.own_not_after, Mutex::default());
        let tickets = Arc::new(Tickets { own_not_after, held });
        let mut config = ClientConfig::clone(&self.config);
        config.resumption = Resumption::store(tickets.clone());
        let kept = Kept { config: Arc::new(config), tickets: Some(tickets) };
        servers.insert(whom, kept.clone());
        kept
    }
}

impl Kept {
    pub(in crate::tls) fn nothing(config: Arc<ClientConfig>) -> Self {
        Self { config, tickets: None }
    }

    /// After a full handshake: what is kept from an earlier certificate of the server's is forgotten.
    pub(in crate::tls) fn verified(&self, peer: &AuthenticatedPeer) {
        let Some(tickets) = &self.tickets else { return };
        let mut held = tickets.lock();
        if !held.peer.as_ref().is_some_and(|known| known.is_same(peer)) {
            held.tickets.clear();
            held.peer = Some(peer.clone());
        }
    }

    /// After a resumption that is refused.
    pub(in crate::tls) fn forget(&self) {
        if let Some(tickets) = &self.tickets {
            *tickets.lock() = Held::default();
        }
    }

    fn is_worth_keeping(&self, now: SystemTime) -> bool {
        let tickets = self.tickets.as_ref();
        tickets.is_some_and(|it| it.lock().tickets.iter().any(|ticket| ticket.expires > now))
    }
}

impl Tickets {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.lock().group = Some(group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.lock().group
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    /// While the connection is open: the server's are the last bytes of its handshake.
    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        let mut held = self.lock();
        // Nobody was verified, or it was refused since.
        let Some(peer) = &held.peer else { return };
        let expires = expiry(SystemTime::now(), self.own_not_after, peer.not_after());
        if held.tickets.len() >= MOST_TICKETS {
            held.tickets.pop_front();
        }
        held.tickets.push_back(Ticket { value, expires });
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.lock().tickets.pop_back().map(|ticket| ticket.value)
    }
}

impl fmt::Debug for Tickets {
    /// Never a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSessions").finish_non_exhaustive()
    }
}
