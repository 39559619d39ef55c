//! The kernel's tables, typed. Control path only: each call is a system call or more.

use std::collections::HashSet;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;

use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, SkStorage, SockMap};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mtls_common::event::Decision;
use mtls_common::flow::{Address, Flow, FlowKey};
use mtls_common::names::{self, listener_index};
use mtls_common::workload::{
    HostPort, HostPortKey, InboundKey, ListenerTag, OutboundKey, OwnAddressKey, Workload, bypass,
};

use super::{BpfError, object};

/// Ranges that take in everything. The configuration leaves them room in `MESH_RANGES`.
const FALLBACK_RANGES: usize = 10;

/// A pinned hash map and the copy of its keys that says what to change.
struct Table<K: Pod + Eq + Hash, V: Pod + PartialEq> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
    rows: std::collections::HashMap<K, V>,
}

impl<K: Pod + Eq + Hash, V: Pod + PartialEq> Table<K, V> {
    fn open(maps: &Path, name: &'static str) -> Result<Self, BpfError> {
        let map = HashMap::try_from(Map::HashMap(object::pinned(maps, name)?))
            .map_err(|error| BpfError::Map { map: name, error })?;
        let rows = map
            .iter()
            .collect::<Result<_, _>>()
            .map_err(|error| BpfError::Map { map: name, error })?;
        Ok(Self { name, map, rows })
    }

    fn insert(&mut self, key: K, value: V) -> Result<(), BpfError> {
        if self.rows.get(&key) == Some(&value) {
            return Ok(());
        }
        self.map.insert(key, value, 0).map_err(|error| BpfError::Map { map: self.name, error })?;
        self.rows.insert(key, value);
        Ok(())
    }

    fn remove(&mut self, key: &K) -> Result<(), BpfError> {
        match self.map.remove(key) {
            Err(error) if !is_absent(&error) => {
                return Err(BpfError::Map { map: self.name, error });
            }
            _ => {}
        }
        self.rows.remove(key);
        Ok(())
    }

    fn remove_where(&mut self, gone: impl Fn(&K, &V) -> bool) -> Result<(), BpfError> {
        let keys: Vec<K> =
            self.rows.iter().filter(|(key, value)| gone(key, value)).map(|(key, _)| *key).collect();
        keys.iter().try_for_each(|key| self.remove(key))
    }
}

/// All tables of one node.
pub struct Tables {
    enrolled: Table<u64, u32>,
    cgroups: Table<u64, u32>,
    host_ports: Table<HostPortKey, HostPort>,
    workloads: Table<u32, Workload>,
    own_addresses: Table<OwnAddressKey, u32>,
    outbound: Table<OutboundKey, u32>,
    mesh_addresses: Table<Address, u32>,
    inbound: Table<InboundKey, u32>,
    mesh_ranges: LpmTrie<MapData, Address, u32>,
    listeners: SockMap<MapData>,
    listener_tag: SkStorage<MapData, ListenerTag>,
    /// Addresses that found no place in `MESH_ADDRESSES`.
    without_place: Vec<IpAddr>,
    flows: HashMap<MapData, FlowKey, Flow>,
    legs: HashMap<MapData, FlowKey, Flow>,
    decisions: PerCpuArray<MapData, u64>,
}

fn map_error(map: &'static str) -> impl Fn(MapError) -> BpfError {
    move |error| BpfError::Map { map, error }
}

/// Whether it says that there is no such key: a lookup and a removal say it in different words.
pub(super) fn is_absent(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(error) => error.io_error.raw_os_error() == Some(libc::ENOENT),
        _ => false,
    }
}

