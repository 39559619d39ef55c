//! What one handshake expects and learns, within configurations that all connections share.
//!
//! The TLS library calls the verifier with nothing that says which connection asks. The two meet in
//! a task-local value that exists only while this one handshake's future is polled, so one
//! configuration per SVID is enough, and nobody can read another connection's verdict.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use super::refusal::Refusal;
use super::{AuthenticatedPeer, HandshakeError};
use crate::identity::SpiffeId;
use crate::identity::node::is_reserved;

struct Verdict {
    /// Whom a client expects; None on the server side.
    expected: Option<Arc<[SpiffeId]>>,
    /// A node and the CA may talk here; in the data path they are nobody.
    any: bool,
    outcome: RefCell<Outcome>,
}

tokio::task_local! {
    static VERDICT: Verdict;
}

/// Runs `shake` to its end; the peer is the one that the verifier accepted in it.
pub(super) async fn run<T>(
    expected: Option<Arc<[SpiffeId]>>,
    shake: impl Future<Output = io::Result<T>>,
) -> Result<(T, AuthenticatedPeer), HandshakeError> {
    let verdict = Verdict { expected, any: false, outcome: RefCell::new(None) };
    match watched(verdict, shake).await {
        (Ok(stream), Some(Ok(peer))) => Ok((stream, peer)),
        // No resumption, no optional client certificate: cannot be, and must not pass if it is.
        (Ok(_), _) => Err(HandshakeError::Own("a handshake ended with no verified peer".into())),
        (Err(error), Some(Err(refusal))) if is_certificate_error(&error) => Err(refusal.into()),
        (Err(error), _) => Err(HandshakeError::from_io(error)),
    }
}

/// As [`run`] on the side of a server that serves also clients without a certificate, and those that
/// are no workloads. None: the client showed no certificate.
pub(super) async fn run_with_any<T>(
    shake: impl Future<Output = io::Result<T>>,
) -> Result<(T, Option<AuthenticatedPeer>), HandshakeError> {
    let verdict = Verdict { expected: None, any: true, outcome: RefCell::new(None) };
    match watched(verdict, shake).await {
        (Ok(stream), None) => Ok((stream, None)),
        (Ok(stream), Some(Ok(peer))) => Ok((stream, Some(peer))),
        (Err(error), Some(Err(refusal))) if is_certificate_error(&error) => Err(refusal.into()),
        (Ok(_), Some(Err(refusal))) => Err(refusal.into()),
        (Err(error), _) => Err(HandshakeError::from_io(error)),
    }
}

type Outcome = Option<Result<AuthenticatedPeer, Refusal>>;

async fn watched<T>(
    verdict: Verdict,
    shake: impl Future<Output = io::Result<T>>,
) -> (io::Result<T>, Outcome) {
    let watched = async {
        let result = shake.await;
        (result, VERDICT.with(|verdict| verdict.outcome.take()))
    };
    VERDICT.scope(verdict, watched).await
}

/// For the verifier: gives it what this handshake expects and keeps what it decides.
pub(super) fn decide(
    verify: impl FnOnce(Option<&[SpiffeId]>) -> Result<AuthenticatedPeer, Refusal>,
) -> Result<(), rustls::Error> {
    let decided = VERDICT.try_with(|verdict| {
        let decision = verify(verdict.expected.as_deref()).and_then(|peer| match peer.id() {
            id if is_reserved(id) && !verdict.any => Err(Refusal::NoWorkload(id.clone())),
            _ => Ok(peer),
        });
        let told = decision.as_ref().map(|_| ()).map_err(Refusal::to_rustls);
        verdict.outcome.replace(Some(decision));
        told
    });
    decided.unwrap_or_else(|_| Err(Refusal::OutsideHandshake.to_rustls()))
}

fn is_certificate_error(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}
