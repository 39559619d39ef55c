//! Packages of the distribution (Debian, Ubuntu): the one list, and how they get installed.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{has, output, run, say};

/// A package and what it is needed for; the reason is shown when it gets installed.
pub struct Package {
    pub name: &'static str,
    pub why: &'static str,
}

const fn package(name: &'static str, why: &'static str) -> Package {
    Package { name, why }
}

/// To compile the workspace.
pub const BUILD: &[Package] = &[
    package("gcc", "links Rust programs and compiles the TLS library's C and assembly"),
    package("libc6-dev", "headers and start files for the same"),
];

/// To build the kernel object with the distribution's own compiler.
pub const EBPF: &[Package] = &[
    package("rustc-web", "a Rust compiler whose LLVM the distribution ships as well"),
    package("rust-web-src", "the sources of `core`, compiled for the kernel"),
    package("llvm-22-dev", "the LLVM that bpf-linker is built on"),
    package("libstdc++-12-dev", "LLVM is C++; bpf-linker links to it"),
    package("gcc", "links bpf-linker"),
    package("libc6-dev", "start files for the same"),
];

/// For the tests and the demo, which run real clients on real namespaces.
pub const TEST: &[Package] = &[
    package("curl", "the client of the demo and the tests"),
    package("iproute2", "network namespaces, rules, routes, ss"),
    package("openssl", "a TLS peer that shares no code with the daemon"),
    package("util-linux", "nsenter, setpriv"),
    package("procps", "sysctl"),
];

/// For `vm`: the emulator, and a shell inside the guest.
pub const VM: &[Package] = &[
    package("qemu-system-x86", "runs the guests"),
    package("busybox-static", "a shell inside the guests"),
    package("xz-utils", "kernel modules are compressed"),
];

/// Installs the packages that are missing, and says which and why. Removes nothing.
///
/// # Errors
/// When there is no apt-get, no right to install, or apt-get fails.
pub fn ensure(packages: &[Package]) -> Result<()> {
    let missing: Vec<_> = packages.iter().filter(|package| !installed(package.name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.iter().map(|package| package.name).collect::<Vec<_>>();
    if !has("apt-get") {
        bail!(
            "these packages are missing and there is no apt-get to install them with: {} (the names \
             are Debian's; install their like by hand)",
            names.join(" ")
        );
    }
    for package in &missing {
        say(format_args!("installing {}: {}", package.name, package.why));
    }
    // The lists may be old or absent, as on a fresh container: only then are they fetched.
    if output(&mut apt_get(&names)?).is_ok() {
        return Ok(());
    }
    say("refreshing the package lists");
    refresh()?;
    run(&mut apt_get(&names)?).context("apt-get could not install what is missing")
}

/// Fetches the package lists anew.
///
/// # Errors
/// When apt-get fails.
pub fn refresh() -> Result<()> {
    let mut update = privileged("apt-get")?;
    update.args(["update", "-qq", "-o", "DPkg::Lock::Timeout=300"]);
    output(&mut update).map(drop).context("the package lists could not be fetched")
}

/// The version that an installation would pick now, if the distribution has the package.
pub fn candidate(name: &str) -> Option<String> {
    let policy =
        output(Command::new("apt-cache").args(["policy", name]).env("LC_ALL", "C")).ok()?;
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?.trim();
    (candidate != "(none)").then(|| candidate.to_owned())
}

pub fn installed(name: &str) -> bool {
    output(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", name]))
        .is_ok_and(|status| status == "installed")
}

fn apt_get(names: &[&str]) -> Result<Command> {
    let mut command = privileged("apt-get")?;
    command
        .args(["install", "--yes", "-qq", "--no-install-recommends", "--no-remove"])
        .args(["-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"])
        .args(names);
    Ok(command)
}

/// A command as root: directly, or through sudo.
fn privileged(program: &str) -> Result<Command> {
    let mut command = if crate::preflight::is_root() {
        Command::new(program)
    } else if has("sudo") {
        let mut sudo = Command::new("sudo");
        sudo.args(["DEBIAN_FRONTEND=noninteractive", program]);
        sudo
    } else {
        bail!("{program} needs root, and there is no sudo: run this as root");
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    Ok(command)
}
