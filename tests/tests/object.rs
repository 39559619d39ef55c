//! A daemon that cannot have its programs in the kernel says why, and leaves nothing there.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use mtls_tests::{DaemonSpec, World, leftovers};

fn stand() -> Result<World> {
    let world = World::without_daemons(&[])?;
    world.mesh.write()?;
    Ok(world)
}

/// Where an object of the test's own lies, and the daemon that is to load it.
fn with_object(world: &World) -> (PathBuf, DaemonSpec) {
    let path = world.bed.directory.join("object.o");
    let variable = format!("MTLS_EBPF_OBJECT={}", path.display());
    (path, DaemonSpec::new(&world.bed, 0).under(&["env", &variable]))
}

/// Refuses with `code`, and says all of `says` without panicking.
fn check_refused(spec: DaemonSpec, code: i32, says: &[&str]) -> Result<()> {
    let (status, words) = spec.refused()?;
    ensure!(status.code() == Some(code), "{status}, and not {code}: {words}");
    for word in says {
        ensure!(words.contains(word), "no {word:?} in: {words}");
    }
    ensure!(!words.contains("panicked"), "{words}");
    Ok(())
}

#[test]
fn an_object_that_is_none_is_refused_and_harms_no_later_daemon() -> Result<()> {
    let world = stand()?;
    let (path, spec) = with_object(&world);
    let name = path.to_string_lossy().into_owned();
    let missing = ["cannot read the eBPF object", &name, "No such file"];
    check_refused(spec.clone(), 1, &missing)?;
    for garbage in [Vec::new(), vec![0x5a; 65536], b"\x7fELF and no more".to_vec()] {
        std::fs::write(&path, &garbage)?;
        check_refused(spec.clone(), 1, &["eBPF object"])
            .with_context(|| format!("{} bytes", garbage.len()))?;
    }
    let daemon = DaemonSpec::new(&world.bed, 0).start()?;
    ensure!(daemon.status()?["ready"] == true);
    Ok(())
}

#[test]
fn a_refused_object_leaves_nothing_in_the_kernel() -> Result<()> {
    let world = stand()?;
    let (path, spec) = with_object(&world);
    for garbage in [None, Some("this is no object")] {
        if let Some(garbage) = garbage {
            std::fs::write(&path, garbage)?;
        }
        check_refused(spec.clone(), 1, &["eBPF object"])?;
        let left = leftovers::remains(&world.bed.prefix);
        let pins: Vec<_> = left.iter().filter(|what| what.starts_with("pins")).collect();
        ensure!(pins.is_empty(), "with {garbage:?} it left {pins:?}");
    }
    Ok(())
}

/// Starts a daemon without some capabilities, which must say what it lacks.
fn check_without(dropped: &str, named: &str) -> Result<()> {
    let world = stand()?;
    let bounding = format!("--bounding-set={dropped}");
    let spec = DaemonSpec::new(&world.bed, 0).under(&["setpriv", &bounding]);
    check_refused(spec, 1, &[named])
}

#[test]
fn without_any_capability_it_says_what_it_lacks() -> Result<()> {
    check_without("-all", "CAP_")
}

#[test]
fn without_cap_bpf_it_says_so() -> Result<()> {
    check_without("-bpf,-sys_admin", "CAP_BPF")
}

/// Ready, and unable to enrol anything, it would leave every workload in the clear.
#[test]
fn without_cap_net_admin_it_does_not_start() -> Result<()> {
    check_without("-net_admin", "CAP_NET_ADMIN")
}

/// It enters no namespace without it.
#[test]
fn without_cap_sys_admin_it_does_not_start() -> Result<()> {
    check_without("-sys_admin", "CAP_SYS_ADMIN")
}
