//! Older connections: sockets of an enrolled namespace that policy does not allow (any more) are
//! destroyed, SOCK_DESTROY over sock_diag (CONFIG_INET_DIAG_DESTROY).

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use mtls_common::names::MARK;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla,
};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};

use super::Namespace;

/// A TCP connection of the namespace, from its inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// Somebody listens on the local port: the connection came from outside.
    pub inbound: bool,
}

/// Destroys the namespace's connections for which `conforms` is false. Left alone: loopback, the
/// workload talking to itself, the daemon's own sockets and the application's ends of them.
/// Returns what was destroyed.
pub fn sweep(
    namespace: &Namespace,
    own_addresses: &[IpAddr],
    conforms: impl Fn(&Connection) -> bool + Sync,
) -> io::Result<Vec<Connection>> {
    namespace.run_apart(|| {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddr::new(0, 0))?;
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            found.extend(dump(&socket, family)?);
        }
        let listening: HashSet<u16> = found
            .iter()
            .filter(|socket| socket.header.state == TCP_LISTEN)
            .map(|socket| socket.header.socket_id.source_port)
            .collect();
        // Looked up after the dump: a socket of ours that is gone by now needs no protection.
        let own = own_socket_inodes()?;
        let mut destroyed = Vec::new();
        for entry in found {
            let header = &entry.header;
            let id = &header.socket_id;
            let connection = Connection {
                local: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
                remote: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
                inbound: listening.contains(&id.source_port),
            };
            let local_only = connection.remote.ip().is_loopback()
                || own_addresses.contains(&connection.remote.ip());
            // Without an inode a socket is nobody's yet (it waits in an accept queue, perhaps the
            // daemon's own) or nobody's any more; the caller sweeps a second time for the former.
            if matches!(header.state, TCP_LISTEN | TCP_TIME_WAIT)
                || header.inode == 0
                || local_only
                || own.contains(&header.inode)
                || mark(&entry) == Some(MARK)
                || conforms(&connection)
            {
                continue;
            }
            if destroy(&socket, header.family, id.clone())? {
                destroyed.push(connection);
            }
        }
        Ok(destroyed)
    })?
}

// TCP states (linux/tcp_states.h).
const TCP_TIME_WAIT: u8 = 6;
const TCP_LISTEN: u8 = 10;

fn mark(entry: &InetResponse) -> Option<u32> {
    entry.nlas.iter().find_map(|nla| match nla {
        Nla::Mark(mark) => Some(*mark),
        _ => None,
    })
}

fn dump(socket: &Socket, family: u8) -> io::Result<Vec<InetResponse>> {
    let request = SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() },
    });
    send(socket, NLM_F_REQUEST | NLM_F_DUMP, request.into())?;
    let mut found = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let message =
                NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = (message.header.length as usize).next_multiple_of(4);
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(entry)) => {
                    found.push(*entry);
                }
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

/// False: it was gone already.
fn destroy(socket: &Socket, family: u8, socket_id: SocketId) -> io::Result<bool> {
    let request = SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id,
    });
    send(socket, NLM_F_REQUEST | NLM_F_ACK, SockDiagDestroy::new(request).into())?;
    let (bytes, _) = socket.recv_from_full()?;
    let answer =
        NetlinkMessage::<SockDiagMessage>::deserialize(&bytes).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_none() => Ok(true),
        NetlinkPayload::Error(error) if error.raw_code() == -libc::ENOENT => Ok(false),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::Error::other("unexpected answer to SOCK_DESTROY")),
    }
}

fn send<T>(socket: &Socket, flags: u16, payload: NetlinkPayload<T>) -> io::Result<()>
where
    T: netlink_packet_core::NetlinkSerializable,
{
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, payload);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).map(drop)
}

/// Inodes of every socket that this process has open.
fn own_socket_inodes() -> io::Result<HashSet<u32>> {
    let mut inodes = HashSet::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Ok(target) = std::fs::read_link(entry?.path()) else { continue };
        let inode: Option<u32> = target
            .to_str()
            .and_then(|name| name.strip_prefix("socket:["))
            .and_then(|name| name.strip_suffix(']'))
            .and_then(|number| number.parse().ok());
        inodes.extend(inode);
    }
    Ok(inodes)
}

/// Whether this kernel destroys sockets at all: asked with a connection that cannot exist.
pub fn can_destroy() -> io::Result<bool> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    let mut id = SocketId::new_v4();
    id.source_address = IpAddr::from([127, 255, 255, 254]);
    id.destination_address = IpAddr::from([127, 255, 255, 253]);
    (id.source_port, id.destination_port) = (1, 1);
    id.cookie = [0xff; 8];
    match destroy(&socket, AF_INET, id) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}
