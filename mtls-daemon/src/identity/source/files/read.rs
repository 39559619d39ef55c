//! Files whose bytes leave no copy behind.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use zeroize::Zeroizing;

/// Larger than any bundle of authorities.
const LARGEST: u64 = 4 * 1024 * 1024;

pub(super) struct Secret {
    pub bytes: Zeroizing<Vec<u8>>,
    /// Of the file that was read, whatever its name points to by now.
    pub mode: u32,
}

/// A whole file. Its buffer never grows: one that did would leave pieces behind.
pub(super) fn secret(path: &Path) -> Result<Secret, String> {
    let cannot = |error: std::io::Error| format!("cannot be read: {error}");
    // A FIFO would be waited on for ever.
    if !fs::metadata(path).map_err(cannot)?.is_file() {
        return Err("is no regular file".to_owned());
    }
    let mut file = File::open(path).map_err(cannot)?;
    let meta = file.metadata().map_err(cannot)?;
    if meta.len() > LARGEST {
        return Err(format!("is larger than {LARGEST} bytes"));
    }
    let length = usize::try_from(meta.len()).unwrap_or_default();
    let mut bytes = Zeroizing::new(vec![0; length + 1]);
    let mut filled = 0;
    loop {
        match file.read(&mut bytes[filled..]).map_err(cannot)? {
            0 => break,
            more => filled += more,
        }
        if filled == bytes.len() {
            return Err("grows while it is read: still being written?".to_owned());
        }
    }
    bytes.truncate(filled);
    Ok(Secret { bytes, mode: meta.mode() })
}
