//! A compiler and a linker for the kernel object.
//!
//! rustc writes LLVM bitcode, `bpf-linker` reads it: both need the same LLVM generation, and `core`
//! is compiled from source. Two ways lead there, in this order of preference:
//! 1. a rustup toolchain that has `rust-src` already ([`rustup`]);
//! 2. the distribution's own compiler, sources and LLVM ([`distribution`]), which needs no server but
//!    the distribution's and the crate registry;
//! 3. a nightly that rustup fetches.

mod distribution;
mod linker;
mod rustup;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    shell::{output, say},
    workspace::Workspace,
};

/// The LLVM generation of every pinned tool here.
pub const LLVM: u32 = 22;

/// A toolchain that was seen to work.
pub struct Toolchain {
    /// For people.
    pub name: String,
    /// Changes whenever the object could: the compiler's full version and the linker's.
    pub id: String,
    compiler: Compiler,
    linker: PathBuf,
}

enum Compiler {
    /// A rustup toolchain, by name, and its sysroot.
    Rustup { toolchain: String, sysroot: PathBuf },
    /// A rustc outside rustup; the workspace's cargo drives it.
    Path(PathBuf),
}

impl Toolchain {
    /// What is ready to use, without installing anything.
    pub fn ready(workspace: &Workspace) -> Option<Self> {
        rustup::ready(workspace).or_else(|| distribution::ready(workspace))
    }

    /// What is ready to use; else installs one.
    ///
    /// # Errors
    /// When none can be had: one paragraph with everything that was tried, and what to do.
    pub fn find_or_install(workspace: &Workspace) -> Result<Self> {
        if let Some(ready) = Self::ready(workspace) {
            return Ok(ready);
        }
        type Install = fn(&Workspace) -> Result<Toolchain>;
        let ways: [(&str, Install); 3] = [
            ("an installed rustup toolchain", rustup::install_linker),
            ("the distribution's rustc-web and LLVM", distribution::install),
            ("a nightly from rustup", rustup::install),
        ];
        let mut tried = Vec::new();
        for (name, install) in ways {
            match install(workspace) {
                Ok(toolchain) => return Ok(toolchain),
                Err(error) => {
                    say(format_args!("eBPF toolchain: {name}: {error:#}"));
                    tried.push(format!("{name} ({error:#})"));
                }
            }
        }
        bail!(
            "no toolchain can build the kernel object. Tried: {}. Either make Debian's packages \
             {} installable (Debian 12 with its security updates has them), or run `rustup toolchain \
             install {} --profile minimal --component rust-src` on a machine that reaches rustup's \
             server; then start this again",
            tried.join("; "),
            crate::packages::EBPF.iter().map(|package| package.name).collect::<Vec<_>>().join(" "),
            rustup::NIGHTLY,
        );
    }

    /// `cargo`, set up so that it compiles for the kernel in the given folder.
    pub fn cargo(&self, workspace: &Workspace, folder: &Path) -> Command {
        let mut cargo = match &self.compiler {
            Compiler::Rustup { toolchain, .. } => {
                let mut rustup = Command::new("rustup");
                rustup.args(["run", toolchain, "cargo"]);
                rustup
            }
            Compiler::Path(_) => workspace.cargo(),
        };
        self.prepare(&mut cargo);
        if let Compiler::Path(rustc) = &self.compiler {
            cargo.env("RUSTC", rustc);
        }
        cargo.current_dir(folder);
        cargo.env("CARGO_ENCODED_RUSTFLAGS", self.rust_flags().join("\x1f"));
        cargo
    }

    fn rust_flags(&self) -> Vec<String> {
        vec![
            // The layout of registers that kprobes and the like read; aya-ebpf refuses to guess.
            format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
            // BTF is made from debug information: the kernel wants it for socket storage maps.
            "-Cdebuginfo=2".to_owned(),
            format!("-Clinker={}", self.linker.display()),
            "-Clink-arg=--btf".to_owned(),
            // Said aloud, so that a misspelt `cfg` is still a warning.
            format!("--check-cfg=cfg(bpf_target_arch,values(\"{}\"))", std::env::consts::ARCH),
        ]
    }

    /// Compiles and links a program of three lines: says at once, and briefly, whether this
    /// compiler's bitcode is one that this linker reads.
    fn probe(self, workspace: &Workspace) -> Result<Self> {
        let folder = workspace.cache().join("probe");
        fs::create_dir_all(&folder)?;
        let source = folder.join("probe.rs");
        fs::write(
            &source,
            "#![no_core]\n#![no_main]\n#![feature(no_core, lang_items)]\n#![allow(internal_features)]\n\
             #[lang = \"pointee_sized\"] pub trait PointeeSized {}\n\
             #[lang = \"meta_sized\"] pub trait MetaSized: PointeeSized {}\n\
             #[lang = \"sized\"] pub trait Sized: MetaSized {}\n\
             #[unsafe(no_mangle)] #[unsafe(link_section = \"cgroup/sock\")] pub extern \"C\" fn probe() {}\n",
        )?;
        let object = folder.join(format!("probe-{}.o", std::process::id()));
        let mut rustc = match &self.compiler {
            Compiler::Rustup { toolchain, .. } => {
                let mut rustup = Command::new("rustup");
                rustup.args(["run", toolchain, "rustc"]);
                rustup
            }
            Compiler::Path(rustc) => Command::new(rustc),
        };
        self.prepare(&mut rustc);
        rustc
            .args([
                "--edition=2024",
                "--target=bpfel-unknown-none",
                "--crate-type=bin",
                "-Cpanic=abort",
                "-Copt-level=3",
            ])
            .args(self.rust_flags())
            .arg("-o")
            .arg(&object)
            .arg(&source);
        let result = output(&mut rustc);
        let made = fs::remove_file(&object).is_ok();
        result.context("a trial program does not compile and link")?;
        if !made {
            bail!("a trial program compiles, but {} wrote no object", self.linker.display());
        }
        Ok(self)
    }

    fn prepare(&self, command: &mut Command) {
        // `-Zbuild-std` and the trial program need a nightly, or this.
        command.env("RUSTC_BOOTSTRAP", "1");
        for name in [
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "RUSTUP_TOOLCHAIN",
        ] {
            command.env_remove(name);
        }
        if let Compiler::Rustup { sysroot, .. } = &self.compiler {
            // This linker has no LLVM of its own: it loads the compiler's.
            command.env("LD_LIBRARY_PATH", sysroot.join("lib"));
        }
    }
}

/// The LLVM generation in `rustc -vV`.
fn llvm_of(version: &str) -> Option<u32> {
    let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    llvm.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::llvm_of;

    #[test]
    fn the_llvm_generation_is_read_from_the_compilers_version() {
        assert_eq!(llvm_of("rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(llvm_of("rustc 1.96.0\n"), None);
    }
}
