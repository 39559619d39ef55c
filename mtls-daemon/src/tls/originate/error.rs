//! Why TLS could not be originated: each cause with a code of its own, for each has another cure.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::UnixTime;

use crate::tls::HandshakeError;

#[derive(Debug, thiserror::Error)]
pub enum OriginationError {
    #[error(
        "credentialName {0:?} names a Kubernetes Secret, and there is no Kubernetes to ask: name \
         files on the node with clientCertificate, privateKey and caCertificates"
    )]
    NoCredential(Arc<str>),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "no name to ask the server for: the service's hosts are wildcards, and what the client \
         sent is no HTTP request for one of them; set `sni` in the rule"
    )]
    NoServerName,
    #[error(
        "the server's certificate is not signed by a CA in {roots}: is caCertificates the CA that \
         signed it?"
    )]
    UnknownCa { roots: Arc<str> },
    #[error(
        "the server's certificate is for {found}, and {expected} is expected: is the address the \
         right server's, and are `sni` and `subjectAltNames` what its certificate says?"
    )]
    WrongName { expected: String, found: String },
    #[error("the server's certificate {0}: renew it there, or set this node's clock")]
    OutOfDate(String),
    #[error("the server's certificate is revoked by caCrl, or its state is not in it: {0}")]
    Revoked(String),
    /// Sound for some other software perhaps.
    #[error("the server's certificate cannot be verified: {0}")]
    Unusable(String),
    #[error(
        "the server requires a client certificate, and the rule has none: say MUTUAL, with \
         clientCertificate and privateKey"
    )]
    CertificateRequired,
    #[error(
        "the server refuses the client certificate {path} (alert {alert}): is it in date, and \
         signed by a CA that the server trusts for clients?"
    )]
    CertificateRefused { path: Arc<str>, alert: String },
    #[error(transparent)]
    Handshake(HandshakeError),
}

/// A file that the rule names, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {path}: {why}")]
pub struct FileError {
    /// The rule's field.
    pub field: &'static str,
    pub path: Arc<str>,
    pub why: String,
}

impl OriginationError {
    /// Stable reason code for logs and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoCredential(_) => "credential_unavailable",
            Self::File(_) => "tls_file_unusable",
            Self::NoServerName => "server_name_missing",
            Self::UnknownCa { .. } => "upstream_ca_unknown",
            Self::WrongName { .. } => "upstream_name_refused",
            Self::OutOfDate(_) => "upstream_certificate_expired",
            Self::Revoked(_) => "upstream_certificate_revoked",
            Self::Unusable(_) => "upstream_certificate_unusable",
            Self::CertificateRequired => "client_certificate_required",
            Self::CertificateRefused { .. } => "client_certificate_refused",
            Self::Handshake(_) => "upstream_tls_failed",
        }
    }

    /// How to make a certificate that can be verified, where this one cannot (policy.md 3.7).
    pub(super) fn unusable(why: &str) -> Self {
        Self::Unusable(format!(
            "{why}; make one that is X.509 v3 with a subject alternative name: `openssl x509 -req \
             -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -extfile \
             <(echo subjectAltName=DNS:db.example.com)`"
        ))
    }
}

pub(super) fn date(time: UnixTime) -> impl std::fmt::Display {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs());
    humantime::format_rfc3339_seconds(time)
}
