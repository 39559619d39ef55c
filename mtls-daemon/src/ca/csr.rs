//! Certificate signing requests. Only the public key counts; names and extensions are not even looked
//! at (policy.md 7.3).

use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::pem::{PemObject, SectionKind};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION,
    OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA,
};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

/// A request with an RSA key of 4096 bits and a few names has not even 3 KiB.
pub const LONGEST: usize = 16 * 1024;

const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    #[error("the CSR has {0} bytes, at most {LONGEST} are accepted")]
    TooLong(usize),
    #[error("the CSR is not PEM")]
    NoPem,
    #[error("exactly one PEM block is expected, a CERTIFICATE REQUEST")]
    NotOne,
    #[error("the CSR cannot be parsed")]
    Unreadable,
    #[error(
        "the key in the CSR is {0}; ECDSA P-256 and P-384 and RSA of 2048 to 4096 bits are accepted"
    )]
    Key(String),
    #[error("the CSR is signed with SHA-1")]
    Sha1,
    #[error("the CSR is not signed with the key that it names")]
    Signature,
}

/// The public key of a request whose sender has shown to hold the private one.
pub fn public_key(pem: &str) -> Result<SubjectPublicKeyInfo, CsrError> {
    if pem.len() > LONGEST {
        return Err(CsrError::TooLong(pem.len()));
    }
    let sections: Result<Vec<(SectionKind, Vec<u8>)>, _> =
        <(SectionKind, Vec<u8>)>::pem_slice_iter(pem.as_bytes()).collect();
    let sections = sections.map_err(|_| CsrError::NoPem)?;
    let [(SectionKind::Csr, der)] = &sections[..] else { return Err(CsrError::NotOne) };
    let Ok(([], csr)) = X509CertificationRequest::from_der(der) else {
        return Err(CsrError::Unreadable);
    };
    let key = &csr.certification_request_info.subject_pki;
    check_kind(key)?;
    // Otherwise our library would take it.
    if [OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA].contains(&csr.signature_algorithm.algorithm) {
        return Err(CsrError::Sha1);
    }
    csr.verify_signature().map_err(|_| CsrError::Signature)?;
    SubjectPublicKeyInfo::from_der(key.raw).map_err(|error| CsrError::Key(error.to_string()))
}

fn check_kind(key: &x509_parser::x509::SubjectPublicKeyInfo<'_>) -> Result<(), CsrError> {
    let algorithm = &key.algorithm.algorithm;
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = key.algorithm.parameters.as_ref().and_then(|it| it.as_oid().ok());
        return match curve {
            Some(curve) if curve == OID_EC_P256 || curve == OID_NIST_EC_P384 => Ok(()),
            _ => Err(CsrError::Key("on another curve".to_owned())),
        };
    }
    if *algorithm == OID_PKCS1_RSAENCRYPTION {
        let Ok(PublicKey::RSA(rsa)) = key.parsed() else { return Err(CsrError::Unreadable) };
        return match rsa.key_size() {
            bits if RSA_BITS.contains(&bits) => Ok(()),
            bits => Err(CsrError::Key(format!("RSA of {bits} bits"))),
        };
    }
    Err(CsrError::Key(format!("of algorithm {algorithm}")))
}

#[cfg(test)]
#[path = "csr_tests.rs"]
mod tests;
