//! Why a connection failed. The access log, the metrics and the command line use this one enum.

use std::net::SocketAddr;

use crate::identity::IdentitySlot;
use crate::policy::authz::Verdict;
use crate::tls::{HandshakeError, OriginationError};

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    None,
    Client,
    Server,
    Policy,
    Us,
}

impl Fault {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Client => "client",
            Self::Server => "server",
            Self::Policy => "policy",
            Self::Us => "us",
        }
    }
}

/// A connection that did not end in an orderly close on both sides.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(
        "plaintext on a STRICT port ({because}); enrol the client, or set PERMISSIVE for this port"
    )]
    PlaintextRefused { because: String },
    #[error("{verdict}; the client is {client}")]
    AuthorizationDenied { verdict: Verdict, client: String },
    #[error(
        "policy no longer leaves this connection in the clear ({because}); the client may connect again"
    )]
    PolicyChanged { because: String },
    #[error(
        "TLS that is not the mesh's on a port declared HTTP: declare the port TCP (or https), or send plaintext"
    )]
    ForeignTlsOnHttpPort,
    #[error("an HTTP request was refused: {0}")]
    HttpRefused(&'static str),
    #[error("the client's mTLS handshake failed: {0}")]
    ClientHandshake(HandshakeError),
    #[error("{error}; the connection was open")]
    NoLongerBelieved { upstream: bool, error: HandshakeError },
    #[error("the client's handshake or first bytes did not come in time")]
    DetectTimeout,
    #[error("mTLS to {address} failed: {error}")]
    UpstreamHandshake { address: SocketAddr, error: HandshakeError },
    #[error("TLS to {address} is not originated: {error}")]
    Origination { address: SocketAddr, error: OriginationError },
    #[error(
        "{address} belongs to {services}, and their rules disagree about TLS: give the services \
         addresses of their own, or one rule"
    )]
    RulesDisagree { address: SocketAddr, services: String },
    #[error("no address of {0} is known: {1}")]
    NotResolved(String, String),
    #[error("cannot connect to {address}: {error}")]
    UpstreamConnect { address: SocketAddr, error: std::io::Error },
    #[error("no SVID for {identity} yet: {}", issuer(error.as_deref()))]
    NoIdentity { identity: String, error: Option<String> },
    #[error("no endpoint of {0} is ready")]
    NoEndpoint(String),
    #[error("{0} has no port {1}")]
    NoSuchServicePort(String, u16),
    #[error("{0} is not exported to namespace {1}: name the namespace in its exportTo")]
    NotExported(String, String),
    #[error(
        "{0}, so how to reach its host is not known: `mtls-daemon status` says what is wrong in it"
    )]
    RuleRefused(String),
    #[error("the kernel recorded no original destination: not a redirected connection")]
    NoOriginalDestination,
    #[error("the destination is the daemon's own listener")]
    LoopRefused,
    #[error("cannot take the client's source address: {0}")]
    SourceBind(std::io::Error),
    #[error("the client reset the connection: {0}")]
    ClientReset(std::io::Error),
    #[error("the server reset the connection: {0}")]
    UpstreamReset(std::io::Error),
    #[error("the server ended the connection before it answered")]
    NoAnswer,
    #[error("the server's answer is not HTTP as it was asked for: {0}")]
    BadAnswer(String),
    #[error("the server's TLS stream ended without close_notify: possibly truncated")]
    Truncated,
    #[error("the client's TLS stream ended without close_notify: possibly truncated")]
    ClientTruncated,
    #[error("closed by the daemon's shutdown after the drain time")]
    Drained,
    #[error("it was open for as long as --max-connection-age allows")]
    TooOld,
    #[error("{0}")]
    Internal(String),
}

fn issuer(error: Option<&str>) -> String {
    match error {
        Some(error) => format!("the issuer's last error: {error}"),
        None => "the issuer has not answered yet; see `mtls-daemon status`".to_owned(),
    }
}

impl Failure {
    /// Nothing to show, with what is known of why.
    pub fn no_identity(slot: &IdentitySlot) -> Self {
        Self::NoIdentity { identity: slot.id().to_string(), error: slot.last_error() }
    }

