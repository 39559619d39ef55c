//! A CA key at rest, encrypted: AES-256-GCM with a key derived from the operator's key-encryption
//! file, so that a copy of the CA's directory alone is worth nothing.

use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use zeroize::{Zeroize, Zeroizing};

use super::CaError;
use super::files::read_private_bytes;
use crate::tls::provider::random_bytes;

const BEGIN: &str = "-----BEGIN MTLS SEALED KEY-----";
const END: &str = "-----END MTLS SEALED KEY-----";
const SALT_LEN: usize = 32;
const INFO: &[u8] = b"mtls-daemon ca key, version 1";

/// The content of a key-encryption file. Wiped when it is dropped.
pub struct SealingKey(Zeroizing<Vec<u8>>);

struct Aes256;

impl KeyType for Aes256 {
    fn len(&self) -> usize {
        32
    }
}

impl SealingKey {
    /// At least 32 bytes, which should be random: the file is a key, not a password.
    pub fn read(path: &Path) -> Result<Self, CaError> {
        let content = read_private_bytes(path)?;
        if content.len() < 32 {
            let why = "it must hold at least 32 random bytes (`head -c 32 /dev/urandom`)";
            return Err(CaError::SealingKey { path: path.to_owned(), why });
        }
        Ok(Self(content))
    }

    /// As text in the manner of PEM.
    pub(crate) fn seal(&self, plain: &[u8]) -> Result<String, CaError> {
        let salt: [u8; SALT_LEN] = random_bytes().map_err(CaError::Sign)?;
        let failed = |_| CaError::Sign("the CA's key cannot be encrypted".to_owned());
        let mut sealed = Zeroizing::new(plain.to_vec());
        let key = self.derive(&salt).map_err(failed)?;
        let nonce = key.seal_in_place_append_tag(Aad::from(INFO), &mut *sealed).map_err(failed)?;
        let all = [&salt[..], nonce.as_ref(), &sealed].concat();
        let hex: String = all.iter().map(|byte| format!("{byte:02x}")).collect();
        let lines: Vec<&str> =
            hex.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        Ok(format!("{BEGIN}\n{}\n{END}\n", lines.join("\n")))
    }

    /// What was sealed; None: another key sealed it, or it was changed.
    pub(crate) fn open(&self, sealed: &str) -> Option<Zeroizing<String>> {
        let hex = sealed.trim().strip_prefix(BEGIN)?.strip_suffix(END)?;
        let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let bytes: Option<Vec<u8>> = digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect();
        let bytes = bytes?;
        let (salt, rest) = bytes.split_at_checked(SALT_LEN)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut buffer = Zeroizing::new(sealed.to_vec());
        let key = self.derive(salt).ok()?;
        let plain = key.open_in_place(nonce, Aad::from(INFO), &mut buffer).ok()?;
        let mut text = Zeroizing::new(String::with_capacity(plain.len()));
        text.push_str(std::str::from_utf8(plain).ok()?);
        plain.zeroize();
        Some(text)
    }

    /// A salt of its own for every key: the same file may seal several.
    fn derive(&self, salt: &[u8]) -> Result<RandomizedNonceKey, aws_lc_rs::error::Unspecified> {
        let mut key = Zeroizing::new([0; 32]);
        let secret = Salt::new(HKDF_SHA256, salt).extract(&self.0);
        secret.expand(&[INFO], Aes256)?.fill(&mut *key)?;
        RandomizedNonceKey::new(&AES_256_GCM, &*key)
    }
}

/// Whether a key file is encrypted.
pub(crate) fn is_sealed(text: &str) -> bool {
    text.trim_start().starts_with(BEGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SealingKey {
        SealingKey(vec![byte; 40].into())
    }

    #[test]
    fn what_is_sealed_opens_with_its_key_alone() {
        let sealed = key(1).seal(b"the secret").unwrap();
        assert!(is_sealed(&sealed) && !sealed.contains("secret"), "{sealed}");
        assert_eq!(key(1).open(&sealed).unwrap().as_str(), "the secret");
        assert!(key(2).open(&sealed).is_none());
        assert_ne!(key(1).seal(b"the secret").unwrap(), sealed, "never the same twice");
    }

    #[test]
    fn what_was_changed_does_not_open() {
        let sealed = key(1).seal(b"the secret").unwrap();
        for at in BEGIN.len() + 1..sealed.len() - END.len() - 2 {
            let mut bytes = sealed.clone().into_bytes();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(key(1).open(&changed).is_none(), "byte {at}");
        }
        for spoilt in ["", BEGIN, &sealed[..sealed.len() / 2], "-----BEGIN PRIVATE KEY-----"] {
            assert!(key(1).open(spoilt).is_none());
        }
    }

    #[test]
    fn a_short_key_file_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kek");
        std::fs::write(&path, "hunter2").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(SealingKey::read(&path), Err(CaError::SealingKey { .. })));
        std::fs::write(&path, [7; 32]).unwrap();
        assert!(SealingKey::read(&path).is_ok());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(SealingKey::read(&path), Err(CaError::Permissions { .. })));
    }
}
