//! The eBPF object: where it comes from, its ABI, its programs.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData, MapError};
use aya::programs::{CgroupSockAddr, Program, ProgramError, SkLookup, SockOps};
use aya::{Ebpf, EbpfError, EbpfLoader};
use mtls_common::names::ABI_VERSION;

use super::{BpfError, Features};

static EMBEDDED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mtls-ebpf.o"));

/// Overrides the embedded object, for development.
const OVERRIDE: &str = "MTLS_EBPF_OBJECT";

/// Every map of the object that is pinned, under its own name. `ABI` is not: it is to be the
/// object's own, not what an earlier object left.
pub const MAPS: &[&str] = &[
    "ENROLLED",
    "CGROUPS",
    "HOST_PORTS",
    "WORKLOADS",
    "OWN_ADDRESSES",
    "OUTBOUND",
    "MESH_ADDRESSES",
    "MESH_RANGES",
    "INBOUND",
    "LISTENERS",
    "FLOWS",
    "APPLICATION_LEGS",
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
/// The one for the host's own, where workloads are cgroups.
pub const HOST_PROGRAM: &str = "mtls_host";

/// Whether a namespace program is one of ours, by its name.
pub fn is_lookup_program(name: &str) -> bool {
    name == LOOKUP_PROGRAM || name == HOST_PROGRAM
}

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
/// shared. `slot` is written into the namespace program, `features` into those that use them.
pub fn load(bytes: &[u8], maps: &Path, slot: u32, features: Features) -> Result<Ebpf, BpfError> {
    let mut loader = EbpfLoader::new();
    for name in MAPS {
        loader.map_pin_path(name, maps.join(name));
    }
    let has_ingress_ifindex = u32::from(features.ingress_ifindex);
    let has_cgroup_id = u32::from(features.cgroup_id);
    loader.override_global("SLOT", &slot, true);
    loader.override_global("HAS_INGRESS_IFINDEX", &has_ingress_ifindex, true);
    loader.override_global("HAS_CGROUP_ID", &has_cgroup_id, true);
    loader.load(bytes).map_err(unloadable)
}

/// The same, with every program passed to the verifier.
pub fn load_verified(
    bytes: &[u8],
    maps: &Path,
    slot: u32,
    features: Features,
) -> Result<Ebpf, BpfError> {
    let mut ebpf = load(bytes, maps, slot, features)?;
    check_abi(&ebpf)?;
    for program in CGROUP_PROGRAMS {
        verify(&mut ebpf, program)?;
    }
    verify_lookup(&mut ebpf, LOOKUP_PROGRAM)?;
    verify_lookup(&mut ebpf, HOST_PROGRAM)?;
    Ok(ebpf)
}

/// Maps whose kind not every kernel has: a map that cannot be made comes before every program.
fn unloadable(error: EbpfError) -> BpfError {
    let EbpfError::MapError(MapError::CreateError { name, io_error }) = &error else {
        return error.into();
    };
    let (feature, since) = match name.as_str() {
        "AYA_LOGS" => ("ring buffers", "5.8"),
        "OWN_SOCKETS" | "LISTENER_TAG" | "CLIENT_DESTINATION" | "ACCEPTED_DESTINATION" => {
            ("socket storage", "5.4")
        }
        _ => return error.into(),
    };
    if io_error.raw_os_error() != Some(libc::EINVAL) {
        return error.into();
    }
    let cause = format!("It refuses map {name}: {io_error}");
    BpfError::Missing { feature, since, option: String::new(), cause }
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
    result.map_err(|error| refused(wanted.name, wanted.feature, wanted.since, error))
}

/// A namespace program of a freshly loaded object.
pub fn verify_lookup<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SkLookup, BpfError> {
    let Program::SkLookup(program) = program(ebpf, name)? else {
        return Err(BpfError::Incomplete { what: "sk_lookup program", name: name.into() });
    };
    program.load().map_err(|error| refused(name, "sk_lookup programs", "5.9", error))?;
    Ok(program)
}

pub fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, BpfError> {
    ebpf.program_mut(name)
        .ok_or_else(|| BpfError::Incomplete { what: "program", name: name.into() })
}

fn refused(
    program: &str,
    feature: &'static str,
    since: &'static str,
    error: ProgramError,
) -> BpfError {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            tracing::debug!(program, error = %io_error, "the verifier's log:\n{log}");
            classify(program, feature, since, io_error, &log)
        }
        error => BpfError::Program { program: program.into(), error },
    }
}

