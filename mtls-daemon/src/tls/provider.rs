//! The cryptography that every handshake uses.

use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;
use rustls::{SupportedProtocolVersion, version};

/// TLS 1.3 alone: what every mesh peer speaks, and the only version with nothing to configure wrong.
pub(super) static VERSIONS: &[&SupportedProtocolVersion] = &[&version::TLS13];

/// aws-lc-rs, with X25519MLKEM768 ahead of the classical groups.
static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));

pub(super) fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}

/// Bytes from the provider's generator, for serial numbers and the like. Fails only if the
/// operating system gives no entropy.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    match PROVIDER.secure_random.fill(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(_) => Err("the operating system gives no random bytes".to_owned()),
    }
}