    /// Stable reason code for logs and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::PlaintextRefused { .. } => "plaintext_refused",
            Self::AuthorizationDenied { .. } => "authorization_denied",
            Self::PolicyChanged { .. } => "policy_changed",
            Self::ForeignTlsOnHttpPort => "tls_on_http_port",
            Self::HttpRefused(_) => "http_refused",
            Self::ClientHandshake(HandshakeError::OwnRevoked(_))
            | Self::UpstreamHandshake { error: HandshakeError::OwnRevoked(_), .. }
            | Self::NoLongerBelieved { error: HandshakeError::OwnRevoked(_), .. } => {
                "own_certificate_revoked"
            }
            Self::ClientHandshake(HandshakeError::RevocationUnknown(_))
            | Self::UpstreamHandshake { error: HandshakeError::RevocationUnknown(_), .. }
            | Self::NoLongerBelieved { error: HandshakeError::RevocationUnknown(_), .. } => {
                "revocation_unknown"
            }
            // Another trust domain's, whose CA is not believed any more.
            Self::ClientHandshake(HandshakeError::PeerRefused(_))
            | Self::NoLongerBelieved { upstream: false, error: HandshakeError::PeerRefused(_) } => {
                "peer_identity_refused"
            }
            Self::UpstreamHandshake { error: HandshakeError::PeerRefused(_), .. }
            | Self::NoLongerBelieved { upstream: true, error: HandshakeError::PeerRefused(_) } => {
                "upstream_identity_refused"
            }
            Self::ClientHandshake(HandshakeError::PeerRevoked(_))
            | Self::NoLongerBelieved { upstream: false, .. } => "peer_certificate_revoked",
            Self::UpstreamHandshake { error: HandshakeError::PeerRevoked(_), .. }
            | Self::NoLongerBelieved { upstream: true, .. } => "upstream_certificate_revoked",
            Self::ClientHandshake(_) => "tls_handshake_failed",
            Self::DetectTimeout => "detect_timeout",
            Self::UpstreamHandshake { .. } => "upstream_tls_failed",
            Self::Origination { error, .. } => error.code(),
            Self::RulesDisagree { .. } => "rules_disagree",
            Self::NotResolved(..) => "name_not_resolved",
            Self::UpstreamConnect { .. } => "upstream_connect_failed",
            Self::NoIdentity { .. } => "no_identity",
            Self::NoEndpoint(_) => "no_endpoint",
            Self::NoSuchServicePort(..) => "no_such_service_port",
            Self::NotExported(..) => "not_exported",
            Self::RuleRefused(_) => "rule_refused",
            Self::NoOriginalDestination => "no_original_destination",
            Self::LoopRefused => "loop_refused",
            Self::SourceBind(_) => "source_bind_failed",
            Self::ClientReset(_) => "client_reset",
            Self::UpstreamReset(_) => "upstream_reset",
            Self::NoAnswer => "no_answer",
            Self::BadAnswer(_) => "bad_answer",
            // which side, the fault says
            Self::Truncated | Self::ClientTruncated => "truncated",
            Self::Drained => "drained",
            Self::TooOld => "max_connection_age",
            Self::Internal(_) => "internal",
        }
    }

    pub fn fault(&self) -> Fault {
        match self {
            Self::PlaintextRefused { .. }
            | Self::AuthorizationDenied { .. }
            | Self::PolicyChanged { .. }
            | Self::NotExported(..)
            | Self::RuleRefused(_)
            | Self::RulesDisagree { .. }
            | Self::ForeignTlsOnHttpPort => Fault::Policy,
            Self::Origination { error, .. } => match error {
                OriginationError::NoCredential(_)
                | OriginationError::File(_)
                | OriginationError::NoServerName
                | OriginationError::CertificateRequired
                | OriginationError::CertificateRefused { .. } => Fault::Policy,
                OriginationError::Handshake(HandshakeError::Own(_)) => Fault::Us,
                _ => Fault::Server,
            },
            Self::ClientHandshake(error)
            | Self::UpstreamHandshake { error, .. }
            | Self::NoLongerBelieved { error, .. }
                if error.is_ours() =>
            {
                Fault::Us
            }
            Self::NoLongerBelieved { upstream: true, .. } => Fault::Server,
            Self::NoLongerBelieved { upstream: false, .. } => Fault::Client,
            Self::NoIdentity { .. }
            | Self::SourceBind(_)
            | Self::Drained
            | Self::TooOld
            | Self::Internal(_) => Fault::Us,
            Self::ClientHandshake(_)
            | Self::HttpRefused(_)
            | Self::DetectTimeout
            | Self::NoOriginalDestination
            | Self::LoopRefused
            | Self::ClientReset(_)
            | Self::ClientTruncated => Fault::Client,
            Self::UpstreamHandshake { .. }
            | Self::UpstreamConnect { .. }
            | Self::NoEndpoint(_)
            | Self::NotResolved(..)
            | Self::NoSuchServicePort(..)
            | Self::UpstreamReset(_)
            | Self::NoAnswer
            | Self::BadAnswer(_)
            | Self::Truncated => Fault::Server,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_svid_says_why_it_is_missing() {
        let said = |error: Option<&str>| {
            let identity = "spiffe://cluster.local/ns/shop/sa/db".to_owned();
            Failure::NoIdentity { identity, error: error.map(str::to_owned) }.to_string()
        };
        assert!(said(None).contains("has not answered yet"), "{}", said(None));
        let failed = said(Some("the CA is on holiday"));
        assert!(failed.contains("sa/db") && failed.contains("the CA is on holiday"), "{failed}");
    }
}
