//! The CA's files: made by whichever daemon comes first, read by the others that share them.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use zeroize::Zeroizing;

use super::{Authority, CaError, DIRECTORY_MODE, FILE_MODE};
use crate::identity::{KeyType, TrustDomain};

/// Istio's names, so that `openssl verify -CAfile` and a reader's habits find them.
const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const LOCK: &str = "lock";

/// Making a root takes milliseconds; whoever holds the lock longer is stuck.
const LOCK_WAIT: Duration = Duration::from_secs(30);

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

fn make_directory(directory: &Path) -> Result<(), CaError> {
    let made = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory);
    made.map_err(io_error("make the directory", directory))?;
    let opened = File::open(directory).map_err(io_error("open the directory", directory))?;
    check_private(directory, &opened, DIRECTORY_MODE)
}

/// Unlocked when the file is dropped, also by a crash.
fn lock(path: &Path) -> Result<File, CaError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(FILE_MODE)
        .open(path)
        .map_err(io_error("open the lock", path))?;
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => {
                let seconds = LOCK_WAIT.as_secs();
                return Err(CaError::Locked { path: path.to_owned(), seconds });
            }
            Err(TryLockError::Error(error)) => return Err(io_error("lock", path)(error)),
        }
    }
}

/// None if it is not there.
fn read_private(path: &Path) -> Result<Option<Zeroizing<String>>, CaError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("open", path)(error)),
    };
    check_private(path, &file, FILE_MODE)?;
    // Room for any key from the start: a string that grows leaves pieces of it behind.
    let mut text = Zeroizing::new(String::with_capacity(64 * 1024));
    file.take(64 * 1024).read_to_string(&mut text).map_err(io_error("read", path))?;
    Ok(Some(text))
}

/// Asks the open file, not the path: nobody can exchange it in between.
fn check_private(path: &Path, file: &File, mode: u32) -> Result<(), CaError> {
    let facts = file.metadata().map_err(io_error("look at", path))?;
    let us = nix::unistd::geteuid().as_raw();
    if facts.uid() != us {
        return Err(CaError::Owner { path: path.to_owned(), owner: facts.uid(), us });
    }
    if facts.mode() & 0o077 != 0 {
        let found = facts.mode() & 0o7777;
        return Err(CaError::Permissions { path: path.to_owned(), mode: found, fix: mode });
    }
    Ok(())
}

/// Writes what is to be `path`, under its temporary name: all of it is on disk when this returns.
fn write_beside(path: &Path, content: &[u8]) -> Result<(), CaError> {
    let beside = temporary(path);
    // Left over from a crash; we hold the lock, so nobody is writing it now.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("remove", &beside)(error));
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(FILE_MODE)
        .open(&beside)
        .map_err(io_error("make", &beside))?;
    file.write_all(content).map_err(io_error("write", &beside))?;
    file.sync_all().map_err(io_error("sync", &beside))
}

/// Gives what [`write_beside`] wrote its name, for good also across a power failure.
fn put_in_place(path: &Path) -> Result<(), CaError> {
    fs::rename(temporary(path), path).map_err(io_error("rename into place", path))?;
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("sync the directory", directory))
}

fn temporary(path: &Path) -> PathBuf {
    path.with_extension("pem.new")
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CaError {
    let path = path.to_owned();
    move |error| CaError::Io { what, path, error }
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
