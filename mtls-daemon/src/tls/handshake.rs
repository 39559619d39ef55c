//! What one handshake expects and learns, within configurations that all connections share.
//!
//! The TLS library calls the verifier with nothing that says which connection asks. The two meet in
//! a task-local value that exists only while this one handshake's future is polled, so one
//! configuration per SVID is enough, and nobody can read another connection's verdict.

use std::cell::{Cell, RefCell};
use std::io;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use super::refusal::Refusal;
use super::{AuthenticatedPeer, HandshakeError};
use crate::identity::SpiffeId;
use crate::identity::node::is_reserved;

type Chain = Arc<[CertificateDer<'static>]>;

#[derive(Default)]
struct Verdict {
    /// Whom a client expects; None on the server side.
    expected: Option<Arc<[SpiffeId]>>,
    /// A node and the CA may talk here; in the data path they are nobody.
    any: bool,
    /// The peer may come back with this session.
    keep: bool,
    outcome: RefCell<Outcome>,
    /// What the peer showed, now or in the handshake that is resumed.
    chain: RefCell<Option<Chain>>,
    resumed: Cell<bool>,
}

tokio::task_local! {
    static VERDICT: Verdict;
}

/// Whom the verifier accepted, and how.
pub(super) struct Verified {
    pub peer: AuthenticatedPeer,
    /// By what was kept of an earlier handshake, which was judged again.
    pub resumed: bool,
}

/// Runs a client's `shake` to its end. None: the verifier was not asked, which only a resumption may do.
pub(super) async fn run_client<T>(
    expected: Arc<[SpiffeId]>,
    shake: impl Future<Output = io::Result<T>>,
) -> Result<(T, Option<Verified>), HandshakeError> {
    run(Verdict { expected: Some(expected), ..Verdict::default() }, shake).await
}

/// The same of a server, whose `keep` says whether clients may come back.
pub(super) async fn run_server<T>(
    keep: bool,
    shake: impl Future<Output = io::Result<T>>,
) -> Result<(T, Option<Verified>), HandshakeError> {
    run(Verdict { keep, ..Verdict::default() }, shake).await
}

async fn run<T>(
    verdict: Verdict,
    shake: impl Future<Output = io::Result<T>>,
) -> Result<(T, Option<Verified>), HandshakeError> {
    let (result, outcome, resumed) = watched(verdict, shake).await;
    match (result, outcome) {
        (Ok(stream), Some(Ok(peer))) => Ok((stream, Some(Verified { peer, resumed }))),
        (Ok(stream), None) => Ok((stream, None)),
        (Ok(_), Some(Err(refusal))) => Err(refusal.into()),
        (Err(error), Some(Err(refusal))) if is_certificate_error(&error) => Err(refusal.into()),
        (Err(error), _) => Err(HandshakeError::from_io(error)),
    }
}

/// Cannot be, and must not pass if it is.
pub(super) fn nobody() -> HandshakeError {
    HandshakeError::Own("a handshake ended with no verified peer".to_owned())
}

/// As [`run_server`] of one that serves also clients without a certificate, and those that are no
/// workloads. None: the client showed no certificate.
pub(super) async fn run_with_any<T>(
    shake: impl Future<Output = io::Result<T>>,
) -> Result<(T, Option<AuthenticatedPeer>), HandshakeError> {
    let (stream, verified) = run(Verdict { any: true, ..Verdict::default() }, shake).await?;
    Ok((stream, verified.map(|verified| verified.peer)))
}

type Outcome = Option<Result<AuthenticatedPeer, Refusal>>;

async fn watched<T>(
    verdict: Verdict,
    shake: impl Future<Output = io::Result<T>>,
) -> (io::Result<T>, Outcome, bool) {
    let watched = async {
        let result = shake.await;
        let (outcome, resumed) = VERDICT.with(|it| (it.outcome.take(), it.resumed.get()));
        (result, outcome, resumed)
    };
    VERDICT.scope(verdict, watched).await
}

impl Verdict {
    fn judge(
        &self,
        verify: impl FnOnce(Option<&[SpiffeId]>) -> Result<AuthenticatedPeer, Refusal>,
    ) -> Result<AuthenticatedPeer, Refusal> {
        let peer = verify(self.expected.as_deref())?;
        if self.any { Ok(peer) } else { workload(peer) }
    }
}

/// A peer of the data path, which a node or the CA is not.
pub(super) fn workload(peer: AuthenticatedPeer) -> Result<AuthenticatedPeer, Refusal> {
    match peer.id() {
        id if is_reserved(id) => Err(Refusal::NoWorkload(id.clone())),
        _ => Ok(peer),
    }
}

/// For the verifier: gives it what this handshake expects and keeps what it decides of `chain`, which
/// the peer shows leaf first.
pub(super) fn decide(
    (leaf, intermediates): (&CertificateDer<'_>, &[CertificateDer<'_>]),
    verify: impl FnOnce(Option<&[SpiffeId]>) -> Result<AuthenticatedPeer, Refusal>,
) -> Result<(), rustls::Error> {
    let decided = VERDICT.try_with(|verdict| {
        let decision = verdict.judge(verify);
        let told = decision.as_ref().map(|_| ()).map_err(Refusal::to_rustls);
        let shown = (verdict.keep && decision.is_ok()).then(|| {
            let chain = std::iter::once(leaf).chain(intermediates);
            chain.map(|it| it.clone().into_owned()).collect()
        });
        verdict.outcome.replace(Some(decision));
        verdict.chain.replace(shown);
        verdict.resumed.set(false);
        told
    });
    decided.unwrap_or_else(|_| Err(Refusal::OutsideHandshake.to_rustls()))
}

/// For what is kept: whether the peer of an earlier handshake, which showed `chain`, would be accepted
/// now. If the library goes on with it, that is the peer.
pub(super) fn resume(
    chain: &Chain,
    verify: impl FnOnce(Option<&[SpiffeId]>) -> Result<AuthenticatedPeer, Refusal>,
) -> bool {
    let resumed = VERDICT.try_with(|verdict| match verdict.judge(verify) {
        Ok(peer) => {
            verdict.outcome.replace(Some(Ok(peer)));
            verdict.chain.replace(Some(chain.clone()));
            verdict.resumed.set(true);
            true
        }
        Err(refusal) => {
            tracing::debug!(%refusal, "a session is not resumed: a full handshake follows");
            false
        }
    });
    resumed.unwrap_or(false)
}

/// The peer of this handshake, and what it showed.
pub(super) fn verified() -> Option<(AuthenticatedPeer, Chain)> {
    let verified = VERDICT.try_with(|verdict| {
        let peer = verdict.outcome.borrow().as_ref()?.as_ref().ok()?.clone();
        Some((peer, verdict.chain.borrow().clone()?))
    });
    verified.ok().flatten()
}

fn is_certificate_error(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}
