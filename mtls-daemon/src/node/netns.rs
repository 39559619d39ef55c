//! A workload's network namespace: its identity in the kernel, and work done inside it.

use std::cell::OnceCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

/// An open network namespace. It cannot go away while this is held.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    path: PathBuf,
    cookie: u64,
    inode: u64,
}

impl Namespace {
    /// Opens `path` (for example `/run/netns/web`, `/proc/PID/ns/net`) and asks the kernel for its
    /// cookie (SO_NETNS_COOKIE, Linux 5.14).
    ///
    /// # Errors
    /// `NotFound` also where there is a file and no namespace: `ip netns add` makes a plain file before it
    /// mounts the namespace on it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if fstatfs(&file)?.filesystem_type() != NSFS_MAGIC {
            return Err(io::Error::new(io::ErrorKind::NotFound, "a file that is no namespace"));
        }
        let inode = file.metadata()?.ino();
        let cookie = enter(file.as_fd(), || {
            let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None)?;
            netns_cookie(socket.as_fd())
        })??;
        Ok(Self { file, path: path.into(), cookie, inode })
    }

    /// What `bpf_get_netns_cookie` shows for sockets of this namespace.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether `path` still leads to this namespace.
    pub fn is_current(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|now| now.ino() == self.inode)
    }

    /// Runs `work` inside the namespace, on this thread, which returns to where it was. For calls
    /// that do not wait: opening a socket.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        enter(self.file.as_fd(), work)
    }

    /// Runs `work` inside the namespace on a thread of its own. For calls that wait.
    pub fn run_apart<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|_| Err(io::Error::other("panicked inside the namespace")))
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

thread_local! {
    /// Where this thread belongs.
    static HOME: OnceCell<File> = const { OnceCell::new() };
}

fn enter<T>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T) -> io::Result<T> {
    HOME.with(|home| {
        if home.get().is_none() {
            let file = File::open("/proc/thread-self/ns/net")?;
            home.set(file).unwrap_or_else(|_| unreachable!("this thread has just looked"));
        }
        let home = home.get().ok_or_else(|| io::Error::other("no home namespace"))?;
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let result = work();
        if let Err(error) = setns(home, CloneFlags::CLONE_NEWNET) {
            // On this thread every later socket would be opened in a pod: nothing may follow.
            tracing::error!(%error, "cannot leave a workload's network namespace: aborting");
            std::process::abort();
        }
        Ok(result)
    })
}

fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option writes at most `length` bytes, an u64, into `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
