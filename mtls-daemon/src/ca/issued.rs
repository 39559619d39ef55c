//! What was issued and has not expired: so that revoking a node reaches all that it obtained.

use std::io::{BufRead, BufReader};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::seconds;
use super::state::{StateDir, Turn};
use crate::identity::NodeName;
use crate::identity::ca::CaError;
use crate::identity::ca::files;

pub const FILE: &str = "issued.jsonl";

/// Whose clock is behind takes a certificate for valid after its end: what is revoked stays on the
/// list for so long.
pub const CLOCKS: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    pub serial: String,
    /// The issuer's key identifier.
    pub issuer: String,
    pub id: String,
    /// Who obtained it, if that was a node of its own name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    pub not_after: u64,
}

pub fn add(turn: &Turn<'_>, issued: &Issued) -> Result<(), CaError> {
    let line = serde_json::to_string(issued).map_err(|error| CaError::Sign(error.to_string()))?;
    turn.append(FILE, &line)
}

impl Issued {
    /// Until when somebody may take the certificate for valid.
    pub fn until(&self) -> u64 {
        self.not_after.saturating_add(CLOCKS.as_secs())
    }
}

/// Those that somebody may take for valid, and that are `wanted`. A line that a crash cut off is left
/// out. Line by line: the file may be larger than memory.
pub fn valid(
    directory: &StateDir,
    now: SystemTime,
    wanted: impl Fn(&Issued) -> bool,
) -> Result<Vec<Issued>, CaError> {
    let mut found = Vec::new();
    each_valid(directory, now, |issued, _| {
        if wanted(&issued) {
            found.push(issued);
        }
        Ok(())
    })?;
    Ok(found)
}

/// With the line that it stands in.
pub fn each_valid(
    directory: &StateDir,
    now: SystemTime,
    mut take: impl FnMut(Issued, &[u8]) -> Result<(), CaError>,
) -> Result<(), CaError> {
    let path = directory.path(FILE);
    let Some(file) = files::open_private(&path)? else { return Ok(()) };
    let (mut lines, mut line) = (BufReader::new(file), Vec::new());
    while lines.read_until(b'\n', &mut line).map_err(files::io_error("read", &path))? > 0 {
        if let Ok(issued) = serde_json::from_slice::<Issued>(&line)
            && issued.until() > seconds(now)
        {
            take(issued, line.trim_ascii_end())?;
        }
        line.clear();
    }
    Ok(())
}

/// Forgets what has expired, for good: only to be called with a clock that is right. However long the
/// file is.
pub fn compact(directory: &StateDir, now: SystemTime) -> Result<(), CaError> {
    let turn = directory.turn()?;
    turn.stream(FILE, |put| {
        each_valid(directory, now, |_, line| {
            put(line)?;
            put(b"\n")
        })
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn issued(serial: &str, not_after: u64) -> Issued {
        let id = "spiffe://cluster.local/ns/a/sa/b".to_owned();
        Issued { serial: serial.to_owned(), issuer: "aa".to_owned(), id, node: None, not_after }
    }

    fn directory() -> (tempfile::TempDir, StateDir) {
        let place = tempfile::tempdir().unwrap();
        let directory = StateDir::open(&place.path().join("ca")).unwrap();
        (place, directory)
    }

    #[test]
    fn a_line_that_was_cut_off_takes_no_other_with_it() {
        let (_place, directory) = directory();
        let now = SystemTime::now();
        let later = seconds(now) + 100;
        add(&directory.turn().unwrap(), &issued("1", later)).unwrap();
        let mut file = std::fs::File::options().append(true).open(directory.path(FILE)).unwrap();
        file.write_all(br#"{"serial":"2","issu"#).unwrap();
        add(&directory.turn().unwrap(), &issued("3", later)).unwrap();
        let serials: Vec<_> =
            valid(&directory, now, |_| true).unwrap().into_iter().map(|it| it.serial).collect();
        assert_eq!(serials, ["1", "3"]);
    }

    #[test]
    fn a_record_longer_than_any_other_file_is_compacted() {
        let (_place, directory) = directory();
        let now = SystemTime::now();
        for number in 0..200 {
            let not_after = if number % 2 == 0 { seconds(now) + 100 } else { seconds(now) - 601 };
            add(&directory.turn().unwrap(), &issued(&number.to_string(), not_after)).unwrap();
        }
        let length = || std::fs::metadata(directory.path(FILE)).unwrap().len();
        let before = length();
        files::LOWERED.set(Some(4096));
        let compacted = compact(&directory, now);
        files::LOWERED.set(None);
        compacted.unwrap();
        assert!(length() > 4096 && length() < before * 2 / 3, "{}", length());
        let kept = valid(&directory, SystemTime::UNIX_EPOCH, |_| true).unwrap();
        let kept: Vec<_> = kept.into_iter().map(|it| it.serial).collect();
        let wanted: Vec<_> = (0..100).map(|number| (2 * number).to_string()).collect();
        assert_eq!(kept, wanted);
    }

    #[test]
    fn a_record_that_cannot_be_written_whole_is_not_there_at_all() {
        let (_place, directory) = directory();
        let now = SystemTime::now();
        let later = seconds(now) + 100;
        std::os::unix::fs::symlink("/dev/full", directory.path(FILE)).unwrap();
        assert!(add(&directory.turn().unwrap(), &issued("1", later)).is_err());
        std::fs::remove_file(directory.path(FILE)).unwrap();
        add(&directory.turn().unwrap(), &issued("2", later)).unwrap();
        assert_eq!(valid(&directory, now, |_| true).unwrap().len(), 1);
    }
}
