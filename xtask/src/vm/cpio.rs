//! The `newc` archive that a kernel unpacks as its first file system
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// What a path in the archive is.
enum Entry {
    Folder,
    Link(PathBuf),
    Text {
        mode: u32,
        text: Vec<u8>,
    },
    /// Taken from this machine when the archive is written.
    File {
        mode: u32,
        from: PathBuf,
    },
    Console,
}

/// The files of a guest, by absolute path. A path that is added twice is there once.
#[derive(Default)]
pub struct Archive {
    // Sorted, so that a folder comes before what is in it.
    entries: BTreeMap<PathBuf, Entry>,
}

impl Archive {
    pub fn folder(&mut self, path: impl AsRef<Path>) {
        for folder in path.as_ref().ancestors() {
            self.entries.entry(folder.to_owned()).or_insert(Entry::Folder);
        }
    }

    pub fn link(&mut self, path: impl AsRef<Path>, target: impl Into<PathBuf>) {
        self.add(path.as_ref(), Entry::Link(target.into()));
    }

    pub fn text(&mut self, path: impl AsRef<Path>, mode: u32, text: impl Into<Vec<u8>>) {
        self.add(path.as_ref(), Entry::Text { mode, text: text.into() });
    }

    pub fn file(&mut self, path: impl AsRef<Path>, mode: u32, from: impl Into<PathBuf>) {
        self.add(path.as_ref(), Entry::File { mode, from: from.into() });
    }

    /// /dev/console: what the kernel opens for the first program, before anything is mounted.
    pub fn console(&mut self) {
        self.add(Path::new("/dev/console"), Entry::Console);
    }

    pub fn contains(&self, path: &Path) -> bool {
        self.entries.contains_key(path)
    }

    fn add(&mut self, path: &Path, entry: Entry) {
        if let Some(folder) = path.parent() {
            self.folder(folder);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// # Errors
    /// When a file cannot be read, or `out` not written.
    pub fn write(&self, mut out: impl Write) -> Result<()> {
        for (inode, (path, entry)) in (1..).zip(&self.entries) {
            let name = path.strip_prefix("/").unwrap_or(path).as_os_str().as_encoded_bytes();
            // The root of the file system is there already.
            if !name.is_empty() {
                write_entry(&mut out, inode, name, entry)
                    .with_context(|| format!("initramfs: {}", path.display()))?;
            }
        }
        header(&mut out, 0, 0, 0, (0, 0), b"TRAILER!!!")?;
        Ok(())
    }
}

fn write_entry(out: &mut impl Write, inode: u32, name: &[u8], entry: &Entry) -> Result<()> {
    const FOLDER: u32 = 0o040_000;
    const REGULAR: u32 = 0o100_000;
    const SYMLINK: u32 = 0o120_000;
    const CHARACTER: u32 = 0o020_000;
    match entry {
        // Everyone may write to /tmp and the like; a guest has no one else.
        Entry::Folder => header(out, inode, FOLDER | 0o755, 0, (0, 0), name)?,
        Entry::Console => header(out, inode, CHARACTER | 0o600, 0, (5, 1), name)?,
        Entry::Link(target) => {
            contents(out, inode, SYMLINK | 0o777, name, target.as_os_str().as_encoded_bytes())?
        }
        Entry::Text { mode, text } => contents(out, inode, REGULAR | mode, name, text)?,
        Entry::File { mode, from } => {
            let mut file =
                File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
            let size = u32::try_from(file.metadata()?.len()).context("is larger than 4 GiB")?;
            header(out, inode, REGULAR | mode, size, (0, 0), name)?;
            let copied = io::copy(&mut file, out)?;
            anyhow::ensure!(
                copied == u64::from(size),
                "{} changed while it was read",
                from.display()
            );
            pad(out, size as usize)?;
        }
    }
    Ok(())
}

fn contents(out: &mut impl Write, inode: u32, mode: u32, name: &[u8], bytes: &[u8]) -> Result<()> {
    let size = u32::try_from(bytes.len()).context("is larger than 4 GiB")?;
    header(out, inode, mode, size, (0, 0), name)?;
    out.write_all(bytes)?;
    pad(out, bytes.len())?;
    Ok(())
}

/// Fourteen numbers of eight hexadecimal digits; the name, ended by a zero; then padding.
fn header(
    out: &mut impl Write,
    inode: u32,
    mode: u32,
    size: u32,
    device: (u32, u32),
    name: &[u8],
) -> io::Result<()> {
    let links = 1;
    let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
    let numbers = [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
    out.write_all(b"070701")?;
    for number in numbers {
        write!(out, "{number:08X}")?;
    }
    out.write_all(name)?;
    out.write_all(&[0])?;
    pad(out, HEADER + name.len() + 1)
}

const HEADER: usize = 110;

/// Everything starts at a multiple of four.
fn pad(out: &mut impl Write, written: usize) -> io::Result<()> {
    out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_layout_that_the_kernel_reads() {
        let mut archive = Archive::default();
        archive.text("/a/b", 0o644, "hello");
        archive.link("/l", "a/b");
        let mut bytes = Vec::new();
        archive.write(&mut bytes).expect("written");
        assert_eq!(bytes.len() % 4, 0);

        let mut names = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let number = |index: usize| {
                let start = at + 6 + index * 8;
                let text = std::str::from_utf8(&bytes[start..start + 8]).expect("text");
                usize::from_str_radix(text, 16).expect("a number")
            };
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (size, name_size) = (number(6), number(11));
            let name = &bytes[at + HEADER..at + HEADER + name_size - 1];
            let data = (at + HEADER + name_size).next_multiple_of(4);
            names.push((
                String::from_utf8_lossy(name).into_owned(),
                String::from_utf8_lossy(&bytes[data..data + size]).into_owned(),
            ));
            at = (data + size).next_multiple_of(4);
        }
        let expected = [("a", ""), ("a/b", "hello"), ("l", "a/b"), ("TRAILER!!!", "")];
        assert_eq!(names, expected.map(|(name, data)| (name.to_owned(), data.to_owned())));
    }
}
