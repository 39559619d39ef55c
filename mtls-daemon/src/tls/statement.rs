//! What somebody else's key signed, outside of any handshake: an SVID's chain, and text below it.

use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::aws_lc_rs::ECDSA_P256_SHA256;
use webpki::{EndEntityCert, KeyUsage, VerifiedPath, anchor_from_trusted_cert};

use super::{provider, svid_rules};
use crate::identity::SpiffeId;

/// Whether `chain` (leaf first) is an SVID of `expected` that one of `anchors` vouches for at `now`.
///
/// # Errors
/// In words.
pub fn check_chain(
    chain: &[CertificateDer<'_>],
    anchors: &[CertificateDer<'_>],
    expected: &SpiffeId,
    now: SystemTime,
) -> Result<(), String> {
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err("there is no certificate".to_owned());
    };
    let facts = svid_rules::leaf(leaf).map_err(|refusal| refusal.to_string())?;
    if facts.id != *expected {
        return Err(format!("it is {}, and should be {expected}", facts.id));
    }
    let anchors: Result<Vec<_>, _> = anchors.iter().map(anchor_from_trusted_cert).collect();
    let anchors = anchors.map_err(|error| format!("a trust anchor is unusable: {error}"))?;
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let signers = |path: &VerifiedPath<'_>| {
        let mut signers = path.intermediate_certificates();
        let sound = signers.try_for_each(|signer| svid_rules::signer(&signer.der()));
        sound.map_err(|_| webpki::Error::EndEntityUsedAsCa)
    };
    EndEntityCert::try_from(leaf)
        .and_then(|leaf| {
            leaf.verify_for_usage(
                provider::provider().signature_verification_algorithms.all,
                &anchors,
                intermediates,
                UnixTime::since_unix_epoch(now),
                KeyUsage::client_auth(),
                None,
                Some(&signers),
            )
            .map(|_| ())
        })
        .map_err(|error| format!("{expected}: its chain does not verify: {error}"))
}

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
