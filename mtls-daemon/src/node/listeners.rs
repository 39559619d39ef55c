//! The daemon's listening sockets inside a workload's namespace.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::Namespace;

/// Listeners of one direction: per worker one for IPv4 and, where the namespace has it, one for
/// IPv6, all on one port. An AF_INET socket cannot be selected for an IPv6 connection.
#[derive(Debug)]
pub struct Listeners {
    pub port: u16,
    pub ipv4: Vec<TcpListener>,
    pub ipv6: Vec<TcpListener>,
}

const BACKLOG: i32 = 4096;
/// How often a port that is free for IPv4 and taken for IPv6 is exchanged for another.
const ATTEMPTS: u32 = 16;

impl Listeners {
    /// Opens them in `namespace`, at none of the ports `taken`. `preferred` is the port of an earlier
    /// daemon: clients that retransmit their SYN to it then find this one.
    pub fn open(
        namespace: &Namespace,
        workers: usize,
        ipv6: bool,
        preferred: Option<u16>,
        taken: &HashSet<u16>,
    ) -> io::Result<Self> {
        namespace.run(|| {
            let mut wanted = preferred.unwrap_or(0);
            let mut last = None;
            // Open until another is found: the kernel would offer the same again.
            let mut unwanted = Vec::new();
            for _ in 0..ATTEMPTS {
                match Self::open_at(wanted, workers, ipv6) {
                    Ok(listeners) if taken.contains(&listeners.port) => unwanted.push(listeners),
                    Ok(listeners) => return Ok(listeners),
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = Some(error),
                    Err(error) => return Err(error),
                }
                wanted = 0;
            }
            Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
        })?
    }

    /// One set for each worker.
    pub fn into_per_worker(self) -> Vec<Vec<TcpListener>> {
        let mut ipv6 = self.ipv6.into_iter();
        self.ipv4.into_iter().map(|ipv4| [ipv4].into_iter().chain(ipv6.next()).collect()).collect()
    }

    fn open_at(wanted: u16, workers: usize, ipv6: bool) -> io::Result<Self> {
        let first = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, wanted)))?;
        let port = first.local_addr()?.port();
        let mut listeners = Self { port, ipv4: vec![first], ipv6: Vec::new() };
        for _ in 1..workers {
            listeners.ipv4.push(listen(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?);
        }
        for _ in 0..if ipv6 { workers } else { 0 } {
            listeners.ipv6.push(listen(SocketAddr::from((Ipv6Addr::LOCALHOST, port)))?);
        }
        Ok(listeners)
    }
}

/// What is set here, accepted sockets inherit.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // The workers share the port. Which of them gets a connection is sk_lookup's choice alone.
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    relayed(&socket)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Options of every relayed socket. It resets unless the relay has seen an orderly end and says
/// otherwise: were the daemon killed, a clean FIN would make a cut transfer look complete.
pub fn relayed(socket: &Socket) -> io::Result<()> {
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(true)?;
    socket.set_tcp_keepalive(
        &socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(60))
            .with_interval(Duration::from_secs(15))
            .with_retries(6),
    )
}
