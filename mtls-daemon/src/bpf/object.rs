//! The eBPF object: where it comes from, its ABI, its programs.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData};
use aya::programs::{CgroupSockAddr, Program, ProgramError, SkLookup, SockOps};
use aya::{Ebpf, EbpfLoader};
use mtls_common::names::ABI_VERSION;

use super::BpfError;

static EMBEDDED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mtls-ebpf.o"));

/// Overrides the embedded object, for development.
const OVERRIDE: &str = "MTLS_EBPF_OBJECT";

/// Every map of the object that is pinned, under its own name. `ABI` is not: it is to be the
/// object's own, not what an earlier object left.
pub const MAPS: &[&str] = &[
    "ENROLLED",
    "WORKLOADS",
    "OWN_ADDRESSES",
    "OUTBOUND",
    "MESH_ADDRESSES",
    "MESH_RANGES",
    "INBOUND",
    "LISTENERS",
    "FLOWS",
    "OWN_SOCKETS",
    "LISTENER_TAG",
    "CLIENT_DESTINATION",
    "ACCEPTED_DESTINATION",
    "DECISIONS",
    "AYA_LOGS",
];

/// A program that is attached to the cgroup root, and the kernel that brought what it needs.
pub struct CgroupProgram {
    pub name: &'static str,
    pub feature: &'static str,
    pub since: &'static str,
}

/// In the order of attachment: connect last, so that a redirected connection always finds the
/// programs that carry it on.
pub const CGROUP_PROGRAMS: &[CgroupProgram] = &[
    CgroupProgram {
        name: "mtls_established",
        feature: "the namespace cookie in sock_ops programs",
        since: "5.15",
    },
    CgroupProgram { name: "mtls_peername4", feature: "getpeername hooks", since: "5.8" },
    CgroupProgram { name: "mtls_peername6", feature: "getpeername hooks", since: "5.8" },
    CgroupProgram { name: "mtls_sockname4", feature: "getsockname hooks", since: "5.8" },
    CgroupProgram { name: "mtls_sockname6", feature: "getsockname hooks", since: "5.8" },
    CgroupProgram {
        name: "mtls_connect4",
        feature: "socket storage and the namespace cookie in connect hooks",
        since: "5.8",
    },
    CgroupProgram {
        name: "mtls_connect6",
        feature: "socket storage and the namespace cookie in connect hooks",
        since: "5.8",
    },
];

/// The program that is attached to each enrolled namespace.
pub const LOOKUP_PROGRAM: &str = "mtls_inbound";

/// The bytes of the object.
pub fn bytes() -> Result<Cow<'static, [u8]>, BpfError> {
    match std::env::var_os(OVERRIDE) {
        None => Ok(Cow::Borrowed(EMBEDDED)),
        Some(path) => {
            let path = PathBuf::from(path);
            match std::fs::read(&path) {
                Ok(bytes) => Ok(Cow::Owned(bytes)),
                Err(error) => Err(BpfError::Object { path, error }),
            }
        }
    }
}

/// Loads the object with its maps pinned below `maps`; maps that are pinned there already are
/// shared. `slot` is written into the namespace program.
pub fn load(bytes: &[u8], maps: &Path, slot: u32) -> Result<Ebpf, BpfError> {
    let mut loader = EbpfLoader::new();
    for name in MAPS {
        loader.map_pin_path(name, maps.join(name));
    }
    loader.override_global("SLOT", &slot, true);
    Ok(loader.load(bytes)?)
}

/// Refuses an object of another ABI: its size of the map `ABI` is its version.
pub fn check_abi(ebpf: &Ebpf) -> Result<(), BpfError> {
    let map =
        ebpf.map("ABI").ok_or_else(|| BpfError::Incomplete { what: "map", name: "ABI".into() })?;
    let Map::Array(data) = map else {
        return Err(BpfError::Incomplete { what: "array", name: "ABI".into() });
    };
    let info = data.info().map_err(|error| BpfError::Map { map: "ABI", error })?;
    let object = info.max_entries();
    if object == ABI_VERSION { Ok(()) } else { Err(BpfError::Abi { object, daemon: ABI_VERSION }) }
}

/// Passes one program to the kernel's verifier.
pub fn verify(ebpf: &mut Ebpf, wanted: &CgroupProgram) -> Result<(), BpfError> {
    let result = match program(ebpf, wanted.name)? {
        Program::SockOps(program) => SockOps::load(program),
        Program::CgroupSockAddr(program) => CgroupSockAddr::load(program),
        _ => return Err(BpfError::Incomplete { what: "cgroup program", name: wanted.name.into() }),
    };
    result.map_err(|error| missing(wanted.name, wanted.feature, wanted.since, error))
}

/// The namespace program of a freshly loaded object.
pub fn verify_lookup(ebpf: &mut Ebpf) -> Result<&mut SkLookup, BpfError> {
    let Program::SkLookup(program) = program(ebpf, LOOKUP_PROGRAM)? else {
        return Err(BpfError::Incomplete {
            what: "sk_lookup program",
            name: LOOKUP_PROGRAM.into(),
        });
    };
    program.load().map_err(|error| missing(LOOKUP_PROGRAM, "sk_lookup programs", "5.9", error))?;
    Ok(program)
}

pub fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, BpfError> {
    ebpf.program_mut(name)
        .ok_or_else(|| BpfError::Incomplete { what: "program", name: name.into() })
}

/// A program that a kernel refuses lacks its feature there, unless the object is at fault: the
/// verifier's own words are kept either way.
fn missing(
    program: &str,
    feature: &'static str,
    since: &'static str,
    error: ProgramError,
) -> BpfError {
    match &error {
        ProgramError::LoadError { io_error, .. } => BpfError::Missing {
            feature,
            since,
            option: String::new(),
            cause: format!("{program} is refused ({io_error}); {error}"),
        },
        _ => BpfError::Program { program: program.into(), error },
    }
}

/// Opens a pinned map.
pub fn pinned(maps: &Path, name: &'static str) -> Result<MapData, BpfError> {
    MapData::from_pin(maps.join(name)).map_err(|error| BpfError::Map { map: name, error })
}
