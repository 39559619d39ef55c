//! Older connections: sockets of an enrolled namespace that policy does not allow (any more) are
//! destroyed, SOCK_DESTROY over sock_diag (CONFIG_INET_DIAG_DESTROY).

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla as _,
};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};

use super::Namespace;

/// Which of a namespace's connections are the workload's.
#[derive(Debug)]
pub enum Scope<'a> {
    /// All, but for those to its own addresses: it talks to itself.
    Namespace { own_addresses: &'a [IpAddr] },
    /// Of the host's: those of sockets that processes of these cgroups made, and those to these places.
    /// Nothing else is looked at.
    Host { cgroups: HashSet<u64>, declared: HashSet<SocketAddr> },
}

/// A TCP connection of the namespace, from its inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// Somebody listens on the local port: the connection came from outside.
    pub inbound: bool,
}

/// Destroys the namespace's connections for which `conforms` is false, half-open and unaccepted ones
/// among them. Left alone: loopback, the workload talking to itself, the daemon's own sockets (known
/// by descriptor) and the application's ends of them (known by being their other end; a mark could
/// be set by anybody). Returns what was destroyed.
///
/// A connection that nobody has accepted yet may wait in the queue of the daemon's own listener or of the
/// application's: it is looked at again a little later. Whoever still has not accepted it then loses it,
/// also the daemon; its client tries again.
pub fn sweep(
    namespace: &Namespace,
    scope: &Scope<'_>,
    conforms: impl Fn(&Connection) -> bool + Sync,
) -> io::Result<Vec<Connection>> {
    namespace.run_apart(|| {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddr::new(0, 0))?;
        let mut destroyed = Vec::new();
        let queued = end(&socket, scope, &conforms, None, &mut destroyed)?;
        if !queued.is_empty() {
            std::thread::sleep(QUEUED);
            end(&socket, scope, &conforms, Some(&queued), &mut destroyed)?;
        }
        Ok(destroyed)
    })?
}

/// How long the daemon's workers have to accept what waits for them.
const QUEUED: Duration = Duration::from_millis(200);

/// One look at all connections. The first leaves those alone that nobody has accepted, and returns their
/// cookies; the second is given them, and looks at no others.
fn end(
    socket: &Socket,
    scope: &Scope<'_>,
    conforms: impl Fn(&Connection) -> bool,
    queued: Option<&HashSet<Cookie>>,
    destroyed: &mut Vec<Connection>,
) -> io::Result<HashSet<Cookie>> {
    let (to_end, waiting) = find(|| Look::now(socket), scope, conforms, queued)?;
    let mut failed = None;
    for (entry, connection) in to_end {
        match destroy(socket, entry.header.family, entry.header.socket_id) {
            Ok(true) => destroyed.push(connection),
            Ok(false) => {}
            // One that cannot be ended must not save those behind it.
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        None => Ok(waiting),
        Some(error) => Err(error),
    }
}

type Cookie = [u8; 8];
/// Local and remote end.
type Ends = (SocketAddr, SocketAddr);

/// All sockets of the namespace.
struct Look {
    found: Vec<InetResponse>,
    /// The daemon's own among them.
    own: HashSet<Ends>,
}

impl Look {
    fn now(socket: &Socket) -> io::Result<Self> {
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            found.extend(dump(socket, family, StateFlags::all())?);
        }
        // Looked up after the dump: a socket of ours that is gone by now needs no protection.
        let inodes = own_socket_inodes()?;
        let own =
            found.iter().filter(|it| it.header.inode != 0 && inodes.contains(&it.header.inode));
        let own = own.map(ends).collect();
        Ok(Self { found, own })
    }
}

fn ends(entry: &InetResponse) -> Ends {
    let id = &entry.header.socket_id;
    (
        SocketAddr::new(id.source_address.to_canonical(), id.source_port),
        SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
    )
}

/// What is to be destroyed, and the cookies of what nobody has accepted yet.
#[expect(clippy::type_complexity, reason = "two lists with one reader")]
fn find(
    mut look: impl FnMut() -> io::Result<Look>,
    scope: &Scope<'_>,
    conforms: impl Fn(&Connection) -> bool,
    queued: Option<&HashSet<Cookie>>,
) -> io::Result<(Vec<(InetResponse, Connection)>, HashSet<Cookie>)> {
    let Look { found, mut own } = look()?;
    let mut waiting = HashSet::new();
    let listening: HashSet<u16> = found
        .iter()
        .filter(|socket| socket.header.state == TCP_LISTEN)
        .map(|socket| socket.header.socket_id.source_port)
        .collect();
    let ephemeral = ephemeral_ports();
    let is_ours = |own: &HashSet<Ends>, (local, remote): Ends| {
        // or the application's end of a connection of the daemon's
        own.contains(&(local, remote)) || own.contains(&(remote, local))
    };
    let mut to_end = Vec::new();
    for entry in found {
        let (local, remote) = ends(&entry);
        // Where the application no longer listens, the port still tells.
        let inbound = listening.contains(&local.port()) || !ephemeral.contains(&local.port());
        let (inbound, theirs, to_itself) = match scope {
            Scope::Namespace { own_addresses } => {
                (inbound, true, own_addresses.contains(&remote.ip()))
            }
            Scope::Host { declared, .. } if declared.contains(&local) => (true, true, false),
            Scope::Host { cgroups, .. } => {
                let theirs = cgroup(&entry).is_some_and(|id| cgroups.contains(&id));
                // What came in at a port that is not declared is the host's.
                (false, theirs && !inbound, false)
            }
        };
        let connection = Connection { local, remote, inbound };
        let local_only = remote.ip().is_loopback() || to_itself;
        if matches!(entry.header.state, TCP_LISTEN | TCP_TIME_WAIT)
            || !theirs
            || remote.port() == 0
            || local_only
            || is_ours(&own, (local, remote))
            || conforms(&connection)
        {
            continue;
        }
        let cookie = entry.header.socket_id.cookie;
        match queued {
            None if entry.header.inode == 0 => {
                waiting.insert(cookie);
            }
            Some(queued) if !queued.contains(&cookie) => {}
            _ => to_end.push((entry, connection)),
        }
    }
    if !to_end.is_empty() {
        // A look takes its time: of a connection that the daemon makes meanwhile it may have the
        // application's end and not ours. Ours is older, so a look that begins now has it.
        own.extend(look()?.own);
        to_end.retain(|(_, connection)| !is_ours(&own, (connection.local, connection.remote)));
    }
    Ok((to_end, waiting))
}

