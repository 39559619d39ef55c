//! Flows for the tests of this module and its neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Direction, FlowRecord};
use crate::identity::{SpiffeId, TrustDomain};
use crate::mesh::{Service, Workload};
use crate::policy::authz::{Connection, WorkloadAuthorization};
use crate::proxy::failure::Failure;
use crate::tls::HandshakeError;
use crate::tls::originate::{FileError, OriginationError};

/// `spiffe://cluster.local/ns/<namespace>/sa/<name>`.
pub(crate) fn id(namespace: &str, name: &str) -> SpiffeId {
    let domain = TrustDomain::parse("cluster.local").expect("a trust domain");
    SpiffeId::istio(&domain, namespace, name).expect("an ID")
}

pub(crate) fn workload(namespace: &str, name: &str) -> Arc<Workload> {
    Arc::new(Workload {
        namespace: namespace.into(),
        name: name.into(),
        service_account: name.into(),
        id: id(namespace, name),
        labels: BTreeMap::new(),
        addresses: vec!["10.0.0.2".parse().expect("an address")],
        ports: BTreeMap::new(),
        speaks_mtls: true,
        host_ports: None,
    })
}

pub(crate) fn service(namespace: &str, name: &str, host: &str) -> Arc<Service> {
    Arc::new(Service {
        namespace: namespace.into(),
        name: name.into(),
        hosts: vec![host.into()],
        addresses: Vec::new(),
        ports: Vec::new(),
        endpoints: Vec::new(),
        external: false,
        subject_alt_names: Vec::new(),
        unresolved: None,
    })
}

/// A flow that knows only what every flow knows: the enrolled workload is `full/client` outbound and
/// `full/server` inbound.
pub(crate) fn flow(direction: Direction) -> FlowRecord {
    let own = match direction {
        Direction::Outbound => workload("full", "client"),
        Direction::Inbound => workload("full", "server"),
    };
    let destination = "10.0.0.2:80".parse().expect("an address");
    let mut flow = FlowRecord::new(direction, own, destination);
    flow.source = "10.0.0.1:40000".parse().expect("an address");
    flow
}

