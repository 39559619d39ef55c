//! The cgroup that a workload of the host is known by. It comes and goes with its unit, and each time it
//! has another id.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::mesh::Cgroup;

/// A cgroup that is there now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Below the root that was given.
    path: PathBuf,
    /// What `bpf_get_current_ancestor_cgroup_id` shows for its processes: since Linux 5.5 the directory's
    /// inode number.
    pub id: u64,
}

/// Looks for it below the cgroup v2 root. None: it is not there.
pub fn find(root: BorrowedFd<'_>, wanted: &Cgroup) -> io::Result<Option<Found>> {
    // Through the descriptor: the root may have no place in the file tree.
    let root = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
    match wanted {
        Cgroup::Path(path) => at(root.join(&**path)),
        Cgroup::Unit(unit) => match unit_below(&root, unit)? {
            Some(path) => at(path),
            None => Ok(None),
        },
    }
}

fn at(path: PathBuf) -> io::Result<Option<Found>> {
    match fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => Ok(Some(Found { path, id: metadata.ino() })),
        Ok(_) => Err(io::Error::other(format!("{} is no directory", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A unit's cgroup is in its slice, and slices are in slices. Nothing else is entered: below a service a
/// user's own manager may have a unit of any name.
fn unit_below(directory: &Path, unit: &str) -> io::Result<Option<PathBuf>> {
    let direct = directory.join(unit);
    if direct.is_dir() {
        return Ok(Some(direct));
    }
    let entries = match fs::read_dir(directory) {
        // It went while it was looked at.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let is_slice = entry.file_name().to_string_lossy().ends_with(".slice");
        if is_slice && let Some(found) = unit_below(&entry.path(), unit)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

impl Found {
    /// Whether it is still there, and no other of its name.
    pub fn is_current(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|now| now.ino() == self.id)
    }

    /// How far below the root.
    pub fn depth(&self, root: BorrowedFd<'_>) -> usize {
        let above = Path::new("/proc/self/fd").join(root.as_raw_fd().to_string());
        self.path.strip_prefix(above).map_or(0, |path| path.components().count())
    }

    /// Its id and those of the cgroups below it: a socket has the one of the process that made it.
    pub fn ids(&self) -> HashSet<u64> {
        let mut ids = HashSet::from([self.id]);
        self.below(&mut |path| {
            ids.extend(fs::metadata(path).map(|metadata| metadata.ino()));
        });
        ids
    }

    /// Whether a process is in it, or below.
    pub fn holds(&self, pid: u32) -> bool {
        let pid = pid.to_string();
        let mut found = false;
        let mut look = |path: &Path| {
            let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            found |= text.lines().any(|line| line == pid);
        };
        look(&self.path);
        self.below(&mut look);
        found
    }

    fn below(&self, visit: &mut impl FnMut(&Path)) {
        let mut left = vec![self.path.clone()];
        while let Some(directory) = left.pop() {
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            for entry in entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())) {
                visit(&entry.path());
                left.push(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn made(directories: &[&str]) -> (tempfile::TempDir, fs::File) {
        let root = tempfile::tempdir().unwrap();
        for directory in directories {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        let opened = fs::File::open(root.path()).unwrap();
        (root, opened)
    }

    #[test]
    fn a_unit_is_found_in_its_slice_and_nowhere_below_a_service() {
        let (root, opened) = made(&[
            "user.slice/user-1.slice/user@1.service/app.slice/web.service",
            "system.slice/other.service",
        ]);
        let unit = Cgroup::Unit("web.service".into());
        assert_eq!(find(opened.as_fd(), &unit).unwrap(), None);
        let own = root.path().join("apps.slice/apps-web.slice/web.service");
        fs::create_dir_all(&own).unwrap();
        let found = find(opened.as_fd(), &unit).unwrap().unwrap();
        assert_eq!(found.id, fs::metadata(&own).unwrap().ino());
    }

    #[test]
    fn a_path_is_found_with_what_is_below_it_and_its_id_changes_when_it_is_made_anew() {
        let (root, opened) = made(&["a/b/c", "a/d"]);
        let wanted = Cgroup::Path("a/b".into());
        let found = find(opened.as_fd(), &wanted).unwrap().unwrap();
        let ino = |path: &str| fs::metadata(root.path().join(path)).unwrap().ino();
        assert!(found.is_current());
        assert_eq!(found.depth(opened.as_fd()), 2);
        assert_eq!(found.ids(), HashSet::from([ino("a/b"), ino("a/b/c")]));
        fs::write(root.path().join("a/b/c/cgroup.procs"), "7\n1234\n").unwrap();
        assert!(found.holds(1234) && !found.holds(123));
        fs::remove_dir_all(root.path().join("a/b")).unwrap();
        assert_eq!(find(opened.as_fd(), &wanted).unwrap(), None);
        assert!(!found.is_current());
    }
}
