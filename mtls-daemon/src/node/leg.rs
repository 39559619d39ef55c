//! Connections to an application from a loopback address: how it is reached where the kernel does not
//! tell `sk_lookup` programs the interface that a SYN came in by, and on the host, where marks and routes
//! are not the daemon's to set.
//!
//! Such a SYN is told from everything else by its 4-tuple, which the kernel side notes when a socket of the
//! daemon's own, known by descriptor, sends it. Nobody else can have the 4-tuple then. With it goes the
//! client, whom the application's accept and getpeername show.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use mtls_common::names::role;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;

use super::Namespace;
use super::dial::{DialError, connect, open};
use crate::bpf::SocketMaps;

pub async fn application(
    namespace: &Namespace,
    maps: &RefCell<SocketMaps>,
    client: SocketAddr,
    address: SocketAddr,
) -> Result<TcpStream, DialError> {
    let loopback: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let socket = open(namespace, maps, address, role::APPLICATION)?;
    maps.borrow_mut()
        .announce(socket.as_fd(), client)
        .map_err(|error| DialError::Socket(io::Error::other(error)))?;
    // The port is chosen at connect(): one that is free towards this address, not towards everybody.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)
        .map_err(|errno| DialError::Socket(errno.into()))?;
    socket.bind(&SocketAddr::new(loopback, 0).into()).map_err(DialError::Source)?;
    connect(socket, address).await
}
