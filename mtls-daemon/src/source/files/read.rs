//! The directory's files: which there are, whether they changed, what is in them.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::unreadable;
use crate::mesh::names::Answers;
use crate::policy::error::{Code, ConfigError};
use crate::policy::parse::Limits;

/// Stands for names and contents of all files that were read, and says how many workloads of this
/// node they enrol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    pub(super) hash: [u8; 32],
    pub(super) node_workloads: usize,
}

pub(super) struct Contents {
    /// By name. The path as messages show it, and the text or why there is none.
    pub files: Vec<(String, Result<Vec<u8>, ConfigError>)>,
    pub hash: [u8; 32],
}

/// Files, by their hash, and what the names in them stand for.
pub(super) fn hash_with(files: [u8; 32], names: &Answers) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(files);
    hash.update(format!("{names:?}"));
    hash.finalize().into()
}

/// What `stat` says about the directory and its files: cheap to take, differs after any change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Device and inode of the directory: another one needs another watch.
    pub directory: (u64, u64),
    files: Vec<(PathBuf, FileStamp)>,
}

/// Device, inode, size, and the times of change to the content and to the inode.
type FileStamp = Option<(u64, u64, u64, (i64, i64), (i64, i64))>;

impl Stamp {
    /// Something changed less than `age` ago, by the clock that stamps files.
    pub fn is_younger_than(&self, age: Duration) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.files.iter().filter_map(|(_, stamp)| *stamp).any(|(.., changed)| {
            let seconds = u64::try_from(changed.0).unwrap_or_default();
            let nanoseconds = u32::try_from(changed.1).unwrap_or_default();
            now.abs_diff(Duration::new(seconds, nanoseconds)) < age
        })
    }
}

pub(super) fn stamp(dir: &Path) -> io::Result<Stamp> {
    let meta = fs::metadata(dir)?;
    let files = list(dir)?
        .into_iter()
        .map(|path| {
            let stamp = fs::metadata(&path).ok().map(|m| {
                let times = ((m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec()));
                (m.dev(), m.ino(), m.size(), times.0, times.1)
            });
            (path, stamp)
        })
        .collect();
    Ok(Stamp { directory: (meta.dev(), meta.ino()), files })
}

/// Reads every file. The directory itself must be readable.
pub(super) fn contents(dir: &Path, limits: &Limits) -> Result<Contents, ConfigError> {
    let paths = list(dir).map_err(|error| unreadable(dir, error))?;
    let mut files = Vec::new();
    let mut hash = Sha256::new();
    for path in paths {
        let name = path.display().to_string();
        let text = match read_bounded(&path, limits.max_bytes) {
            Ok(Some(text)) => Ok(text),
            Ok(None) => continue,
            Err(error) => {
                let code = match error.kind() {
                    io::ErrorKind::FileTooLarge => Code::FileSize,
                    _ => Code::FileRead,
                };
                Err(ConfigError { code, ..unreadable(&path, error) })
            }
        };
        // An error says why, which is no text that a file can have and stand for the same.
        let (kind, content) = match &text {
            Ok(text) => (b"text".as_slice(), text.as_slice()),
            Err(error) => (b"error".as_slice(), error.reason.as_bytes()),
        };
        for part in [name.as_bytes(), kind, content] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        files.push((name, text));
    }
    Ok(Contents { files, hash: hash.finalize().into() })
}

fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let path = dir.join(name);
        if is_wanted(&path) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// By its name: a configuration file.
pub(super) fn is_wanted(path: &Path) -> bool {
    // Dotted names are editors' temporary files and a ConfigMap's own bookkeeping.
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml")
}

/// None for a directory. Whatever else is no regular file is refused before it is opened: a FIFO
/// would block the reload for ever.
fn read_bounded(path: &Path, max: usize) -> io::Result<Option<Vec<u8>>> {
    let meta = fs::metadata(path)?;
    if meta.is_dir() {
        return Ok(None);
    }
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    // Before a byte of it is read; a file that grows meanwhile is noticed below.
    if meta.len() > u64::try_from(max).unwrap_or(u64::MAX) {
        return Err(too_large(max));
    }
    let mut text = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX);
    fs::File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut text)?;
    if text.len() > max {
        return Err(too_large(max));
    }
    Ok(Some(text))
}

fn too_large(max: usize) -> io::Error {
    let reason = format!("larger than the limit of {max} bytes: split it");
    io::Error::new(io::ErrorKind::FileTooLarge, reason)
}
