//! What somebody else's key signed, outside of any handshake.

use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;
use webpki::aws_lc_rs::ECDSA_P256_SHA256;

/// Whether the P-256 key of `leaf` made `signature` over `message`. Says nothing about the leaf.
///
/// # Errors
/// In words.
pub fn check_signature(
    leaf: &CertificateDer<'_>,
    message: &[u8],
    signature: &[u8],
) -> Result<(), String> {
    EndEntityCert::try_from(leaf)
        .and_then(|leaf| leaf.verify_signature(ECDSA_P256_SHA256, message, signature))
        .map_err(|error| format!("the signature does not verify: {error}"))
}