impl Tables {
    /// Opens the pinned maps below `maps` and reads what an earlier daemon left in them.
    pub fn open(maps: &Path) -> Result<Self, BpfError> {
        let pinned = |name| object::pinned(maps, name);
        Ok(Self {
            enrolled: Table::open(maps, "ENROLLED")?,
            cgroups: Table::open(maps, "CGROUPS")?,
            host_ports: Table::open(maps, "HOST_PORTS")?,
            workloads: Table::open(maps, "WORKLOADS")?,
            own_addresses: Table::open(maps, "OWN_ADDRESSES")?,
            outbound: Table::open(maps, "OUTBOUND")?,
            mesh_addresses: Table::open(maps, "MESH_ADDRESSES")?,
            inbound: Table::open(maps, "INBOUND")?,
            mesh_ranges: LpmTrie::try_from(Map::LpmTrie(pinned("MESH_RANGES")?))
                .map_err(map_error("MESH_RANGES"))?,
            without_place: Vec::new(),
            listeners: SockMap::try_from(Map::SockMap(pinned("LISTENERS")?))
                .map_err(map_error("LISTENERS"))?,
            listener_tag: SkStorage::try_from(Map::SkStorage(pinned("LISTENER_TAG")?))
                .map_err(map_error("LISTENER_TAG"))?,
            flows: HashMap::try_from(Map::HashMap(pinned("FLOWS")?)).map_err(map_error("FLOWS"))?,
            legs: HashMap::try_from(Map::HashMap(pinned("APPLICATION_LEGS")?))
                .map_err(map_error("APPLICATION_LEGS"))?,
            decisions: PerCpuArray::try_from(Map::PerCpuArray(pinned("DECISIONS")?))
                .map_err(map_error("DECISIONS"))?,
        })
    }

    /// Workloads by slot, as an earlier daemon left them.
    pub fn workloads(&self) -> impl Iterator<Item = (u32, &Workload)> {
        self.workloads.rows.iter().map(|(slot, workload)| (*slot, workload))
    }

    /// The workload at `slot`.
    pub fn workload(&self, slot: u32) -> Option<&Workload> {
        self.workloads.rows.get(&slot)
    }

    /// The slot that a namespace has, or in the host's (`host` is not 0) a cgroup; or a free one.
    pub fn slot_for(&self, netns_cookie: u64, host: u64) -> Result<u32, BpfError> {
        let known = self
            .workloads()
            .find(|(_, entry)| entry.netns_cookie == netns_cookie && entry.host == host);
        if let Some((slot, _)) = known {
            return Ok(slot);
        }
        (0..names::MAX_WORKLOADS)
            .find(|slot| !self.workloads.rows.contains_key(slot))
            .ok_or(BpfError::Full(names::MAX_WORKLOADS))
    }

    /// Writes a workload and exactly these addresses of its own. It is not enrolled by this. Returns
    /// how many found no place: nobody reaches the workload there.
    pub fn set_workload(
        &mut self,
        slot: u32,
        entry: Workload,
        addresses: &[IpAddr],
    ) -> Result<usize, BpfError> {
        let wanted: HashSet<Address> = addresses.iter().map(|ip| Address::from(*ip)).collect();
        self.own_addresses
            .remove_where(|key, _| key.slot == slot && !wanted.contains(&key.address))?;
        let mut left_out = 0;
        for address in wanted {
            let key = OwnAddressKey { slot, address };
            left_out += usize::from(self.own_addresses.insert(key, 1).is_err());
        }
        self.workloads.insert(slot, entry)?;
        Ok(left_out)
    }

    /// From here on the outbound side takes the namespace's connections.
    pub fn enrol(&mut self, netns_cookie: u64, slot: u32) -> Result<(), BpfError> {
        self.enrolled.insert(netns_cookie, slot)
    }

    /// Cookies of namespaces in which workloads are cgroups: the host's, if any.
    pub fn hosts(&self) -> HashSet<u64> {
        let enrolled = self.enrolled.rows.iter();
        enrolled.filter(|(_, slot)| **slot == names::HOST).map(|(cookie, _)| *cookie).collect()
    }

    /// From here on the outbound side takes the connections of processes in this cgroup, and no longer
    /// those of the one that was the workload's before. None: there is no such cgroup now.
    pub fn set_cgroup(&mut self, slot: u32, id: Option<u64>) -> Result<(), BpfError> {
        if let Some(id) = id {
            self.cgroups.insert(id, slot)?;
        }
        self.cgroups.remove_where(|known, value| *value == slot && Some(*known) != id)
    }

