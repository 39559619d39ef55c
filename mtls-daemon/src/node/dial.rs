//! The daemon's own connections from inside a workload's namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use mtls_common::names::{MARK, role};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::Namespace;
use super::listeners::relayed;
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

/// A socket that is ready to connect. In two steps, because the first needs the thread's handles on
/// the kernel's maps, which must not be held while waiting.
#[must_use]
pub struct Dial {
    socket: Socket,
    address: SocketAddr,
}

impl Dial {
    pub async fn connect(self) -> Result<TcpStream, DialError> {
        TcpSocket::from_std_stream(self.socket.into())
            .connect(self.address)
            .await
            .map_err(DialError::Connect)
    }
}

/// Towards a server. `hairpin`: the server is the workload itself; the connection then comes from
/// loopback, which keeps it apart from the workload's own calls to itself and leads it to the
/// inbound listener like anybody else's.
pub fn outbound(
    namespace: &Namespace,
    maps: &mut SocketMaps,
    address: SocketAddr,
    hairpin: bool,
) -> Result<Dial, DialError> {
    let socket = open(namespace, address)?;
    maps.mark_own(socket.as_fd(), role::OUTBOUND).map_err(other)?;
    if hairpin {
        let loopback: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        socket.bind(&SocketAddr::new(loopback, 0).into()).map_err(DialError::Socket)?;
    }
    Ok(Dial { socket, address })
}

/// Towards the workload's own application, from `source`: over `lo` (which alone the kernel side
/// lets through), with a mark that brings the answers back there (`node::setup`).
pub fn application(
    namespace: &Namespace,
    maps: &mut SocketMaps,
    source: IpAddr,
    address: SocketAddr,
) -> Result<Dial, DialError> {
    let socket = open(namespace, address)?;
    maps.mark_own(socket.as_fd(), role::APPLICATION).map_err(other)?;
    let bind = || -> io::Result<()> {
        socket.bind_device(Some(b"lo"))?;
        socket.set_mark(MARK)?;
        match address {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            SocketAddr::V6(_) => set_transparent_v6(&socket)?,
        }
        // The port is chosen at connect, per destination: one address serves many servers.
        bind_address_no_port(&socket)?;
        socket.bind(&SocketAddr::new(source, 0).into())
    };
    bind().map_err(DialError::Source)?;
    Ok(Dial { socket, address })
}

fn other(error: crate::bpf::BpfError) -> DialError {
    DialError::Socket(io::Error::other(error))
}

fn open(namespace: &Namespace, address: SocketAddr) -> Result<Socket, DialError> {
    let open = || {
        let kind = Type::STREAM.cloexec().nonblocking();
        Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))
    };
    let socket = namespace.run(open).flatten().map_err(DialError::Socket)?;
    relayed(&socket).map_err(DialError::Socket)?;
    Ok(socket)
}

fn bind_address_no_port(socket: &Socket) -> io::Result<()> {
    set_flag(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT)
}

fn set_transparent_v6(socket: &Socket) -> io::Result<()> {
    set_flag(socket, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT)
}

/// Socket options that socket2 does not name.
fn set_flag(socket: &Socket, level: libc::c_int, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let raw = std::os::fd::AsRawFd::as_raw_fd(socket);
    // SAFETY: the option reads an int, which `on` is, of the size given.
    let result = unsafe {
        libc::setsockopt(
            raw,
            level,
            option,
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
