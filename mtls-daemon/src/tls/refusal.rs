//! Why a certificate is refused: the rule, the likely cause, and the alert the peer gets to see.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::{CertificateError, OtherError};
use rustls_pki_types::UnixTime;

use super::HandshakeError;
use super::svid_rules::MAX_CHAIN;
use crate::identity::SpiffeId;
use crate::identity::revocations::NotBelieved;

/// The rule that refused a peer's certificate. Its text reaches logs: what an unverified
/// certificate says is either a checked SPIFFE ID or escaped and cut.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it {0}")]
    Unreadable(String),
    #[error("there is no certificate")]
    NoCertificate,
    #[error("its chain has {0} certificates, more than the {MAX_CHAIN} that are looked at")]
    ChainLength(usize),
    #[error(
        "it has {0} URI names and an SVID has exactly one (X509-SVID §2): it was not issued for the mesh"
    )]
    UriNames(usize),
    #[error("its URI name {uri:?} is no SPIFFE ID: {why}")]
    NotSpiffe { uri: String, why: String },
    #[error("{0} names a trust domain and no workload (X509-SVID §5.2)")]
    NoPath(SpiffeId),
    #[error("{0} is a node's or the CA's own identity, and none of them is a peer of workloads")]
    NoWorkload(SpiffeId),
    #[error("{0}: it is a CA's certificate, which is never a workload's identity (X509-SVID §4.1)")]
    Ca(SpiffeId),
    #[error("{id}: its key usage {why} (X509-SVID §4.3)")]
    KeyUsage { id: SpiffeId, why: &'static str },
    #[error(
        "{0}: its extended key usage lacks serverAuth or clientAuth, and an SVID has both or none \
         (X509-SVID §4.4)"
    )]
    ExtendedKeyUsage(SpiffeId),
    #[error("{0}: it has no subject, and its alternative names are not critical (X509-SVID §2)")]
    NamesNotCritical(SpiffeId),
    #[error(
        "{id} is of a trust domain that is not trusted here (trusted: {trusted}); if the two are one \
         mesh, add it with --trust-domain-alias, if not, its bundle with --federated-bundle"
    )]
    ForeignTrustDomain { id: SpiffeId, trusted: String },
    #[error(
        "{0}: the bundle of its trust domain is empty, so nothing is trusted; of a federated one, see \
         `mtls-daemon status`"
    )]
    EmptyBundle(SpiffeId),
    #[error("{0}: the CA that signed it is no longer in the bundle of its trust domain")]
    NoLongerFederated(SpiffeId),
    #[error(
        "{0} is not signed by a CA that is trusted for its trust domain; do both nodes use the same \
         CA (directory), or was the CA made anew on one of them?"
    )]
    UnknownIssuer(SpiffeId),
    #[error(
        "{id} expired at {}; does its node renew (`mtls-daemon status` there), and are both clocks \
         right?",
        date(*not_after)
    )]
    Expired { id: SpiffeId, not_after: UnixTime, now: UnixTime },
    #[error("{id} is valid from {} only; are both clocks right?", date(*not_before))]
    NotYetValid { id: SpiffeId, not_before: UnixTime, now: UnixTime },
    #[error("{id}: a certificate above it may not sign others: it {why} (X509-SVID §4.3)")]
    Signer { id: SpiffeId, why: String },
    #[error("{id}: its chain does not verify: {why}")]
    Chain { id: SpiffeId, why: String },
    #[error(
        "it is {id}, and the workload at this address should be {expected}; is the WorkloadEntry's \
         address or serviceAccount out of date, or does something else answer there?"
    )]
    Unexpected { id: SpiffeId, expected: String },
    #[error(transparent)]
    NotBelieved(#[from] NotBelieved),
    #[error("it was presented outside of a handshake of ours")]
    OutsideHandshake,
}

impl Refusal {
    /// The same, with trust domains that were looked at before.
    pub(super) fn also_trusted(self, before: String) -> Self {
        match self {
            Self::ForeignTrustDomain { id, trusted } if trusted.is_empty() => {
                Self::ForeignTrustDomain { id, trusted: before }
            }
            Self::ForeignTrustDomain { id, trusted } => {
                Self::ForeignTrustDomain { id, trusted: format!("{before}, {trusted}") }
            }
            other => other,
        }
    }

    /// Chooses the alert: rustls derives it from this error.
    pub(super) fn to_rustls(&self) -> rustls::Error {
        let error = match self {
            Self::Unreadable(_)
            | Self::NoCertificate
            | Self::ChainLength(_)
            | Self::UriNames(_)
            | Self::NotSpiffe { .. }
            | Self::NoPath(_)
            | Self::Ca(_)
            | Self::KeyUsage { .. }
            | Self::NamesNotCritical(_) => CertificateError::BadEncoding,
            Self::ExtendedKeyUsage(_) => CertificateError::InvalidPurpose,
            Self::EmptyBundle(_) | Self::UnknownIssuer(_) | Self::NoLongerFederated(_) => {
                CertificateError::UnknownIssuer
            }
            Self::Expired { not_after, now, .. } => {
                CertificateError::ExpiredContext { time: *now, not_after: *not_after }
            }
            Self::NotYetValid { not_before, now, .. } => {
                CertificateError::NotValidYetContext { time: *now, not_before: *not_before }
            }
            Self::NotBelieved(why) if why.is_revoked() => CertificateError::Revoked,
            // Envoy answers these with certificate_unknown too.
            Self::ForeignTrustDomain { .. }
            | Self::Signer { .. }
            | Self::Chain { .. }
            | Self::Unexpected { .. }
            | Self::NoWorkload(_)
            | Self::NotBelieved(_)
            | Self::OutsideHandshake => CertificateError::Other(OtherError(Arc::new(self.clone()))),
        };
        rustls::Error::InvalidCertificate(error)
    }
}

impl From<Refusal> for HandshakeError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotBelieved(why) if why.is_revoked() => Self::PeerRevoked(why.to_string()),
            Refusal::NotBelieved(why) => Self::RevocationUnknown(why.to_string()),
            other => Self::PeerRefused(other.to_string()),
        }
    }
}

fn date(time: UnixTime) -> String {
    let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(time.as_secs());
    humantime::format_rfc3339_seconds(time).to_string()
}
