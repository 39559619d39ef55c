//! The key that a join token is used with: the same one until its certificate is on disk. The CA gives
//! a lost answer again, to this key and to nobody else.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rcgen::KeyPair;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{Wiped, new_key};
use crate::identity::KeyType;
use crate::identity::ca::{CaError, files};

/// What the file says of the token that the key belongs to.
const TOKEN: &str = "join token, SHA-256: ";

pub(super) struct JoinKeys {
    file: PathBuf,
    /// In use also when it cannot be written.
    held: Mutex<Option<Held>>,
}

struct Held {
    token: String,
    /// PKCS#8.
    key: Zeroizing<Vec<u8>>,
}

impl JoinKeys {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self { file: state_dir.join("join-key.pem"), held: Mutex::default() }
    }

    /// The key of this token; made if there is none. Blocking: an RSA key takes seconds.
    pub(super) fn of(&self, token: &str, key_type: KeyType) -> Result<Wiped, String> {
        let token = digest(token);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = held.as_ref().filter(|held| held.token == token) {
            return held.pair();
        }
        let found = match self.read() {
            Ok(found) => found.filter(|found| found.token == token),
            // It may be there, and good: the CA knows no other one.
            Err(error @ CaError::Io { .. }) => return Err(error.to_string()),
            Err(error) => {
                tracing::warn!(%error, "a new key is made to join with");
                None
            }
        };
        let found = match found {
            Some(found) => found,
            None => self.make(token, key_type)?,
        };
        let pair = found.pair();
        *held = Some(found);
        pair
    }

    /// To be called when its certificate is kept, or another.
    pub(super) fn forget(&self) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = None;
        match std::fs::remove_file(&self.file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let file = self.file.display();
                tracing::warn!(%file, %error, "a key that is needed no more cannot be removed");
            }
            _ => {}
        }
    }

    fn make(&self, token: String, key_type: KeyType) -> Result<Held, String> {
        let made = new_key(key_type)?;
        let held = Held { token, key: made.0.serialize_der().into() };
        if let Err(error) = files::write_private(&self.file, held.text().as_bytes()) {
            tracing::warn!(
                %error,
                "the key to join with is in use and cannot be kept: if this daemon ends before the CA's \
                 answer is here, the token may be spent for nothing"
            );
        }
        Ok(held)
    }

    /// None: there is none, or nothing that could be one.
    fn read(&self) -> Result<Option<Held>, CaError> {
        let Some(text) = files::read_private(&self.file)? else { return Ok(None) };
        let token = text.lines().find_map(|line| line.strip_prefix(TOKEN)).map(str::to_owned);
        let Ok(PrivateKeyDer::Pkcs8(key)) = PrivateKeyDer::from_pem_slice(text.as_bytes()) else {
            return Ok(None);
        };
        let key = Zeroizing::new(key.secret_pkcs8_der().to_vec());
        let held = token.map(|token| Held { token, key });
        Ok(held.filter(|held| held.pair().is_ok()))
    }
}

impl Held {
    fn pair(&self) -> Result<Wiped, String> {
        let der = PrivateKeyDer::Pkcs8(self.key.as_slice().into());
        let pair = KeyPair::try_from(&der);
        pair.map(Wiped).map_err(|error| format!("the key to join with: {error}"))
    }

    fn text(&self) -> Zeroizing<String> {
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        let block = pem::encode_config(&pem::Pem::new("PRIVATE KEY", self.key.as_slice()), config);
        let block = Zeroizing::new(block);
        // Room for all of it: a string that grows leaves pieces of the key behind.
        let mut text = Zeroizing::new(String::with_capacity(64 * 1024));
        text.push_str(TOKEN);
        text.push_str(&self.token);
        text.push('\n');
        text.push_str(&block);
        text
    }
}

/// Tells one token from another.
pub(super) fn digest(token: &str) -> String {
    Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::PublicKeyData;

    use super::*;

    fn spki(keys: &JoinKeys, token: &str) -> Vec<u8> {
        keys.of(token, KeyType::default()).unwrap().0.subject_public_key_info()
    }

    #[test]
    fn a_token_has_one_key_until_that_is_needed_no_more() {
        let place = tempfile::tempdir().unwrap();
        let keys = || JoinKeys::new(place.path());
        let running = keys();
        let first = spki(&running, "one");
        assert_eq!(spki(&running, "one"), first);
        assert_eq!(spki(&keys(), "one"), first, "also after a restart");
        let file = place.path().join("join-key.pem");
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_ne!(spki(&keys(), "two"), first);
        let second = spki(&keys(), "two");
        running.forget();
        assert!(!file.exists());
        assert_ne!(spki(&running, "two"), second);
    }

    #[test]
    fn what_is_no_key_is_replaced_and_what_cannot_be_written_is_used() {
        let place = tempfile::tempdir().unwrap();
        let keys = || JoinKeys::new(place.path());
        let file = place.path().join("join-key.pem");
        std::fs::write(&file, "nothing").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        let shared = spki(&keys(), "one");
        assert_eq!(spki(&keys(), "one"), shared);
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
        assert_ne!(spki(&keys(), "one"), shared, "others may have it");

        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(place.path().join("join-key.pem.new")).unwrap();
        let running = keys();
        assert_eq!(spki(&running, "one"), spki(&running, "one"));
        assert!(!file.exists());
    }
}
