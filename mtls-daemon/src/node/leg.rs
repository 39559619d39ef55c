//! Connections to an application from a loopback address: how it is reached where the kernel does not
//! tell `sk_lookup` programs the interface that a SYN came in by.
//!
//! No packet from outside has a loopback source, so such a SYN comes from within. It is told from the
//! workload's other connections from loopback by its port, which is announced to the kernel side before
//! the connection is made; with it goes the client, whom the application's accept and getpeername show.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mtls_common::flow::LegKey;
use mtls_common::names::role;
use tokio::net::TcpStream;

use super::Namespace;
use super::dial::{DialError, PORTS_TO_TRY, connect, is_taken, open};
use super::ports::{ClientPort, ClientPorts};
use crate::bpf::SocketMaps;

/// Linux' ephemeral ports by default: few applications listen there.
const PORTS: std::ops::RangeInclusive<u16> = 32768..=60999;

/// An announced connection's port. To live at least as long as the connection: nobody else gets the port
/// before.
#[must_use]
pub struct Leg<'a> {
    key: LegKey,
    maps: &'a RefCell<SocketMaps>,
    _port: ClientPort<'a>,
}

impl Drop for Leg<'_> {
    fn drop(&mut self) {
        // The port is given back after this.
        self.maps.borrow_mut().forget_leg(&self.key);
    }
}

pub async fn application<'a>(
    namespace: &Namespace,
    maps: &'a RefCell<SocketMaps>,
    ports: &'a ClientPorts,
    slot: u32,
    client: SocketAddr,
    address: SocketAddr,
) -> Result<(TcpStream, Leg<'a>), DialError> {
    let (loopback, ipv6): (IpAddr, u16) = match address {
        SocketAddr::V4(_) => (Ipv4Addr::LOCALHOST.into(), 0),
        SocketAddr::V6(_) => (Ipv6Addr::LOCALHOST.into(), 1),
    };
    let mut last = None;
    for _ in 0..PORTS_TO_TRY {
        let port = fastrand::u16(PORTS);
        let Some(claim) = ports.claim(port) else { continue };
        let socket = open(namespace, maps, address, role::APPLICATION)?;
        // Over connections that have just ended; none that is open has this port.
        socket.set_reuse_address(true).map_err(DialError::Socket)?;
        match socket.bind(&SocketAddr::new(loopback, port).into()) {
            Ok(()) => {}
            Err(error) if is_taken(&error) => {
                last = Some(error);
                continue;
            }
            Err(error) => return Err(DialError::Source(error)),
        }
        let key = LegKey { slot, port, ipv6 };
        maps.borrow_mut()
            .announce_leg(key, client)
            .map_err(|error| DialError::Socket(io::Error::other(error)))?;
        let leg = Leg { key, maps, _port: claim };
        match connect(socket, address).await {
            Ok(stream) => return Ok((stream, leg)),
            Err(DialError::Connect(error)) if is_taken(&error) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(DialError::Source(last.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into())))
}
