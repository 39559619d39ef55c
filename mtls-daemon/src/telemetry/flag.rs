//! Envoy's response flags: how a connection ended, as dashboards made for Istio know it.

use crate::proxy::failure::Failure;
use crate::tls::HandshakeError;

/// How a connection ended. Stands for its place in [`Flag::ALL`], too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flag {
    Orderly,
    NoRoute,
    NoHealthyUpstream,
    DownstreamProtocolError,
    UpstreamFailure,
    DownstreamConnectionEnd,
    UpstreamConnectionEnd,
    /// Ended by this daemon itself.
    LocalReset,
}

impl Flag {
    pub(super) const ALL: [Self; 8] = [
        Self::Orderly,
        Self::NoRoute,
        Self::NoHealthyUpstream,
        Self::DownstreamProtocolError,
        Self::UpstreamFailure,
        Self::DownstreamConnectionEnd,
        Self::UpstreamConnectionEnd,
        Self::LocalReset,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Orderly => "-",
            Self::NoRoute => "NR",
            Self::NoHealthyUpstream => "UH",
            Self::DownstreamProtocolError => "DPE",
            Self::UpstreamFailure => "UF",
            Self::DownstreamConnectionEnd => "DC",
            Self::UpstreamConnectionEnd => "UC",
            Self::LocalReset => "LR",
        }
    }

    pub(super) fn of(failure: Option<&Failure>) -> Self {
        let Some(failure) = failure else { return Self::Orderly };
        match failure {
            Failure::ClientHandshake(error)
            | Failure::UpstreamHandshake { error, .. }
            | Failure::NoLongerBelieved { error, .. }
                if matches!(
                    error,
                    HandshakeError::OwnRevoked(_) | HandshakeError::RevocationUnknown(_)
                ) =>
            {
                Self::LocalReset
            }
            Failure::NoLongerBelieved { upstream: false, .. } => Self::DownstreamProtocolError,
            Failure::NoLongerBelieved { upstream: true, .. } => Self::UpstreamFailure,
            Failure::PlaintextRefused { .. }
            | Failure::ForeignTlsOnHttpPort
            | Failure::NotExported(..)
            | Failure::RuleRefused(_)
            | Failure::RulesDisagree { .. }
            | Failure::NoSuchServicePort(..)
            | Failure::NoOriginalDestination
            | Failure::LoopRefused => Self::NoRoute,
            Failure::NoEndpoint(_) | Failure::NotResolved(..) => Self::NoHealthyUpstream,
            Failure::ClientHandshake(_) | Failure::DetectTimeout | Failure::HttpRefused(_) => {
                Self::DownstreamProtocolError
            }
            Failure::UpstreamHandshake { .. }
            | Failure::Origination { .. }
            | Failure::UpstreamConnect { .. }
            | Failure::NoIdentity { .. }
            | Failure::SourceBind(_) => Self::UpstreamFailure,
            Failure::ClientReset(_) | Failure::ClientTruncated => Self::DownstreamConnectionEnd,
            Failure::UpstreamReset(_)
            | Failure::NoAnswer
            | Failure::BadAnswer(_)
            | Failure::Truncated => Self::UpstreamConnectionEnd,
            Failure::AuthorizationDenied { .. }
            | Failure::PolicyChanged { .. }
            | Failure::Drained
            | Failure::TooOld
            | Failure::Internal(_) => Self::LocalReset,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::testing::failures;

    #[test]
    fn every_failure_has_a_response_flag() {
        for (failure, code, fault) in failures() {
            let expected = match (code, fault) {
                ("plaintext_refused" | "tls_on_http_port" | "not_exported", _)
                | ("no_such_service_port" | "rule_refused", _)
                | ("no_original_destination" | "loop_refused", _) => "NR",
                ("rules_disagree", _) => "NR",
                ("no_endpoint" | "name_not_resolved", _) => "UH",
                ("upstream_ca_unknown" | "upstream_name_refused", _)
                | ("upstream_certificate_expired" | "upstream_certificate_revoked", _)
                | ("upstream_certificate_unusable" | "server_name_missing", _)
                | ("client_certificate_required" | "client_certificate_refused", _)
                | ("tls_file_unusable" | "credential_unavailable", _) => "UF",
                ("peer_identity_refused" | "tls_handshake_failed" | "detect_timeout", _)
                | ("http_refused" | "peer_certificate_revoked", _) => "DPE",
                ("upstream_identity_refused" | "upstream_tls_failed", _)
                | ("upstream_connect_failed" | "no_identity" | "source_bind_failed", _) => "UF",
                ("client_reset", _) | ("truncated", "client") => "DC",
                ("upstream_reset" | "no_answer" | "bad_answer", _) | ("truncated", _) => "UC",
                ("authorization_denied" | "policy_changed" | "drained" | "internal", _)
                | ("own_certificate_revoked" | "revocation_unknown", _)
                | ("max_connection_age", _) => "LR",
                _ => panic!("no flag for {code}"),
            };
            assert_eq!(Flag::of(Some(&failure)).as_str(), expected, "{code}");
        }
        assert_eq!(Flag::of(None).as_str(), "-");
    }

    #[test]
    fn every_flag_has_its_own_place() {
        for (place, flag) in Flag::ALL.into_iter().enumerate() {
            assert_eq!(flag as usize, place, "{flag:?}");
        }
    }
}
