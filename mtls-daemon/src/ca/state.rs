//! The CA's files: JSON, written whole, changed by one process at a time.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::identity::ca::CaError;
use crate::identity::ca::files::{self, FILE_MODE};

/// The directory that is the CA: whoever has it can be any workload.
pub struct StateDir {
    path: PathBuf,
    turn: Mutex<()>,
}

/// The right to change files. Others wait, also in other processes.
pub struct Turn<'d> {
    directory: &'d StateDir,
    _lock: File,
    _turn: MutexGuard<'d, ()>,
}

impl StateDir {
    /// Makes the directory if it is not there.
    pub fn open(path: &Path) -> Result<Self, CaError> {
        files::make_directory(path)?;
        Ok(Self { path: path.to_owned(), turn: Mutex::new(()) })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Waits for its turn, at most 30 s.
    pub fn turn(&self) -> Result<Turn<'_>, CaError> {
        // Threads queue here, so that the file's lock is only ever awaited between processes.
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = files::lock(&self.path("lock"))?;
        Ok(Turn { directory: self, _lock: lock, _turn: turn })
    }

    /// None if the file is not there.
    pub fn read_text(&self, name: &str) -> Result<Option<Zeroizing<String>>, CaError> {
        files::read_private(&self.path(name))
    }

    /// The default if the file is not there.
    pub fn read<T: DeserializeOwned + Default>(&self, name: &str) -> Result<T, CaError> {
        let path = self.path(name);
        let Some(text) = files::read_private(&path)? else { return Ok(T::default()) };
        serde_json::from_str(&text).map_err(|error| CaError::File { path, why: error.to_string() })
    }
}

impl Turn<'_> {
    pub fn read<T: DeserializeOwned + Default>(&self, name: &str) -> Result<T, CaError> {
        self.directory.read(name)
    }

    pub fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), CaError> {
        let path = self.directory.path(name);
        let json = serde_json::to_vec_pretty(value)
            .map_err(|error| CaError::File { path: path.clone(), why: error.to_string() })?;
        files::write_private(&path, &json)
    }

    pub fn write_text(&self, name: &str, text: &str) -> Result<(), CaError> {
        files::write_private(&self.directory.path(name), text.as_bytes())
    }

    /// The file whole, piece by piece.
    pub fn stream(
        &self,
        name: &str,
        write: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), CaError>) -> Result<(), CaError>,
    ) -> Result<(), CaError> {
        files::stream_private(&self.directory.path(name), write)
    }

    /// It may not be there.
    pub fn remove(&self, name: &str) -> Result<(), CaError> {
        let path = self.directory.path(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(files::io_error("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// One line more. It outlives this process at once; a power failure may take the last ones.
    pub fn append(&self, name: &str, line: &str) -> Result<(), CaError> {
        let path = self.directory.path(name);
        let opened =
            OpenOptions::new().create(true).read(true).append(true).mode(FILE_MODE).open(&path);
        let mut file = opened.map_err(files::io_error("open", &path))?;
        let before = file.metadata().map_err(files::io_error("look at", &path))?.len();
        // A line that a crash cut off takes no other one with it.
        let mut last = [b'\n'];
        if before > 0 {
            file.read_exact_at(&mut last, before - 1).map_err(files::io_error("read", &path))?;
        }
        let fresh = if last == [b'\n'] { "" } else { "\n" };
        let written = file.write_all(format!("{fresh}{line}\n").as_bytes());
        written.map_err(|error| {
            // A full disk: half a line is nobody's.
            file.set_len(before).ok();
            files::io_error("write", &path)(error)
        })
    }
}

/// Tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp(Option<(u64, i64, i64, u64)>);

impl Stamp {
    pub fn of(path: &Path) -> Result<Self, CaError> {
        let facts = |it: Metadata| (it.ino(), it.ctime(), it.ctime_nsec(), it.len());
        match std::fs::metadata(path) {
            Ok(metadata) => Ok(Self(Some(facts(metadata)))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self(None)),
            Err(error) => Err(files::io_error("look at", path)(error)),
        }
    }
}

/// A file's content, read anew only when the file changed.
pub struct Watched<T> {
    name: &'static str,
    held: Mutex<Option<(Stamp, Arc<T>)>>,
}

impl<T: DeserializeOwned + Default> Watched<T> {
    pub fn new(name: &'static str) -> Self {
        Self { name, held: Mutex::new(None) }
    }

    pub fn get(&self, directory: &StateDir) -> Result<Arc<T>, CaError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        // Before the file is read: a change in between is seen the next time.
        let stamp = Stamp::of(&directory.path(self.name))?;
        if let Some((seen, value)) = &*held
            && *seen == stamp
        {
            return Ok(value.clone());
        }
        let value = Arc::new(directory.read(self.name)?);
        *held = Some((stamp, Arc::clone(&value)));
        Ok(value)
    }
}
