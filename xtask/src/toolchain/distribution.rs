//! Debian's `rustc-web`: the compiler that the distribution keeps fresh for its browsers, and that
//! uses an LLVM which the distribution ships too.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{Compiler, LLVM, Toolchain, linker, llvm_of};
use crate::{
    packages,
    shell::{output, say},
    workspace::Workspace,
};

const RUSTC: &str = "/usr/bin/rustc";
const CORE: &str = "/usr/lib/rustlib/src/rust/library/core/src/lib.rs";

pub fn ready(workspace: &Workspace) -> Option<Toolchain> {
    let linker = linker::Variant::DistributionLlvm.installed(workspace)?;
    compiler().ok().map(|version| toolchain(&version, linker))
}

/// Installs the packages and builds the linker.
///
/// # Errors
/// When the distribution lacks a package or has another LLVM generation, or an installation fails.
pub fn install(workspace: &Workspace) -> Result<Toolchain> {
    let version = match compiler() {
        Ok(version) => version,
        Err(_) => {
            let llvm = format!("llvm-{LLVM}-dev");
            if packages::candidate(&llvm).is_none() {
                say("refreshing the package lists");
                packages::refresh()?;
            }
            if packages::candidate(&llvm).is_none() || packages::candidate("rustc-web").is_none() {
                bail!("this distribution has no rustc-web with {llvm}");
            }
            packages::ensure(packages::EBPF)?;
            compiler()?
        }
    };
    packages::ensure(packages::EBPF)?;
    let linker = linker::Variant::DistributionLlvm.install(workspace)?;
    toolchain(&version, linker).probe(workspace)
}

fn toolchain(version: &str, linker: PathBuf) -> Toolchain {
    Toolchain {
        name: format!("{} of the distribution", version.lines().next().unwrap_or("rustc")),
        id: format!("{version}{}", linker::Variant::DistributionLlvm.label()),
        compiler: Compiler::Path(PathBuf::from(RUSTC)),
        linker,
    }
}

/// The compiler's version, if everything that comes with it is there.
fn compiler() -> Result<String> {
    let version =
        output(Command::new(RUSTC).arg("-vV")).context("no compiler of the distribution")?;
    let generation = llvm_of(&version);
    if generation != Some(LLVM) {
        bail!(
            "{RUSTC} uses LLVM {}, and LLVM {LLVM} is needed",
            generation.map_or_else(|| "?".to_owned(), |it| it.to_string())
        );
    }
    if !Path::new(CORE).exists() {
        bail!("{RUSTC} is there, but the sources of `core` ({CORE}, package rust-web-src) are not");
    }
    Ok(version)
}