/// Every kind of failure, with its code and whose fault it is.
pub(crate) fn failures() -> Vec<(Failure, &'static str, &'static str)> {
    let address: SocketAddr = "10.0.0.9:443".parse().expect("an address");
    let io = || io::Error::from_raw_os_error(104);
    let refused = || HandshakeError::PeerRefused("wrong trust domain".into());
    let peer = || HandshakeError::Peer("alert: bad certificate".into());
    let own = || HandshakeError::Own("no key".into());
    let revoked = || HandshakeError::PeerRevoked("leaked".into());
    let own_revoked = || HandshakeError::OwnRevoked("leaked".into());
    let unknown = || HandshakeError::RevocationUnknown("no list".into());
    let originated = |error| Failure::Origination { address, error };
    vec![
        (Failure::PlaintextRefused { because: "a".into() }, "plaintext_refused", "policy"),
        (
            Failure::AuthorizationDenied {
                verdict: WorkloadAuthorization::default().connection(&Connection {
                    principal: None,
                    source: address.ip(),
                    remote: address.ip(),
                    destination: address,
                    sni: None,
                }),
                client: "spiffe://cluster.local/ns/full/sa/client".into(),
            },
            "authorization_denied",
            "policy",
        ),
        (Failure::PolicyChanged { because: "a".into() }, "policy_changed", "policy"),
        (Failure::ForeignTlsOnHttpPort, "tls_on_http_port", "policy"),
        (Failure::ClientHandshake(refused()), "peer_identity_refused", "client"),
        (Failure::ClientHandshake(peer()), "tls_handshake_failed", "client"),
        (Failure::ClientHandshake(own()), "tls_handshake_failed", "us"),
        (Failure::ClientHandshake(revoked()), "peer_certificate_revoked", "client"),
        (Failure::ClientHandshake(own_revoked()), "own_certificate_revoked", "us"),
        (Failure::ClientHandshake(unknown()), "revocation_unknown", "us"),
        (
            Failure::UpstreamHandshake { address, error: revoked() },
            "upstream_certificate_revoked",
            "server",
        ),
        (
            Failure::UpstreamHandshake { address, error: own_revoked() },
            "own_certificate_revoked",
            "us",
        ),
        (Failure::UpstreamHandshake { address, error: unknown() }, "revocation_unknown", "us"),
        (
            Failure::NoLongerBelieved { upstream: false, error: revoked() },
            "peer_certificate_revoked",
            "client",
        ),
        (
            Failure::NoLongerBelieved { upstream: true, error: revoked() },
            "upstream_certificate_revoked",
            "server",
        ),
        (
            Failure::NoLongerBelieved {
                upstream: false,
                error: HandshakeError::PeerRefused("its CA is gone".into()),
            },
            "peer_identity_refused",
            "client",
        ),
        (
            Failure::NoLongerBelieved {
                upstream: true,
                error: HandshakeError::PeerRefused("its CA is gone".into()),
            },
            "upstream_identity_refused",
            "server",
        ),
        (
            Failure::NoLongerBelieved { upstream: true, error: own_revoked() },
            "own_certificate_revoked",
            "us",
        ),
        (
            Failure::NoLongerBelieved { upstream: false, error: unknown() },
            "revocation_unknown",
            "us",
        ),
        (Failure::DetectTimeout, "detect_timeout", "client"),
        (Failure::HttpRefused("two lengths"), "http_refused", "client"),
        (
            Failure::UpstreamHandshake { address, error: refused() },
            "upstream_identity_refused",
            "server",
        ),
        (Failure::UpstreamHandshake { address, error: peer() }, "upstream_tls_failed", "server"),
        (Failure::UpstreamHandshake { address, error: own() }, "upstream_tls_failed", "us"),
        (
            Failure::RulesDisagree { address, services: "a.test, b.test".into() },
            "rules_disagree",
            "policy",
        ),
        (Failure::NotResolved("a.test".into(), "?".into()), "name_not_resolved", "server"),
        (
            originated(OriginationError::NoCredential("a".into())),
            "credential_unavailable",
            "policy",
        ),
        (
            originated(OriginationError::File(FileError {
                field: "privateKey",
                path: "/k".into(),
                why: "is missing".into(),
            })),
            "tls_file_unusable",
            "policy",
        ),
        (originated(OriginationError::NoServerName), "server_name_missing", "policy"),
        (
            originated(OriginationError::UnknownCa { roots: "/ca".into() }),
            "upstream_ca_unknown",
            "server",
        ),
        (
            originated(OriginationError::WrongName { expected: "a".into(), found: "b".into() }),
            "upstream_name_refused",
            "server",
        ),
        (
            originated(OriginationError::OutOfDate("expired".into())),
            "upstream_certificate_expired",
            "server",
        ),
        (
            originated(OriginationError::Revoked("is".into())),
            "upstream_certificate_revoked",
            "server",
        ),
        (
            originated(OriginationError::Unusable("v1".into())),
            "upstream_certificate_unusable",
            "server",
        ),
        (
            originated(OriginationError::CertificateRequired),
            "client_certificate_required",
            "policy",
        ),
        (
            originated(OriginationError::CertificateRefused {
                path: "/c".into(),
                alert: "unknown_ca".into(),
            }),
            "client_certificate_refused",
            "policy",
        ),
        (originated(OriginationError::Handshake(peer())), "upstream_tls_failed", "server"),
        (originated(OriginationError::Handshake(own())), "upstream_tls_failed", "us"),
        (Failure::UpstreamConnect { address, error: io() }, "upstream_connect_failed", "server"),
        (Failure::NoIdentity { identity: "full/client".into(), error: None }, "no_identity", "us"),
        (Failure::NoEndpoint("web.test".into()), "no_endpoint", "server"),
        (Failure::NoSuchServicePort("web.test".into(), 81), "no_such_service_port", "server"),
        (Failure::RuleRefused("DestinationRule a/b is refused".into()), "rule_refused", "policy"),
        (Failure::NotExported("web.test".into(), "full".into()), "not_exported", "policy"),
        (Failure::NoOriginalDestination, "no_original_destination", "client"),
        (Failure::LoopRefused, "loop_refused", "client"),
        (Failure::ClientReset(io()), "client_reset", "client"),
        (Failure::UpstreamReset(io()), "upstream_reset", "server"),
        (Failure::NoAnswer, "no_answer", "server"),
        (Failure::BadAnswer("a".into()), "bad_answer", "server"),
        (Failure::Truncated, "truncated", "server"),
        (Failure::ClientTruncated, "truncated", "client"),
        (Failure::SourceBind(io()), "source_bind_failed", "us"),
        (Failure::Drained, "drained", "us"),
        (Failure::TooOld, "max_connection_age", "us"),
        (Failure::Internal("a \"quoted\"\nreason".into()), "internal", "us"),
    ]
}

/// The reason codes that the documentation promises.
pub(crate) fn documented_codes() -> BTreeSet<&'static str> {
    let text = include_str!("../../../docs/observability.md");
    let (_, codes) = text.split_once("Reason codes:").expect("the paragraph");
    let (codes, _) = codes.split_once("\n\n").expect("its end");
    // Every second piece stands between backticks.
    codes.split('`').skip(1).step_by(2).collect()
}
