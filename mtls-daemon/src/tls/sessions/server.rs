//! The server's side.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::server::StoresServerSessions;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::KeyUsage;
use zeroize::Zeroizing;

use super::super::handshake;
use super::super::verify::SvidVerifier;
use super::expiry;

/// Sessions of one SVID: about two megabytes.
const MOST: usize = 1024;

/// What the clients of one SVID may come back with. In memory, and gone with it.
pub(in crate::tls) struct ServerSessions {
    verifier: Arc<SvidVerifier>,
    own_not_after: SystemTime,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    by_key: HashMap<Vec<u8>, Session>,
    /// The oldest first; those that were used are still named.
    order: VecDeque<Vec<u8>>,
}

struct Session {
    /// With its secret.
    value: Zeroizing<Vec<u8>>,
    /// The client's, as it was verified in the full handshake.
    chain: Arc<[CertificateDer<'static>]>,
    expires: SystemTime,
}

impl ServerSessions {
    pub(in crate::tls) fn new(verifier: Arc<SvidVerifier>, own_not_after: SystemTime) -> Self {
        Self { verifier, own_not_after, held: Mutex::default() }
    }

    fn remove(&self, key: &[u8]) -> Option<Session> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.by_key.remove(key)
    }
}

impl Held {
    fn insert(&mut self, key: Vec<u8>, session: Session) {
        // Whoever comes back takes its session along: what is in order is bounded, too.
        while self.order.len() >= MOST {
            let Some(oldest) = self.order.pop_front() else { break };
            self.by_key.remove(&oldest);
        }
        self.order.push_back(key.clone());
        self.by_key.insert(key, session);
    }
}

impl StoresServerSessions for ServerSessions {
    /// Within a handshake that has verified its client.
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        let value = Zeroizing::new(value);
        let Some((peer, chain)) = handshake::verified() else { return false };
        let now = SystemTime::now();
        let expires = expiry(now, self.own_not_after, peer.not_after());
        if expires <= now {
            return false;
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.insert(key, Session { value, chain, expires });
        true
    }

    /// TLS 1.2's, which is not spoken.
    fn get(&self, _key: &[u8]) -> Option<Vec<u8>> {
        None
    }

    /// Once, and only if the client would be let in by a full handshake now. Otherwise one follows, which
    /// says why not, or finds a client with a better certificate.
    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        let Session { value, chain, expires } = self.remove(key)?;
        if expires <= SystemTime::now() {
            return None;
        }
        let (leaf, intermediates) = chain.split_first()?;
        handshake::resume(&chain, |_| {
            let usage = KeyUsage::client_auth();
            self.verifier.verify(leaf, intermediates, UnixTime::now(), usage, None)
        })
        .then(|| value.to_vec())
    }

    fn can_cache(&self) -> bool {
        true
    }
}

impl fmt::Debug for ServerSessions {
    /// Never a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerSessions").finish_non_exhaustive()
    }
}
