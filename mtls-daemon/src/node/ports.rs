//! Source ports of the daemon's connections to an application.
//!
//! Such a connection has its client's address, and meets the client's own connection in one
//! namespace: with the same port as well, the application's socket and the daemon's accepted one
//! would have one 4-tuple, and the kernel would mix up their packets. So the port is taken from the
//! half of the range that the client does not use (clients take ephemeral ports, and Linux' begin
//! at 32768), and never one that an accepted connection has now.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};

/// Where Linux' ephemeral ports begin by default (net.ipv4.ip_local_port_range).
const MIDDLE: u16 = 32768;
/// Below are the ports of services, which some applications trust.
const LOWEST: u16 = 1024;

/// How many accepted connections of one workload each client port has, whatever the address.
#[derive(Debug)]
pub struct ClientPorts {
    /// All 65536 of them: 128 KiB a workload.
    accepted: Box<[AtomicU16]>,
}

/// An accepted connection's port, in use as long as this lives.
#[derive(Debug)]
pub struct ClientPort<'a>(&'a AtomicU16);

impl Drop for ClientPort<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for ClientPorts {
    fn default() -> Self {
        Self { accepted: (0..=u16::MAX).map(|_| AtomicU16::new(0)).collect() }
    }
}

impl ClientPorts {
    /// Notes an accepted connection from `client`.
    pub fn hold(&self, client: SocketAddr) -> ClientPort<'_> {
        let count = &self.accepted[usize::from(client.port())];
        count.fetch_add(1, Ordering::Relaxed);
        ClientPort(count)
    }

    /// Ports to try for a connection on behalf of `client`, in the order to try them.
    pub fn candidates(&self, client: SocketAddr) -> impl Iterator<Item = u16> + '_ {
        let (first, count) = if client.port() < MIDDLE {
            (MIDDLE, u32::from(u16::MAX - MIDDLE) + 1)
        } else {
            (LOWEST, u32::from(MIDDLE - LOWEST))
        };
        let start = fastrand::u32(..count);
        (0..count)
            .map(move |offset| first + ((start + offset) % count) as u16)
            .filter(|port| self.accepted[usize::from(*port)].load(Ordering::Relaxed) == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    #[test]
    fn candidates_are_the_half_that_the_client_does_not_use() {
        let ports = ClientPorts::default();
        let mut low: Vec<u16> = ports.candidates(client(40_000)).collect();
        low.sort_unstable();
        assert_eq!((low.len(), low[0], low[low.len() - 1]), (31_744, 1024, 32_767));
        let mut high: Vec<u16> = ports.candidates(client(2_000)).collect();
        high.sort_unstable();
        assert_eq!((high.len(), high[0], high[high.len() - 1]), (32_768, 32_768, 65_535));
    }

    #[test]
    fn a_port_that_an_accepted_connection_has_is_no_candidate() {
        let ports = ClientPorts::default();
        let held = (ports.hold(client(5_000)), ports.hold(client(5_000)));
        assert!(!ports.candidates(client(40_000)).any(|port| port == 5_000));
        drop(held.0);
        assert!(!ports.candidates(client(40_000)).any(|port| port == 5_000));
        drop(held.1);
        assert!(ports.candidates(client(40_000)).any(|port| port == 5_000));
    }
}
