//! The CA's files: made by whichever daemon comes first, read by the others that share them.

use std::path::Path;
use std::time::SystemTime;

use super::files::{lock, make_directory, put_in_place, read_private, temporary, write_beside};
use super::{Authority, CaError};
use crate::identity::{KeyType, TrustDomain};

/// Istio's names, so that `openssl verify -CAfile` and a reader's habits find them.
const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const LOCK: &str = "lock";

/// Reads the CA in `directory`, or makes it there, with a key of this type, if this daemon is the
/// first to come. A key that is there is never overwritten.
pub fn open_or_make(
    directory: &Path,
    trust_domain: &TrustDomain,
    key_type: KeyType,
) -> Result<Authority, CaError> {
    make_directory(directory)?;
    let _lock = lock(&directory.join(LOCK))?;
    let (certificate, key) = (directory.join(CERTIFICATE), directory.join(KEY));
    let unusable = |why| CaError::Unusable { directory: directory.to_owned(), why };
    match (read_private(&certificate)?, read_private(&key)?) {
        (Some(certificate), Some(key)) => {
            Authority::parse(&certificate, &key, SystemTime::now()).map_err(unusable)
        }
        (Some(found), None) => match read_private(&temporary(&key))? {
            Some(new) => {
                let authority =
                    Authority::parse(&found, &new, SystemTime::now()).map_err(unusable)?;
                put_in_place(&key)?;
                Ok(authority)
            }
            None => Err(CaError::NoKey { certificate, key }),
        },
        (None, Some(_)) => Err(CaError::NoCertificate { certificate, key }),
        (None, None) => {
            let (authority, pem) = Authority::generate(trust_domain, key_type, SystemTime::now())?;
            // The key gets its name last: until the certificate is there it is nobody's, and may be
            // made again; from then on it only has to be renamed.
            write_beside(&key, authority.key_pem().as_bytes())?;
            write_beside(&certificate, pem.as_bytes())?;
            put_in_place(&certificate)?;
            put_in_place(&key)?;
            tracing::info!(directory = %directory.display(), %trust_domain, "made a new CA");
            Ok(authority)
        }
    }
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