    /// Exactly these places in the host's namespace are the workload's; but where another workload has
    /// declared a port, a listener of this one's does not take it.
    pub fn set_host_ports(
        &mut self,
        slot: u32,
        wanted: &std::collections::HashMap<SocketAddr, u32>,
    ) -> Result<(), BpfError> {
        let key = |place: &SocketAddr| HostPortKey {
            address: Address::from(place.ip()),
            port: u32::from(place.port()),
        };
        for (place, direction) in wanted {
            let declared =
                |row: &&HostPort| row.slot != slot && row.direction == ListenerTag::INBOUND;
            let is_others = self.host_ports.rows.get(&key(place)).filter(declared).is_some();
            if *direction == ListenerTag::INBOUND || !is_others {
                self.host_ports.insert(key(place), HostPort { slot, direction: *direction })?;
            }
        }
        let kept: HashSet<HostPortKey> = wanted.keys().map(key).collect();
        self.host_ports.remove_where(|key, value| value.slot == slot && !kept.contains(key))
    }

    /// Whether any workload is left in a namespace.
    pub fn has_workloads(&self, netns_cookie: u64) -> bool {
        self.workloads().any(|(_, entry)| entry.netns_cookie == netns_cookie)
    }

    /// Forgets a workload, the way it came: outbound first, so that nothing is redirected to
    /// listeners that are going away.
    pub fn remove_workload(&mut self, slot: u32) -> Result<(), BpfError> {
        self.enrolled.remove_where(|_, value| *value == slot)?;
        self.cgroups.remove_where(|_, value| *value == slot)?;
        self.host_ports.remove_where(|_, value| value.slot == slot)?;
        self.outbound.remove_where(|key, _| key.slot == slot)?;
        self.inbound.remove_where(|key, _| key.slot == slot)?;
        self.own_addresses.remove_where(|key, _| key.slot == slot)?;
        let cookie = self.workloads.rows.get(&slot).map(|entry| entry.netns_cookie);
        self.workloads.remove(&slot)?;
        match cookie {
            Some(cookie) if !self.has_workloads(cookie) => self.enrolled.remove(&cookie),
            _ => Ok(()),
        }
    }

    /// Makes `socket` (listening) the one that a workload's connections find.
    pub fn set_listener<S: AsFd>(
        &mut self,
        slot: u32,
        inbound: bool,
        ipv6: bool,
        worker: u32,
        netns_cookie: u64,
        socket: &S,
    ) -> Result<(), BpfError> {
        let raw = std::os::fd::AsRawFd::as_raw_fd(&socket.as_fd());
        let direction = if inbound { ListenerTag::INBOUND } else { ListenerTag::OUTBOUND };
        self.listener_tag
            .insert(&raw, ListenerTag { netns_cookie, direction, _padding: 0 }, 0)
            .map_err(map_error("LISTENER_TAG"))?;
        self.listeners
            .set(listener_index(slot, inbound, ipv6, worker), &raw, 0)
            .map_err(map_error("LISTENERS"))
    }

    /// First half of a change: whatever will no longer be untouched stops being so. After it the
    /// new snapshot may be published; then [`Self::open_bypasses`].
    pub fn close_bypasses(&mut self, slot: u32, wanted: &Bypasses) -> Result<(), BpfError> {
        // Rows that take something back go in before the row they take it from is used.
        for (key, value) in wanted.rows(slot, bypass::REDIRECT) {
            if self.outbound.insert(key, value).is_err() {
                // No room: then the row that it takes something from must go.
                self.outbound.remove(&OutboundKey { port: 0, ..key })?;
            }
        }
        let mut untouched = wanted.inbound_untouched;
        for (key, value) in wanted.inbound_rows(slot, bypass::REDIRECT) {
            // No room: then no port is untouched by default.
            untouched &= self.inbound.insert(key, value).is_ok();
        }
        self.outbound.remove_where(|key, value| {
            key.slot == slot
                && *value == bypass::UNTOUCHED
                && wanted.outbound.get(&(key.address, key.port)) != Some(&bypass::UNTOUCHED)
        })?;
        self.inbound.remove_where(|key, value| {
            key.slot == slot
                && *value == bypass::UNTOUCHED
                && wanted.inbound.get(&(key.port as u16)) != Some(&bypass::UNTOUCHED)
        })?;
        match self.workloads.rows.get(&slot).copied() {
            Some(entry) if !untouched => {
                self.workloads.insert(slot, Workload { inbound_untouched: 0, ..entry })
            }
            _ => Ok(()),
        }
    }

