//! `bpf-linker`, built from the crate registry into the cache: one folder for each pinned version and LLVM.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};

use super::LLVM;
use crate::{
    shell::{run, say},
    workspace::Workspace,
};

/// Where the linker's LLVM comes from.
#[derive(Clone, Copy)]
pub enum Variant {
    /// Linked to the distribution's `libLLVM`.
    DistributionLlvm,
    /// Loads the `libLLVM` that is inside a rustup toolchain. The last release that can.
    CompilersLlvm,
}

impl Variant {
    fn version(self) -> &'static str {
        match self {
            Self::DistributionLlvm => "0.13.0",
            Self::CompilersLlvm => "0.10.3",
        }
    }

    fn features(self) -> String {
        match self {
            Self::DistributionLlvm => format!("llvm-{LLVM}"),
            Self::CompilersLlvm => format!("rust-llvm-{LLVM}"),
        }
    }

    pub fn label(self) -> String {
        format!("bpf-linker-{}-{}", self.version(), self.features())
    }

    pub fn installed(self, workspace: &Workspace) -> Option<PathBuf> {
        let program = workspace.cache().join(self.label()).join("bin/bpf-linker");
        // Started, not only looked for: its LLVM may be gone from the system.
        crate::shell::output(Command::new(&program).arg("--version")).ok().map(|_| program)
    }

    /// # Errors
    /// When the build fails, for want of the registry or of a C++ library.
    pub fn install(self, workspace: &Workspace) -> Result<PathBuf> {
        if let Some(program) = self.installed(workspace) {
            return Ok(program);
        }
        say(format_args!("building {} (once, some two minutes)", self.label()));
        let mut cargo = workspace.cargo();
        cargo
            .args(["install", "bpf-linker", "--locked", "--force", "--quiet"])
            .args([
                "--version",
                self.version(),
                "--no-default-features",
                "--features",
                &self.features(),
            ])
            .arg("--root")
            .arg(workspace.cache().join(self.label()))
            .arg("--target-dir")
            .arg(workspace.cache().join("bpf-linker-build"))
            .env("LLVM_PREFIX", format!("/usr/lib/llvm-{LLVM}"))
            // A program that is run for a second is not worth the time of optimising it.
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
            .env("CARGO_PROFILE_RELEASE_LTO", "false")
            .env_remove("RUSTFLAGS");
        run(&mut cargo)?;
        let _ = std::fs::remove_dir_all(workspace.cache().join("bpf-linker-build"));
        self.installed(workspace).context("bpf-linker was built, but does not start")
    }
}
