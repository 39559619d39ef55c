//! Private files: written whole or not at all, read only if nobody else could have.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::CaError;

/// Mode bits of the CA's directory and of its files.
pub(crate) const DIRECTORY_MODE: u32 = 0o700;
pub(crate) const FILE_MODE: u32 = 0o600;

/// What is done under the lock takes milliseconds; whoever holds it longer is stuck.
const LOCK_WAIT: Duration = Duration::from_secs(30);

/// More than any list of a large mesh.
const LONGEST: u64 = 64 << 20;

pub(crate) fn make_directory(directory: &Path) -> Result<(), CaError> {
    let made = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory);
    made.map_err(io_error("make the directory", directory))?;
    let opened = File::open(directory).map_err(io_error("open the directory", directory))?;
    check_private(directory, &opened, DIRECTORY_MODE)
}

/// Unlocked when the file is dropped, also by a crash.
pub(crate) fn lock(path: &Path) -> Result<File, CaError> {
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
pub(crate) fn read_private(path: &Path) -> Result<Option<Zeroizing<String>>, CaError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("open", path)(error)),
    };
    check_private(path, &file, FILE_MODE)?;
    // Room for any key from the start: a string that grows leaves pieces of it behind.
    let mut text = Zeroizing::new(String::with_capacity(64 * 1024));
    file.take(LONGEST).read_to_string(&mut text).map_err(io_error("read", path))?;
    Ok(Some(text))
}

/// A file that must be there, whatever is in it.
pub(crate) fn read_private_bytes(path: &Path) -> Result<Zeroizing<Vec<u8>>, CaError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    check_private(path, &file, FILE_MODE)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(64 * 1024));
    file.take(LONGEST).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    Ok(bytes)
}

/// A file that something else looks after (a mounted secret), which must be there.
pub(crate) fn read_mounted(path: &Path) -> Result<Zeroizing<String>, CaError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    let mut text = Zeroizing::new(String::with_capacity(64 * 1024));
    file.take(LONGEST).read_to_string(&mut text).map_err(io_error("read", path))?;
    Ok(text)
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
pub(crate) fn write_beside(path: &Path, content: &[u8]) -> Result<(), CaError> {
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

/// Writes `path` whole: a reader sees what was there before or all of `content`.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<(), CaError> {
    write_beside(path, content)?;
    put_in_place(path)
}

/// Gives what [`write_beside`] wrote its name, for good also across a power failure.
pub(crate) fn put_in_place(path: &Path) -> Result<(), CaError> {
    fs::rename(temporary(path), path).map_err(io_error("rename into place", path))?;
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("sync the directory", directory))
}

pub(crate) fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

pub(crate) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CaError {
    let path = path.to_owned();
    move |error| CaError::Io { what, path, error }
}
