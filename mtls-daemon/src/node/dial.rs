//! The daemon's own connections from inside a workload's namespace.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use mtls_common::names::{MARK, role};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::Namespace;
use super::leg;
use super::listeners::relayed;
use super::ports::ClientPorts;
use crate::bpf::SocketMaps;

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The socket itself, before anything was sent.
    #[error("{0}")]
    Socket(io::Error),
    /// The client's source address could not be taken.
    #[error("{0}")]
    Source(io::Error),
    #[error("{0}")]
    Connect(io::Error),
}

/// Towards a server. `hairpin`: the server is the workload itself; the connection then comes from
/// loopback, which keeps it apart from the workload's own calls to itself and leads it to the
/// inbound listener like anybody else's.
pub async fn outbound(
    namespace: &Namespace,
    maps: &RefCell<SocketMaps>,
    address: SocketAddr,
    hairpin: bool,
) -> Result<TcpStream, DialError> {
    let socket = open(namespace, maps, address, role::OUTBOUND)?;
    if hairpin {
        let loopback: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        socket.bind(&SocketAddr::new(loopback, 0).into()).map_err(DialError::Socket)?;
    }
    connect(socket, address).await
}

/// Towards the workload's own application, which sees `client`'s address: from that very address where
/// the kernel side can tell such a connection by its interface, else, and on the host (`on_host`), from
/// loopback.
pub async fn application(
    namespace: &Namespace,
    maps: &RefCell<SocketMaps>,
    ports: &ClientPorts,
    on_host: bool,
    client: SocketAddr,
    address: SocketAddr,
) -> Result<TcpStream, DialError> {
    let from_loopback = on_host || maps.borrow().from_loopback();
    if from_loopback {
        leg::application(namespace, maps, client, address).await
    } else {
        from_client(namespace, maps, ports, client, address).await
    }
}

/// Over `lo` (which alone the kernel side lets through), with a mark that brings the answers back there
/// (`node::setup`).
async fn from_client(
    namespace: &Namespace,
    maps: &RefCell<SocketMaps>,
    ports: &ClientPorts,
    client: SocketAddr,
    address: SocketAddr,
) -> Result<TcpStream, DialError> {
    let mut last = None;
    for port in ports.candidates(client).take(PORTS_TO_TRY) {
        let socket = open(namespace, maps, address, role::APPLICATION)?;
        let bind = || -> io::Result<()> {
            socket.bind_device(Some(b"lo"))?;
            socket.set_mark(MARK)?;
            match address {
                SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
                SocketAddr::V6(_) => set_transparent_v6(&socket)?,
            }
            // One port serves several of the workload's ports at once.
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::new(client.ip(), port).into())
        };
        let error = match bind() {
            Ok(()) => match connect(socket, address).await {
                Err(DialError::Connect(error)) if is_taken(&error) => error,
                result => return result,
            },
            Err(error) if is_taken(&error) => error,
            Err(error) => return Err(DialError::Source(error)),
        };
        last = Some(error);
    }
    Err(DialError::Source(last.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into())))
}

/// As [`application`], where the client is the workload itself, at `own`: one of the connections
/// that it may make to itself. Answers to an address of its own do not leave, and need no mark.
pub async fn application_hairpin(
    namespace: &Namespace,
    maps: &RefCell<SocketMaps>,
    own: IpAddr,
    address: SocketAddr,
) -> Result<TcpStream, DialError> {
    let socket = open(namespace, maps, address, role::APPLICATION)?;
    socket.bind(&SocketAddr::new(own, 0).into()).map_err(DialError::Source)?;
    connect(socket, address).await
}

/// A port that fails has a connection to the same port of the workload, open or just closed.
const PORTS_TO_TRY: usize = 64;

fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

/// A socket inside `namespace`, known to the kernel side as the daemon's own.
pub(super) fn open(
    namespace: &Namespace,
    maps: &RefCell<SocketMaps>,
    address: SocketAddr,
    role: u32,
) -> Result<Socket, DialError> {
    let open = || {
        let kind = Type::STREAM.cloexec().nonblocking();
        Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))
    };
    let socket = namespace.run(open).flatten().map_err(DialError::Socket)?;
    relayed(&socket).map_err(DialError::Socket)?;
    maps.borrow_mut()
        .mark_own(socket.as_fd(), role)
        .map_err(|error| DialError::Socket(io::Error::other(error)))?;
    Ok(socket)
}

pub(super) async fn connect(socket: Socket, address: SocketAddr) -> Result<TcpStream, DialError> {
    TcpSocket::from_std_stream(socket.into()).connect(address).await.map_err(DialError::Connect)
}

/// socket2 names this option for IPv4 only.
fn set_transparent_v6(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let raw = std::os::fd::AsRawFd::as_raw_fd(socket);
    // SAFETY: the option reads an int, which `on` is, of the size given.
    let result = unsafe {
        libc::setsockopt(
            raw,
            libc::IPPROTO_IPV6,
            libc::IPV6_TRANSPARENT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ends a connection in order: a close no longer resets.
pub fn close_in_order(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(None)
}