/// A refused program tells of a missing feature only by errors that say so. Whatever else the kernel
/// has against it is no reason to look for a newer one.
fn classify(
    program: &str,
    feature: &'static str,
    since: &'static str,
    error: io::Error,
    log: &str,
) -> BpfError {
    let end = end_of(log);
    if !lacks_feature(&error, log) {
        return BpfError::Refused { program: program.into(), error, log: end };
    }
    let (feature, since) = if lacks_interface(program, log) {
        INTERFACE
    } else if lacks_cgroup_id(log) {
        CGROUP_ID
    } else {
        (feature, since)
    };
    let cause = format!("It refuses program {program}: {error}{end}");
    BpfError::Missing { feature, since, option: String::new(), cause }
}

fn lacks_feature(error: &io::Error, log: &str) -> bool {
    let speaks =
        || ["unknown func", "cannot use helper", CONTEXT].iter().any(|words| log.contains(words));
    match error.raw_os_error() {
        // Program types and attach points that it does not know: it has not even begun to verify.
        Some(libc::EINVAL) if log.trim().is_empty() => true,
        // Mostly an object's fault: it jumps or reads where it may not.
        Some(libc::EINVAL | libc::EACCES) => speaks(),
        _ => false,
    }
}

/// How the verifier refuses a field of the context, which is also how one that is not there yet looks.
const CONTEXT: &str = "invalid bpf_context access";

/// sk_lookup programs had no `ingress_ifindex` at first. The daemon can do without.
pub const INTERFACE: (&str, &str) = ("the interface of arrival in sk_lookup programs", "5.17");

/// Nor had connect programs the current task's cgroup. The daemon can do without, its host's workloads
/// cannot.
pub const CGROUP_ID: (&str, &str) = ("the current cgroup in connect hooks", "5.7");

/// Its log ends with the helper that it does not know.
fn lacks_cgroup_id(log: &str) -> bool {
    let unknown = |line: &&str| {
        line.contains("bpf_get_current_ancestor_cgroup_id")
            && (line.contains("unknown func") || line.contains("cannot use helper"))
    };
    log.lines().any(|line| unknown(&line))
}

fn lacks_interface(program: &str, log: &str) -> bool {
    program == LOOKUP_PROGRAM && log.contains(CONTEXT)
}

/// The last lines of the verifier's log, each on a line of its own. The log of a large program has
/// thousands.
fn end_of(log: &str) -> String {
    const LINES: usize = 5;
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].iter().map(|line| format!("\n  {line}")).collect()
}

/// Opens a pinned map.
pub fn pinned(maps: &Path, name: &'static str) -> Result<MapData, BpfError> {
    MapData::from_pin(maps.join(name)).map_err(|error| BpfError::Map { map: name, error })
}

#[cfg(test)]
mod tests {
    use super::super::error::ENOTSUPP;
    use super::*;

    /// What the program `name` is told to be, refused with `errno` and this log.
    fn check(name: &str, errno: i32, log: &str, expected: Result<&str, ()>) {
        let error = io::Error::from_raw_os_error(errno);
        let found = classify(name, "a hook", "5.8", error, log);
        let missing = match &found {
            BpfError::Missing { feature, .. } => Ok(*feature),
            _ => Err(()),
        };
        assert_eq!(missing, expected, "{errno} {log:?}: {found}");
        assert_eq!(found.is_kernel(), expected.is_ok());
    }

    /// Loads for real, so it needs what the daemon needs.
    #[test]
    fn an_object_of_another_abi_is_refused_with_both_versions() {
        let load = |abi: u32| {
            let mut loader = EbpfLoader::new();
            loader.override_global("SLOT", &0_u32, true).map_max_entries("ABI", abi);
            loader.load(EMBEDDED).unwrap()
        };
        check_abi(&load(ABI_VERSION)).unwrap();
        let refused = check_abi(&load(ABI_VERSION + 1)).unwrap_err();
        assert!(matches!(refused, BpfError::Abi { object, daemon }
            if object == ABI_VERSION + 1 && daemon == ABI_VERSION));
    }

