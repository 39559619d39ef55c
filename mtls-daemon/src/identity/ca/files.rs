//! Private files: written whole or not at all, read only if nobody else could have.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Read, Write};
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

/// More than any list of a large mesh. What is longer is an error, never cut.
const LONGEST: u64 = 256 << 20;

fn longest() -> u64 {
    #[cfg(test)]
    if let Some(lowered) = LOWERED.get() {
        return lowered;
    }
    LONGEST
}

#[cfg(test)]
thread_local! {
    /// In this thread alone.
    pub(crate) static LOWERED: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

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
    let Some(file) = open_private(path)? else { return Ok(None) };
    Ok(Some(text(path, &file, longest())?))
}

/// For what is read piece by piece. None if it is not there.
pub(crate) fn open_private(path: &Path) -> Result<Option<File>, CaError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("open", path)(error)),
    };
    check_private(path, &file, FILE_MODE)?;
    Ok(Some(file))
}

fn text(path: &Path, file: &File, most: u64) -> Result<Zeroizing<String>, CaError> {
    let mut bytes = bytes(path, file, most)?;
    let text = String::from_utf8(std::mem::take(&mut *bytes)).map_err(|error| {
        let error = error.utf8_error();
        io_error("read", path)(io::Error::new(io::ErrorKind::InvalidData, error))
    })?;
    Ok(Zeroizing::new(text))
}

fn bytes(path: &Path, file: &File, most: u64) -> Result<Zeroizing<Vec<u8>>, CaError> {
    let too_long = || CaError::TooLong { path: path.to_owned(), most };
    if file.metadata().map_err(io_error("look at", path))?.len() > most {
        return Err(too_long());
    }
    // Room for any key from the start: a buffer that grows leaves pieces of it behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(64 * 1024));
    file.take(most + 1).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    if bytes.len() as u64 > most { Err(too_long()) } else { Ok(bytes) }
}

/// A file that must be there, whatever is in it.
pub(crate) fn read_private_bytes(path: &Path) -> Result<Zeroizing<Vec<u8>>, CaError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    check_private(path, &file, FILE_MODE)?;
    bytes(path, &file, longest())
}

/// A file that something else looks after (a mounted secret), which must be there.
pub(crate) fn read_mounted(path: &Path) -> Result<Zeroizing<String>, CaError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    text(path, &file, longest())
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
    if content.len() as u64 > longest() {
        return Err(CaError::TooLong { path: path.to_owned(), most: longest() });
    }
    let mut file = make_beside(path)?;
    let beside = temporary(path);
    file.write_all(content).map_err(io_error("write", &beside))?;
    file.sync_all().map_err(io_error("sync", &beside))
}

/// Writes `path` whole, piece by piece: what is read in the same way may be of any length.
pub(crate) fn stream_private(
    path: &Path,
    write: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), CaError>) -> Result<(), CaError>,
) -> Result<(), CaError> {
    let beside = temporary(path);
    let mut out = BufWriter::new(make_beside(path)?);
    write(&mut |piece| out.write_all(piece).map_err(io_error("write", &beside)))?;
    let file = out.into_inner().map_err(|error| io_error("write", &beside)(error.into_error()))?;
    file.sync_all().map_err(io_error("sync", &beside))?;
    put_in_place(path)
}

fn make_beside(path: &Path) -> Result<File, CaError> {
    let beside = temporary(path);
    // Left over from a crash; we hold the lock, so nobody is writing it now.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("remove", &beside)(error));
        }
        _ => {}
    }
    OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(FILE_MODE)
        .open(&beside)
        .map_err(io_error("make", &beside))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_an_error_and_never_cut() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("list");
        write_private(&path, b"0123456789").unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(bytes(&path, &file, 10).unwrap().as_slice(), b"0123456789");
        let file = File::open(&path).unwrap();
        let error = bytes(&path, &file, 9).unwrap_err();
        assert!(matches!(error, CaError::TooLong { most: 9, .. }), "{error}");
        // A hole: it takes no room on the disk.
        File::options().write(true).open(&path).unwrap().set_len(LONGEST + 1).unwrap();
        let error = read_private(&path).unwrap_err();
        assert!(error.to_string().contains("more than"), "{error}");
    }
}
