//! Per-thread handles on the maps of the connection path: no lock, no sharing.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use aya::maps::{HashMap, Map, MapData, MapError, SkStorage};
use mtls_common::flow::{Address, Destination, LegKey};

use super::tables::is_absent;
use super::{BpfError, Features, object};

const LEGS: &str = "APPLICATION_LEGS";

/// One runtime thread's view of the kernel.
pub struct SocketMaps {
    own: SkStorage<MapData, u32>,
    accepted: SkStorage<MapData, Destination>,
    /// None where the kernel side needs no announcements.
    legs: Option<HashMap<MapData, LegKey, Destination>>,
}

impl SocketMaps {
    pub(super) fn open(maps: &Path, features: Features) -> Result<Self, BpfError> {
        let legs = if features.ingress_ifindex {
            None
        } else {
            let map = Map::HashMap(object::pinned(maps, LEGS)?);
            Some(HashMap::try_from(map).map_err(|error| BpfError::Map { map: LEGS, error })?)
        };
        Ok(Self {
            legs,
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

    /// Whether connections to applications come from loopback addresses and are announced.
    pub fn announces_legs(&self) -> bool {
        self.legs.is_some()
    }

    /// Tells the kernel side of a connection to an application before it is made: let it through, and
    /// show `client` to the application.
    pub fn announce_leg(&mut self, leg: LegKey, client: SocketAddr) -> Result<(), BpfError> {
        let Some(legs) = &mut self.legs else { return Ok(()) };
        let address = Address::from(client.ip());
        let client = Destination { address, port: client.port(), valid: 1 };
        legs.insert(leg, client, 0).map_err(|error| BpfError::Map { map: LEGS, error })
    }

    /// Takes an announcement back; mostly the application's accept has used it up.
    pub fn forget_leg(&mut self, leg: &LegKey) {
        if let Some(legs) = &mut self.legs
            && let Err(error) = legs.remove(leg)
            && !is_absent(&error)
        {
            tracing::warn!(%error, "cannot take back the announcement of a connection");
        }
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
