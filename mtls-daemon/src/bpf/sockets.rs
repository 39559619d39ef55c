//! Per-thread handles on the two socket maps of the connection path: no lock, no sharing.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use aya::maps::{Map, MapData, MapError, SkStorage};
use mtls_common::flow::Destination;

use super::{BpfError, object};

/// One runtime thread's view of the kernel.
pub struct SocketMaps {
    own: SkStorage<MapData, u32>,
    accepted: SkStorage<MapData, Destination>,
}

impl SocketMaps {
    pub(super) fn open(maps: &Path) -> Result<Self, BpfError> {
        Ok(Self {
            own: SkStorage::try_from(Map::SkStorage(object::pinned(maps, "OWN_SOCKETS")?))
                .map_err(|error| BpfError::Map { map: "OWN_SOCKETS", error })?,
            accepted: SkStorage::try_from(Map::SkStorage(object::pinned(
                maps,
                "ACCEPTED_DESTINATION",
            )?))
            .map_err(|error| BpfError::Map { map: "ACCEPTED_DESTINATION", error })?,
        })
    }

    /// Marks a socket as the daemon's own before it connects (`names::role`), by descriptor: a pod
    /// cannot do that for its own sockets.
    pub fn mark_own(&mut self, socket: BorrowedFd<'_>, role: u32) -> Result<(), BpfError> {
        self.own
            .insert(&socket.as_raw_fd(), role, 0)
            .map_err(|error| BpfError::Map { map: "OWN_SOCKETS", error })
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
