//! The admin socket's file: made for root alone, replaced when its daemon is dead.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

use super::AdminError;

/// A listening socket whose file goes away with it.
pub(super) struct AdminSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
}

impl AdminSocket {
    pub(super) fn bind(path: &Path) -> Result<Self, AdminError> {
        let failed = |error| AdminError::Socket { path: path.to_owned(), error };
        remove_stale(path)?;
        let listener = listen(path).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned() })
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // A file that is left behind does no harm: the next daemon replaces it.
        std::fs::remove_file(&self.path).ok();
    }
}

/// Removes the socket of a daemon that does not answer any more. Two daemons cannot race here: each
/// holds the node's lock before it binds.
fn remove_stale(path: &Path) -> Result<(), AdminError> {
    let failed = |error| AdminError::Socket { path: path.to_owned(), error };
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(AdminError::Foreign(path.to_owned()));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(AdminError::Busy(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Before bind: the file is made with the socket's own mode, so there is no moment at which
    // another user could open it, and the process' umask is left alone.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(64)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(std::os::fd::OwnedFd::from(socket).into())
}
