//! Per-thread handles on the maps of the connection path: no lock, no sharing.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use aya::maps::{Map, MapData, MapError, SkStorage};
use mtls_common::flow::{Address, Destination};

use super::{BpfError, Features, object};

const CLIENTS: &str = "CLIENT_DESTINATION";

/// One runtime thread's view of the kernel.
pub struct SocketMaps {
    own: SkStorage<MapData, u32>,
    accepted: SkStorage<MapData, Destination>,
    clients: SkStorage<MapData, Destination>,
    /// Whether the kernel side tells the daemon's connections to applications by their interface.
    by_interface: bool,
}

impl SocketMaps {
    pub(super) fn open(maps: &Path, features: Features) -> Result<Self, BpfError> {
        let storage = |name| {
            SkStorage::try_from(Map::SkStorage(object::pinned(maps, name)?))
                .map_err(|error| BpfError::Map { map: name, error })
        };
        Ok(Self {
            clients: storage(CLIENTS)?,
            by_interface: features.ingress_ifindex,
            own: SkStorage::try_from(Map::SkStorage(object::pinned(maps, "OWN_SOCKETS")?))
                .map_err(|error| BpfError::Map { map: "OWN_SOCKETS", error })?,
            accepted: storage("ACCEPTED_DESTINATION")?,
        })
    }

    /// Marks a socket as the daemon's own before it connects (`names::role`), by descriptor: a pod
    /// cannot do that for its own sockets.
    pub fn mark_own(&mut self, socket: BorrowedFd<'_>, role: u32) -> Result<(), BpfError> {
        self.own
            .insert(&socket.as_raw_fd(), role, 0)
            .map_err(|error| BpfError::Map { map: "OWN_SOCKETS", error })
    }

    /// Whether connections to applications in namespaces of their own come from loopback addresses.
    pub fn from_loopback(&self) -> bool {
        !self.by_interface
    }

    /// Tells the kernel side of a connection to an application, before it is made from loopback: let it
    /// through, and show `client` to the application. By descriptor, of a socket of the daemon's own.
    pub fn announce(&mut self, socket: BorrowedFd<'_>, client: SocketAddr) -> Result<(), BpfError> {
        let address = Address::from(client.ip());
        let client = Destination { address, port: client.port(), valid: 1 };
        self.clients
            .insert(&socket.as_raw_fd(), client, 0)
            .map_err(|error| BpfError::Map { map: CLIENTS, error })
    }

    /// The destination that the application asked for, of a redirected connection. None: nobody
    /// redirected it.
    pub fn original_destination(
        &self,
        accepted: BorrowedFd<'_>,
    ) -> Result<Option<SocketAddr>, BpfError> {
        match self.accepted.get(&accepted.as_raw_fd(), 0) {
            Ok(found) if found.valid != 0 => {
                Ok(Some(SocketAddr::new(found.address.into(), found.port)))
            }
            Ok(_) | Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(BpfError::Map { map: "ACCEPTED_DESTINATION", error }),
        }
    }
}
