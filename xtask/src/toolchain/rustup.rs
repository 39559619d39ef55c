//! A rustup toolchain with `rust-src`. Its LLVM is inside it, and the linker variant for it loads
//! that one.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use super::{Compiler, LLVM, Toolchain, linker, llvm_of};
use crate::{
    shell::{has, output, run, say},
    workspace::Workspace,
};

/// What gets fetched when nothing else is there: a nightly of the LLVM generation that everything
/// here is pinned to.
pub const NIGHTLY: &str = "nightly-2026-05-20";

struct Candidate {
    name: String,
    sysroot: PathBuf,
    version: String,
}

pub fn ready(workspace: &Workspace) -> Option<Toolchain> {
    let linker = linker::Variant::CompilersLlvm.installed(workspace)?;
    find().ok().map(|candidate| toolchain(candidate, linker))
}

/// Takes a toolchain that is installed, and builds the linker for it.
///
/// # Errors
/// When no installed toolchain will do, or the linker cannot be built.
pub fn install_linker(workspace: &Workspace) -> Result<Toolchain> {
    let candidate = find()?;
    let linker = linker::Variant::CompilersLlvm.install(workspace)?;
    toolchain(candidate, linker).probe(workspace)
}

/// Fetches the pinned nightly, and builds the linker for it.
///
/// # Errors
/// When there is no rustup, or its server cannot be reached.
pub fn install(workspace: &Workspace) -> Result<Toolchain> {
    if !has("rustup") {
        bail!("there is no rustup");
    }
    say(format_args!("installing the toolchain {NIGHTLY} with rust-src, for the kernel object"));
    run(Command::new("rustup")
        .args([
            "toolchain",
            "install",
            NIGHTLY,
            "--profile",
            "minimal",
            "--component",
            "rust-src",
            "--no-self-update",
        ])
        .env_remove("RUSTUP_TOOLCHAIN"))?;
    install_linker(workspace)
}

fn toolchain(candidate: Candidate, linker: PathBuf) -> Toolchain {
    Toolchain {
        name: format!("rustup's {}", candidate.name),
        id: format!("{}{}", candidate.version, linker::Variant::CompilersLlvm.label()),
        compiler: Compiler::Rustup { toolchain: candidate.name, sysroot: candidate.sysroot },
        linker,
    }
}

fn find() -> Result<Candidate> {
    if !has("rustup") {
        bail!("there is no rustup");
    }
    let list = output(Command::new("rustup").args(["toolchain", "list"]))?;
    let mut nightlies = nightlies(&list);
    if nightlies.is_empty() {
        bail!("rustup has no nightly toolchain");
    }
    // The pinned one before any other.
    nightlies.sort_by_key(|name| !name.starts_with(NIGHTLY));
    let mut refused = Vec::new();
    for name in nightlies {
        match look_at(name) {
            Ok(candidate) => return Ok(candidate),
            Err(error) => refused.push(format!("{name}: {error:#}")),
        }
    }
    bail!("{}", refused.join(", "))
}

/// Of a list of toolchains, a line each: the name, and what rustup has to say of it.
fn nightlies(list: &str) -> Vec<&str> {
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| name.starts_with("nightly")).collect()
}

fn look_at(name: &str) -> Result<Candidate> {
    let rustc = |argument: &[&str]| {
        output(Command::new("rustup").args(["run", name, "rustc"]).args(argument))
    };
    let sysroot = PathBuf::from(rustc(&["--print", "sysroot"])?.trim());
    if !sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists() {
        bail!("has no rust-src");
    }
    let version = rustc(&["-vV"])?;
    let generation = llvm_of(&version).context("does not say which LLVM it uses")?;
    if generation != LLVM {
        bail!("uses LLVM {generation}, not {LLVM}");
    }
    Ok(Candidate { name: name.to_owned(), sysroot, version })
}

#[cfg(test)]
mod tests {
    use super::nightlies;

    #[test]
    fn nightlies_are_found_in_what_rustup_lists() {
        let list = "stable-x86_64-unknown-linux-gnu (active, default)\n\
                    nightly-2026-03-01-x86_64-unknown-linux-gnu\n\
                    nightly-x86_64-unknown-linux-gnu (override)\n";
        let names =
            ["nightly-2026-03-01-x86_64-unknown-linux-gnu", "nightly-x86_64-unknown-linux-gnu"];
        assert_eq!(nightlies(list), names);
        assert!(nightlies("no installed toolchains\n").is_empty());
    }
}