    #[test]
    fn only_errors_that_speak_of_features_are_missing_features() {
        let unknown =
            "12: (85) call bpf_get_netns_cookie#122\nunknown func bpf_get_netns_cookie#122\n";
        let newer = "program of this type cannot use helper bpf_get_netns_cookie#122\n";
        check("p", libc::EINVAL, "", Ok("a hook"));
        check("p", libc::EINVAL, unknown, Ok("a hook"));
        check("p", libc::EACCES, unknown, Ok("a hook"));
        check("p", libc::EACCES, newer, Ok("a hook"));
        check("p", libc::EINVAL, "unreachable insn 12\n", Err(()));
        check("p", ENOTSUPP, "processed 900 insns (limit 1000000)\n", Err(()));
        check("p", libc::EACCES, "R1 invalid mem access 'scalar'\n", Err(()));
        check("p", libc::EACCES, "", Err(()));
        // The capabilities are there by then.
        check("p", libc::EPERM, "", Err(()));
        check("p", libc::EPERM, unknown, Err(()));
        check("p", libc::ENOMEM, "", Err(()));
        check("p", libc::E2BIG, "BPF program is too large. Processed 1000001 insn\n", Err(()));
    }

    #[test]
    fn a_kind_of_map_that_cannot_be_made_is_a_missing_feature() {
        let refused = |name: &str, errno: i32| {
            let io_error = io::Error::from_raw_os_error(errno);
            let error = MapError::CreateError { name: name.to_owned(), io_error };
            unloadable(EbpfError::MapError(error))
        };
        for (map, feature) in [("AYA_LOGS", "ring buffers"), ("LISTENER_TAG", "socket storage")] {
            let missing = refused(map, libc::EINVAL);
            assert!(missing.is_kernel() && missing.to_string().contains(feature), "{missing}");
            assert!(!refused(map, libc::ENOMEM).is_kernel());
        }
        assert!(!refused("FLOWS", libc::EINVAL).is_kernel());
    }

    #[test]
    fn a_missing_cgroup_helper_is_told_from_the_others() {
        let name = "bpf_get_current_ancestor_cgroup_id#123";
        for said in ["unknown func", "program of this type cannot use helper"] {
            check("p", libc::EINVAL, &format!("{said} {name}\n"), Ok(CGROUP_ID.0));
        }
        // A call that was passed is in the log as well.
        let log = format!("9: (85) call {name}\nunknown func bpf_get_netns_cookie#122\n");
        check("p", libc::EINVAL, &log, Ok("a hook"));
    }

    #[test]
    fn a_missing_field_of_the_context_is_a_missing_feature() {
        let log = "61: (61) r2 = *(u32 *)(r6 +64)\ninvalid bpf_context access off=64 size=4\n";
        check(
            LOOKUP_PROGRAM,
            libc::EACCES,
            log,
            Ok("the interface of arrival in sk_lookup programs"),
        );
        check("p", libc::EACCES, log, Ok("a hook"));
    }

    #[test]
    fn a_message_has_the_end_of_the_log_and_no_more() {
        let log: String = (0..5000).map(|line| format!("line {line};\n")).collect();
        let log = log + "unknown func bpf_new#300\n";
        for errno in [libc::EINVAL, libc::EACCES, libc::E2BIG] {
            let error = io::Error::from_raw_os_error(errno);
            let text = classify("mtls_connect4", "a hook", "5.8", error, &log).to_string();
            assert_eq!(text.lines().count(), 6, "{text}");
            assert!(text.contains("mtls_connect4") && text.contains(&format!("os error {errno}")));
            assert!(
                text.contains("line 4996;") && text.ends_with("unknown func bpf_new#300"),
                "{text}"
            );
            assert!(!text.contains("line 4995;"), "{text}");
        }
    }

    #[test]
    fn a_message_names_the_feature_and_since_when_kernels_have_it() {
        let error = io::Error::from_raw_os_error(libc::EINVAL);
        let text = classify("mtls_inbound", "sk_lookup programs", "5.9", error, "").to_string();
        assert!(text.contains("lacks sk_lookup programs (Linux 5.9 and later"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}