/// The cgroup of the process that made the socket, or whose listener accepted it (Linux 5.9).
fn cgroup(entry: &InetResponse) -> Option<u64> {
    const INET_DIAG_CGROUP_ID: u16 = 21;
    entry.nlas.iter().find_map(|attribute| match attribute {
        Nla::Other(other) if other.kind() == INET_DIAG_CGROUP_ID => {
            let mut value = [0; 8];
            if other.value_len() != value.len() {
                return None;
            }
            other.emit_value(&mut value);
            Some(u64::from_ne_bytes(value))
        }
        _ => None,
    })
}

/// Ports that the namespace's own connections take.
fn ephemeral_ports() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let parsed = text.ok().and_then(|text| {
        let mut ports = text.split_whitespace().map(str::parse);
        Some(ports.next()?.ok()?..=ports.next()?.ok()?)
    });
    parsed.unwrap_or(32768..=60999)
}

// TCP states (linux/tcp_states.h).
const TCP_TIME_WAIT: u8 = 6;
const TCP_LISTEN: u8 = 10;

fn dump(socket: &Socket, family: u8, states: StateFlags) -> io::Result<Vec<InetResponse>> {
    let request = SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states,
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
                // A dump that fails says so in its end.
                NetlinkPayload::Done(end) if end.code < 0 => {
                    return Err(io::Error::from_raw_os_error(-end.code));
                }
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

/// What a kernel says to SOCK_DESTROY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SockDestroy {
    Works,
    /// It was built without.
    Unsupported,
    /// It does not even list TCP sockets: `tcp_diag` is neither built in nor loaded, nor to be found.
    NoTcpDiag,
}

/// Whether this kernel destroys sockets at all: asked with a connection that cannot exist.
pub fn sock_destroy() -> io::Result<SockDestroy> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    let mut id = SocketId::new_v4();
    id.source_address = IpAddr::from([127, 255, 255, 254]);
    id.destination_address = IpAddr::from([127, 255, 255, 253]);
    (id.source_port, id.destination_port) = (1, 1);
    id.cookie = [0xff; 8];
    // ENOENT is what both a connection and a protocol that is not there get, so the protocol first.
    match dump(&socket, AF_INET, StateFlags::empty()) {
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            return Ok(SockDestroy::NoTcpDiag);
        }
        Err(error) => return Err(error),
    }
    match destroy(&socket, AF_INET, id) {
        Ok(_) => Ok(SockDestroy::Works),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            Ok(SockDestroy::Unsupported)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_sock_diag::inet::InetResponseHeader;

    use super::*;

    const ESTABLISHED: u8 = 1;

    fn entry(local: &str, remote: &str, cookie: u8) -> InetResponse {
        let [local, remote]: [SocketAddr; 2] = [local, remote].map(|it| it.parse().unwrap());
        let socket_id = SocketId {
            source_port: local.port(),
            destination_port: remote.port(),
            source_address: local.ip(),
            destination_address: remote.ip(),
            interface_id: 0,
            cookie: [cookie; 8],
        };
        let header = InetResponseHeader {
            family: AF_INET,
            state: ESTABLISHED,
            timer: None,
            socket_id,
            recv_queue: 0,
            send_queue: 0,
            uid: 0,
            inode: 1,
        };
        InetResponse { header, nlas: Default::default() }
    }

    /// The application's end comes into the dump and ours, which is older, does not: the kernel had
    /// passed by its place already.
    #[test]
    fn a_connection_that_the_daemon_makes_meanwhile_is_left_alone() {
        let (application, client, stranger) = ("10.0.0.2:8080", "10.0.0.1:16712", "10.0.0.9:40000");
        let [ours, stays] = [application, client].map(|it| it.parse::<SocketAddr>().unwrap());
        let mut looks = 0;
        let look = || {
            looks += 1;
            let found = vec![entry(application, client, 1), entry(application, stranger, 2)];
            let own = if looks == 1 { HashSet::new() } else { HashSet::from([(stays, ours)]) };
            Ok(Look { found, own })
        };
        let scope = Scope::Namespace { own_addresses: &[] };
        let (to_end, waiting) = find(look, &scope, |_| false, None).unwrap();
        let remotes: Vec<_> = to_end.iter().map(|(_, it)| it.remote.to_string()).collect();
        assert_eq!((remotes, waiting.len(), looks), (vec![stranger.to_owned()], 0, 2));
    }

    #[test]
    fn where_nothing_is_to_end_one_look_is_enough() {
        let mut looks = 0;
        let look = || {
            looks += 1;
            let found = vec![entry("10.0.0.2:8080", "10.0.0.1:16712", 1)];
            Ok(Look { found, own: HashSet::new() })
        };
        let scope = Scope::Namespace { own_addresses: &[] };
        let (to_end, _) = find(look, &scope, |_| true, None).unwrap();
        assert_eq!((to_end.len(), looks), (0, 1));
    }
}
