//! Certificates and keys as files and APIs carry them: PEM, or DER one after the other.

use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why certificates or a key cannot be read. Never with any of a key's bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodingError {
    #[error("it is not PEM: {0}")]
    Pem(String),
    #[error("there is no PEM block in it")]
    NoPem,
    #[error("there is no certificate in it")]
    NoCertificate,
    #[error("there is no private key in it (PKCS#8, PKCS#1 or SEC 1, unencrypted)")]
    NoKey,
    #[error("certificate {number} cannot be parsed: {why}")]
    Certificate { number: usize, why: String },
}

/// Every certificate of a PEM text, in order; blocks of other kinds are passed over.
pub fn certificates_from_pem(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, EncodingError> {
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>().map_err(pem_error)?;
    if certificates.is_empty() {
        return Err(if is_pem(text) { EncodingError::NoCertificate } else { EncodingError::NoPem });
    }
    for (index, certificate) in certificates.iter().enumerate() {
        let rest = parse(certificate, index)?;
        if !rest.is_empty() {
            let why = "bytes follow it".to_owned();
            return Err(EncodingError::Certificate { number: index + 1, why });
        }
    }
    Ok(certificates)
}

/// Certificates in DER, one directly after the other.
pub fn certificates_from_der(
    mut bytes: &[u8],
) -> Result<Vec<CertificateDer<'static>>, EncodingError> {
    let mut certificates = Vec::new();
    while !bytes.is_empty() {
        let rest = parse(bytes, certificates.len())?;
        let (certificate, rest) = bytes.split_at(bytes.len() - rest.len());
        certificates.push(CertificateDer::from(certificate.to_vec()));
        bytes = rest;
    }
    match certificates.is_empty() {
        true => Err(EncodingError::NoCertificate),
        false => Ok(certificates),
    }
}

/// The first private key of a PEM text; blocks of other kinds are passed over.
pub fn key_from_pem(text: &[u8]) -> Result<PrivateKeyDer<'static>, EncodingError> {
    PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        pem::Error::NoItemsFound if is_pem(text) => EncodingError::NoKey,
        pem::Error::NoItemsFound => EncodingError::NoPem,
        other => pem_error(other),
    })
}

/// A private key in DER, which is PKCS#8 wherever SPIFFE carries one.
pub fn key_from_der(bytes: &[u8]) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(bytes.to_vec()).into()
}

/// Whether a file holds PEM: DER never has these words at its beginning.
pub fn is_pem(bytes: &[u8]) -> bool {
    bytes.windows(BEGIN.len()).any(|window| window == BEGIN)
}

const BEGIN: &[u8] = b"-----BEGIN ";

/// What follows the certificate that is number `index`.
fn parse(der: &[u8], index: usize) -> Result<&[u8], EncodingError> {
    match X509Certificate::from_der(der) {
        Ok((rest, _)) => Ok(rest),
        Err(error) => Err(EncodingError::Certificate { number: index + 1, why: error.to_string() }),
    }
}

fn pem_error(error: pem::Error) -> EncodingError {
    // Some of its texts repeat the offending line, which may be a key's.
    EncodingError::Pem(match error {
        pem::Error::MissingSectionEnd { .. } => "a block does not end".to_owned(),
        pem::Error::IllegalSectionStart { .. } => "a block's first line is malformed".to_owned(),
        pem::Error::Base64Decode(_) => "a block is not base64".to_owned(),
        pem::Error::NoItemsFound => "it holds nothing of this kind".to_owned(),
        _ => "it cannot be read".to_owned(),
    })
}

#[cfg(test)]
#[path = "encoding_tests.rs"]
mod tests;