    /// Second half of a change: what is in the clear by policy now may stay the application's own.
    /// When `OUTBOUND` or `INBOUND` is full, what found no place is the daemon's: slower, never less
    /// safe. Returns how many rows those are.
    pub fn open_bypasses(&mut self, slot: u32, wanted: &Bypasses) -> Result<usize, BpfError> {
        self.outbound.remove_where(|key, _| {
            key.slot == slot && !wanted.outbound.contains_key(&(key.address, key.port))
        })?;
        let mut left_out = 0;
        let unplaced: HashSet<Address> = wanted
            .rows(slot, bypass::REDIRECT)
            .filter(|(key, value)| self.outbound.rows.get(key) != Some(value))
            .map(|(key, _)| key.address)
            .collect();
        for (key, value) in wanted.rows(slot, bypass::UNTOUCHED) {
            let exposed = key.port == 0 && unplaced.contains(&key.address);
            if exposed || self.outbound.insert(key, value).is_err() {
                left_out += 1;
            }
        }
        for (key, value) in wanted.inbound_rows(slot, bypass::UNTOUCHED) {
            left_out += usize::from(self.inbound.insert(key, value).is_err());
        }
        let unplaced = wanted
            .inbound_rows(slot, bypass::REDIRECT)
            .filter(|(key, value)| self.inbound.rows.get(key) != Some(value))
            .count();
        left_out += unplaced;
        if let Some(entry) = self.workloads.rows.get(&slot).copied() {
            let inbound_untouched = (wanted.inbound_untouched && unplaced == 0).into();
            self.workloads.insert(slot, Workload { inbound_untouched, ..entry })?;
        }
        self.inbound.remove_where(|key, _| {
            key.slot == slot && !wanted.inbound.contains_key(&(key.port as u16))
        })?;
        Ok(left_out)
    }

    /// These addresses and ranges are the daemon's from now on, among others: what takes
    /// connections, before a snapshot is published. When `MESH_ADDRESSES` is full, every address is
    /// the daemon's until there is room: slower, never clearer.
    pub fn add_mesh(
        &mut self,
        addresses: &HashSet<IpAddr>,
        ranges: &[IpNet],
    ) -> Result<(), BpfError> {
        self.add_ranges(ranges)?;
        let insert = |address: &&IpAddr| {
            let key = Address::from(**address);
            self.mesh_addresses.insert(key, 1).is_err()
        };
        self.without_place = addresses.iter().filter(insert).copied().collect();
        self.without_place.sort_unstable();
        if self.without_place.is_empty() { Ok(()) } else { self.add_ranges(&everything()) }
    }

    fn add_ranges(&mut self, ranges: &[IpNet]) -> Result<(), BpfError> {
        for (length, address) in ranges.iter().map(range_key) {
            self.mesh_ranges
                .insert(&Key::new(length, address), 1, 0)
                .map_err(map_error("MESH_RANGES"))?;
        }
        Ok(())
    }

    /// Only these are: what lets connections go, after it is published. Returns the addresses that
    /// found no place, for which every address is the daemon's.
    pub fn keep_mesh(
        &mut self,
        addresses: &HashSet<IpAddr>,
        ranges: &[IpNet],
    ) -> Result<&[IpAddr], BpfError> {
        let kept: HashSet<Address> = addresses.iter().map(|ip| Address::from(*ip)).collect();
        self.mesh_addresses.remove_where(|address, _| !kept.contains(address))?;
        // What went may have made room.
        let insert = |address: &IpAddr| self.mesh_addresses.insert((*address).into(), 1).is_err();
        self.without_place.retain(insert);
        let mut wanted: Vec<(u32, Address)> = ranges.iter().map(range_key).collect();
        if !self.without_place.is_empty() {
            wanted.extend(everything().iter().map(range_key));
        }
        let stale: Vec<Key<Address>> = self
            .mesh_ranges
            .keys()
            .filter_map(Result::ok)
            .filter(|key| !wanted.contains(&(key.prefix_len(), key.data())))
            .collect();
        for key in stale {
            self.mesh_ranges.remove(&key).map_err(map_error("MESH_RANGES"))?;
        }
        Ok(&self.without_place)
    }

