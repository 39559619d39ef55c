//! One daemon a node name, one daemon a state directory.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// Somebody else holds the node. Exit code 73.
#[derive(Debug, thiserror::Error)]
pub enum Busy {
    #[error(
        "another daemon (pid {pid}) holds {path}: one daemon a node name and state directory. Stop it, or give this one another --node and --state-dir"
    )]
    Held { path: PathBuf, pid: String },
    #[error("cannot lock {path}: {error}")]
    Io { path: PathBuf, error: io::Error },
}

/// Held as long as the daemon lives; the kernel lets go of it even after SIGKILL.
#[derive(Debug)]
pub struct NodeLock {
    _file: Flock<File>,
}

impl NodeLock {
    /// Locks `<directory>/lock`.
    pub fn take(directory: &Path) -> Result<Self, Busy> {
        let path = directory.join("lock");
        let io = |error| Busy::Io { path: path.clone(), error };
        fs::create_dir_all(directory).map_err(io)?;
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                file.set_len(0).map_err(io)?;
                file.rewind().map_err(io)?;
                write!(file, "{}", std::process::id()).map_err(io)?;
                Ok(Self { _file: file })
            }
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(io)?;
                Err(Busy::Held { path, pid })
            }
            Err((_, errno)) => Err(io(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_told_who_holds_the_node() {
        let directory = tempfile::tempdir().unwrap();
        let node = directory.path().join("a");
        let held = NodeLock::take(&node).unwrap();
        let refused = NodeLock::take(&node).unwrap_err();
        assert!(refused.to_string().contains(&format!("pid {}", std::process::id())), "{refused}");
        NodeLock::take(&directory.path().join("b")).unwrap();
        drop(held);
        NodeLock::take(&node).unwrap();
    }
}
