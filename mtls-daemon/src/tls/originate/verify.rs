//! The server of an originated connection: its chain by webpki, then its name.
//!
//! Configurations are shared by connections that expect different names; what one handshake
//! expects, and what it finds, goes through a task-local value as for the mesh's own handshakes.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};

use super::error::{OriginationError, date};
use super::files::Material;
use crate::tls::signatures::signature_methods;

/// What one handshake expects and learns.
pub(super) struct Expectation {
    /// Any of them will do.
    pub names: Arc<[Arc<str>]>,
    pub refusal: RefCell<Option<OriginationError>>,
    /// The server asked for a client certificate.
    pub asked: Cell<bool>,
}

tokio::task_local! {
    pub(super) static EXPECTATION: Expectation;
}

#[derive(Debug)]
pub(super) struct ServerVerifier {
    /// None: `insecureSkipVerify`.
    anchors: Option<Vec<TrustAnchor<'static>>>,
    crls: Vec<CertRevocationList<'static>>,
    roots: Arc<str>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerVerifier {
    pub fn new(material: &mut Material, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self {
            anchors: material.anchors.take(),
            crls: std::mem::take(&mut material.crls),
            roots: material.roots.clone(),
            algorithms,
        }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        names: &[Arc<str>],
    ) -> Result<(), OriginationError> {
        let Some(anchors) = &self.anchors else { return Ok(()) };
        let certificate = EndEntityCert::try_from(leaf).map_err(|error| self.refusal(error))?;
        let crls: Vec<&CertRevocationList<'_>> = self.crls.iter().collect();
        // None without lists: then nothing is asked.
        let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        certificate
            .verify_for_usage(
                self.algorithms.all,
                anchors,
                intermediates,
                now,
                KeyUsage::server_auth(),
                revocation,
                None,
            )
            .map_err(|error| self.refusal(error))?;
        if names.iter().any(|name| has_name(&certificate, name)) {
            return Ok(());
        }
        let found = shown_names(leaf);
        if found.is_empty() {
            return Err(OriginationError::unusable(
                "it has no subject alternative name, and a common name alone proves none",
            ));
        }
        let expected = names.iter().map(|name| &**name).collect::<Vec<_>>().join(" or ");
        Err(OriginationError::WrongName { expected, found })
    }

    fn refusal(&self, error: webpki::Error) -> OriginationError {
        use webpki::Error::*;
        match error {
            UnknownIssuer | InvalidSignatureForPublicKey => {
                OriginationError::UnknownCa { roots: self.roots.clone() }
            }
            CertExpired { not_after, .. } => {
                OriginationError::OutOfDate(format!("expired at {}", date(not_after)))
            }
            CertNotValidYet { not_before, .. } => {
                OriginationError::OutOfDate(format!("is valid from {} only", date(not_before)))
            }
            CertRevoked => OriginationError::Revoked("it is revoked".to_owned()),
            error @ (UnknownRevocationStatus | CrlExpired { .. }) => {
                OriginationError::Revoked(error.to_string())
            }
            UnsupportedCertVersion => OriginationError::unusable("it is X.509 v1"),
            CaUsedAsEndEntity => {
                OriginationError::unusable("it is an authority's (CA:TRUE), not a server's")
            }
            other => OriginationError::Unusable(other.to_string()),
        }
    }
}

/// A URI, an IP address or a DNS name among the certificate's alternative names.
fn has_name(certificate: &EndEntityCert<'_>, name: &str) -> bool {
    if name.contains("://") {
        return certificate.valid_uri_names().any(|uri| uri == name);
    }
    // DNS names have no case; a certificate's leading wildcard stands for one label.
    let listed = || certificate.valid_dns_names().any(|dns| dns.eq_ignore_ascii_case(name));
    ServerName::try_from(name)
        .is_ok_and(|name| certificate.verify_is_valid_for_subject_name(&name).is_ok())
        || listed()
}

/// The names of a verified certificate, for a message: bounded, and escaped.
fn shown_names(leaf: &[u8]) -> String {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else { return String::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return String::new() };
    let shown = names.value.general_names.iter().take(8).map(|name| match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => format!("{name:?}"),
        GeneralName::IPAddress(bytes) => match **bytes {
            [a, b, c, d] => std::net::Ipv4Addr::new(a, b, c, d).to_string(),
            _ => <[u8; 16]>::try_from(*bytes).map_or_else(
                |_| "?".to_owned(),
                |bytes| std::net::Ipv6Addr::from(bytes).to_string(),
            ),
        },
        other => format!("{other:?}").chars().take(80).collect(),
    });
    shown.collect::<Vec<_>>().join(", ")
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = EXPECTATION.try_with(|expectation| {
            self.verify(end_entity, intermediates, now, &expectation.names).map_err(|refusal| {
                let told = alert(&refusal);
                expectation.refusal.replace(Some(refusal));
                told
            })
        });
        // Outside of a handshake of ours nobody is expected.
        verified.unwrap_or(Err(CertificateError::ApplicationVerificationFailure))?;
        Ok(ServerCertVerified::assertion())
    }

    signature_methods!(verify_tls12_signature);
}

/// What the server gets to know: rustls derives the alert from it.
fn alert(refusal: &OriginationError) -> CertificateError {
    match refusal {
        OriginationError::UnknownCa { .. } => CertificateError::UnknownIssuer,
        OriginationError::WrongName { .. } => CertificateError::NotValidForName,
        OriginationError::OutOfDate(_) => CertificateError::Expired,
        OriginationError::Revoked(_) => CertificateError::Revoked,
        other => {
            CertificateError::Other(OtherError(Arc::new(std::io::Error::other(other.to_string()))))
        }
    }
}

/// Shows the rule's certificate, or none; either way it is noted that the server asked.
#[derive(Debug)]
pub(super) struct OwnCertificate(pub Option<Arc<CertifiedKey>>);

impl ResolvesClientCert for OwnCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        // Outside of a handshake of ours nobody wants to know.
        EXPECTATION.try_with(|expectation| expectation.asked.set(true)).ok();
        self.0.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}
