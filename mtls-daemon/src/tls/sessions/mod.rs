//! Session resumption that is safe with mTLS.
//!
//! The TLS library asks no verifier when it resumes. So sessions are kept here, in memory, and each is
//! judged again as in a full handshake before it is used: the chain that was shown, against the bundle,
//! the clock, revocation lists and the expected identity. A session belongs to one SVID of one identity
//! of ours, and goes with it; on the client's side also to one expected server. A server's session is
//! used once. There are no tickets that could be decrypted later: what the peer holds is a random number.

mod client;
mod server;

pub(super) use client::{ClientSessions, Kept, Whom};
pub(super) use server::ServerSessions;

use std::time::{Duration, SystemTime};

/// However long certificates live: keys that are kept do not make old traffic readable (each resumption
/// has a key exchange of its own), but who has them can be either side.
const LIFETIME: Duration = Duration::from_secs(3600);

/// Until when a session between these two may be used.
fn expiry(now: SystemTime, own: SystemTime, peer: SystemTime) -> SystemTime {
    (now + LIFETIME).min(own).min(peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_lives_no_longer_than_the_shorter_certificate_nor_than_an_hour() {
        let now = SystemTime::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(expiry(now, after(10), after(20)), after(10));
        assert_eq!(expiry(now, after(20), after(10)), after(10));
        assert_eq!(expiry(now, after(86_400), after(86_400)), after(3600));
        let ended = now - Duration::from_secs(1);
        assert_eq!(expiry(now, ended, after(10)), ended);
        assert_eq!(expiry(now, after(10), ended), ended);
    }
}
