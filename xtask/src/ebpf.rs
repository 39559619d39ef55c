//! The kernel object: rebuilt when its sources, the pinned tools or the compiler change.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    shell::{run, say},
    toolchain::Toolchain,
    workspace::Workspace,
};

/// What the object is made of, from the root of the source tree.
const SOURCES: &[&str] = &["mtls-ebpf", "mtls-common"];

/// Makes sure that the object is there and is that of these sources. Returns its path.
///
/// # Errors
/// When no toolchain can be had, or the sources do not compile.
pub fn build(workspace: &Workspace) -> Result<PathBuf> {
    let object = workspace.ebpf_object();
    let stamp = object.with_extension("stamp");
    let sources = fingerprint(workspace.root())?;
    let stamped = fs::read_to_string(&stamp).unwrap_or_default();
    let current = |toolchain: &str| object.exists() && stamped == stamp_text(sources, toolchain);

    if Toolchain::ready(workspace).is_some_and(|ready| current(&ready.id)) {
        return Ok(object);
    }
    let toolchain = Toolchain::find_or_install(workspace)?;
    if current(&toolchain.id) {
        return Ok(object);
    }
    say(format_args!("building the kernel object with {}", toolchain.name));
    let target = workspace.root().join("target/ebpf/build");
    let mut cargo = toolchain.cargo(workspace, &workspace.root().join("mtls-ebpf"));
    cargo
        .args([
            "build",
            "--release",
            "-Zbuild-std=core",
            "--target",
            "bpfel-unknown-none",
            "--target-dir",
        ])
        .arg(&target);
    run(&mut cargo).context("the kernel programs do not build")?;

    // Put in place in one step: a daemon's build never sees half of it, nor an old stamp beside it.
    let built = target.join("bpfel-unknown-none/release/mtls-ebpf");
    let next = object.with_extension("new");
    fs::copy(&built, &next).with_context(|| format!("cannot copy {}", built.display()))?;
    let _ = fs::remove_file(&stamp);
    fs::rename(&next, &object)?;
    // The lock file may have been written just now, so the sources are read again.
    fs::write(&stamp, stamp_text(fingerprint(workspace.root())?, &toolchain.id))?;
    Ok(object)
}

fn stamp_text(sources: u64, toolchain: &str) -> String {
    format!("sources {sources:016x}\n{toolchain}\n")
}

/// A number for the contents of all sources. Contents, not times: a fresh clone or a switch of
/// branches and back is no change.
fn fingerprint(root: &Path) -> Result<u64> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        file.strip_prefix(root)?.hash(&mut hasher);
        fs::read(&file)
            .with_context(|| format!("cannot read {}", file.display()))?
            .hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                collect(&path, files)?;
            }
        } else {
            files.push(path);
        }
    }
    Ok(())
}