    /// Removes handshakes that never became a connection. Returns how many there were.
    pub fn sweep_flows(&mut self, older_than: std::time::Duration) -> Result<usize, BpfError> {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
            .map_err(|error| BpfError::Call { what: "clock_gettime", error: error.into() })?;
        let now = std::time::Duration::from(now);
        let maps = [("FLOWS", &mut self.flows), ("APPLICATION_LEGS", &mut self.legs)];
        let mut swept = 0;
        for (name, map) in maps {
            let stale: Vec<FlowKey> = map
                .iter()
                .filter_map(Result::ok)
                .filter(|(_, flow)| {
                    now.saturating_sub(std::time::Duration::from_nanos(flow.created)) > older_than
                })
                .map(|(key, _)| key)
                .collect();
            for key in &stale {
                match map.remove(key) {
                    // Taken by its connection meanwhile.
                    Err(error) if !is_absent(&error) => {
                        return Err(BpfError::Map { map: name, error });
                    }
                    _ => {}
                }
            }
            swept += stale.len();
        }
        Ok(swept)
    }

    /// What the kernel programs decided so far, since the maps were made.
    pub fn decisions(&self) -> Vec<(Decision, u64)> {
        Decision::ALL
            .into_iter()
            .map(|decision| {
                let total = self
                    .decisions
                    .get(&(decision as u32), 0)
                    .map_or(0, |values| values.iter().sum());
                (decision, total)
            })
            .collect()
    }
}

/// Every address that a connection can go to, but link-local ones: of those only the application
/// knows the interface, and no workload has one.
fn everything() -> [IpNet; FALLBACK_RANGES] {
    let v6 = |first: u16, length| {
        let address = Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0);
        IpNet::V6(Ipv6Net::new_assert(address, length))
    };
    [
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
        // Up to fe7f:…, then fec0:… to feff:….
        v6(0, 1),
        v6(0x8000, 2),
        v6(0xc000, 3),
        v6(0xe000, 4),
        v6(0xf000, 5),
        v6(0xf800, 6),
        v6(0xfc00, 7),
        v6(0xfe00, 9),
        v6(0xfec0, 10),
    ]
}

fn range_key(range: &IpNet) -> (u32, Address) {
    let address = Address::from(range.network());
    let length = u32::from(range.prefix_len());
    (if range.addr().is_ipv4() { length + 96 } else { length }, address)
}

/// What one workload's connections may bypass. Values are those of `bypass`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bypasses {
    /// By destination and port; port 0 is any port without an answer of its own.
    pub outbound: std::collections::HashMap<(Address, u16), u32>,
    pub inbound_untouched: bool,
    /// By port, where the answer is not the default.
    pub inbound: std::collections::HashMap<u16, u32>,
}

impl Bypasses {
    fn rows(&self, slot: u32, answer: u32) -> impl Iterator<Item = (OutboundKey, u32)> + '_ {
        self.outbound.iter().filter(move |(_, value)| **value == answer).map(
            move |((address, port), value)| {
                (OutboundKey { slot, address: *address, port: *port, _padding: 0 }, *value)
            },
        )
    }

    fn inbound_rows(&self, slot: u32, answer: u32) -> impl Iterator<Item = (InboundKey, u32)> + '_ {
        self.inbound
            .iter()
            .filter(move |(_, value)| **value == answer)
            .map(move |(port, value)| (InboundKey { slot, port: u32::from(*port) }, *value))
    }

    /// Whether a direct connection of the workload's own to `address` conforms.
    pub fn allows_outbound(&self, address: IpAddr, port: u16) -> Option<bool> {
        let address = Address::from(address);
        let answer =
            self.outbound.get(&(address, port)).or_else(|| self.outbound.get(&(address, 0)))?;
        Some(*answer == bypass::UNTOUCHED)
    }

    /// Whether a connection straight to the application's `port` conforms.
    pub fn allows_inbound(&self, port: u16) -> bool {
        self.inbound.get(&port).map_or(self.inbound_untouched, |value| *value == bypass::UNTOUCHED)
    }
}
