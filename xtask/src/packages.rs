//! Packages of the distribution (Debian, Ubuntu): the one list, and how they get installed.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::shell::{has, output, run, say};

/// A package, what shows that it is there, and what it is needed for: that is said when it gets
/// installed.
pub struct Package {
    pub name: &'static str,
    /// What older releases call it.
    formerly: &'static [&'static str],
    /// A program, or the path of a file. Looked for before dpkg is asked: what somebody installed by hand,
    /// or another distribution has, is as good.
    brings: &'static str,
    why: &'static str,
}

const fn package(name: &'static str, brings: &'static str, why: &'static str) -> Package {
    Package { name, formerly: &[], brings, why }
}

const fn formerly(formerly: &'static [&'static str], package: Package) -> Package {
    Package { formerly, ..package }
}

/// To compile the workspace.
pub const BUILD: &[Package] = &[
    package("gcc", "cc", "links Rust programs and compiles the TLS library's C and assembly"),
    package("libc6-dev", "/usr/include/stdlib.h", "headers and start files for the same"),
];

/// To build the kernel object with the distribution's own compiler.
pub const EBPF: &[Package] = &[
    package("rustc-web", "", "a Rust compiler whose LLVM the distribution ships as well"),
    package("rust-web-src", "", "the sources of `core`, compiled for the kernel"),
    package("llvm-22-dev", "", "the LLVM that bpf-linker is built on"),
    package("g++", "g++", "links bpf-linker: LLVM is C++"),
];

/// To run the daemon here.
pub const RUN: &[Package] = &[
    package("iproute2", "ip", "network namespaces, rules, routes"),
    package("util-linux", "nsenter", "to enter a namespace"),
];

/// For the tests and the demo, which run real clients on real namespaces.
pub const TEST: &[Package] = &[
    package("iproute2", "ss", "network namespaces, rules, routes, sockets"),
    package("util-linux", "setpriv", "to enter namespaces; ends programs with their starter"),
    package("curl", "curl", "the client of the demo and the tests"),
    package(
        "ca-certificates",
        "/etc/ssl/certs/ca-certificates.crt",
        "the authorities that a rule without its own trusts",
    ),
    package("openssl", "openssl", "a TLS peer that shares no code with the daemon"),
    package("redis-server", "redis-server", "a server that requires client certificates"),
    package("redis-tools", "redis-cli", "its client, which speaks plaintext"),
    package("nginx-light", "/usr/sbin/nginx", "a web server that requires client certificates"),
    package("procps", "sysctl", "to read and set the network's settings"),
];

/// For the tests alone: applications whose traffic the daemon carries.
pub const APPLICATIONS: &[Package] = &[
    // (Ubuntu 22.04)
    formerly(
        &["mariadb-server-core-10.6"],
        package("mariadb-server-core", "mariadbd", "a database whose server speaks first"),
    ),
    formerly(
        &["mariadb-client-core-10.6"],
        package("mariadb-client-core", "mariadb", "and its client"),
    ),
    package(
        "python3-aiosmtpd",
        "/usr/lib/python3/dist-packages/aiosmtpd",
        "a mail server, which speaks first",
    ),
];

/// The keys of Debian's archive.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// For the tests alone: what reads systemd's units as systemd does.
pub const UNITS: &[Package] = &[package("systemd", "systemd-analyze", "checks the shipped units")];

/// For `vm`: the emulator, and a shell inside the guest.
pub const VM: &[Package] = &[
    package("qemu-system-x86", "qemu-system-x86_64", "runs the guests"),
    package("busybox-static", "", "a shell inside the guests, which needs no library"),
    package("xz-utils", "xz", "kernel modules are compressed"),
    package("debian-archive-keyring", KEYRING, "checks what is fetched from Debian's archive"),
    package("binutils", "objcopy", "takes the debug information out of what goes into a guest"),
];

/// Installs the packages that are missing, and says which and why. Removes nothing.
///
/// # Errors
/// When there is no apt-get, no right to install, or apt-get fails.
pub fn ensure(packages: &[Package]) -> Result<()> {
    let missing: Vec<_> = packages.iter().filter(|package| !package.is_there()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = || missing.iter().map(|package| package.offered(candidate)).collect::<Vec<_>>();
    if !has("apt-get") {
        bail!(
            "these packages are missing and there is no apt-get to install them with: {} (the names \
             are Debian's; install their like by hand)",
            names().join(" ")
        );
    }
    for package in &missing {
        say(format_args!("installing {}: {}", package.name, package.why));
    }
    // The lists may be old or absent, as on a fresh container: only then are they fetched.
    if output(&mut apt_get(&names())?).is_ok() {
        return Ok(());
    }
    say("refreshing the package lists");
    refresh()?;
    run(&mut apt_get(&names())?).context("apt-get could not install what is missing")
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

fn installed(name: &str) -> bool {
    output(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", name]))
        .is_ok_and(|status| status == "installed")
}

impl Package {
    fn is_there(&self) -> bool {
        let here = match self.brings {
            "" => false,
            path if path.starts_with('/') => Path::new(path).exists(),
            program => has(program),
        };
        here || installed(self.installed())
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.formerly.iter().copied())
    }

    /// The name that it is installed by, or would be today.
    pub fn installed(&self) -> &'static str {
        self.names().find(|name| installed(name)).unwrap_or(self.name)
    }

    /// The name that the distribution offers it by; today's where it is not known.
    fn offered(&self, candidate: impl Fn(&str) -> Option<String>) -> &'static str {
        match self.formerly {
            [] => self.name,
            _ => self.names().find(|name| candidate(name).is_some()).unwrap_or(self.name),
        }
    }
}

/// Servers come with their packages and are started by the tests alone: the file that forbids
/// packages to start them is put in place for the time of the installation, unless there is one.
/// dash runs the EXIT trap only when it exits by itself, also after a signal.
const NOT_STARTED: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" || exit 1
fi
apt-get "$@"
"#;

fn apt_get(names: &[&str]) -> Result<Command> {
    let mut command = privileged("sh")?;
    command
        .args([
            "-c",
            NOT_STARTED,
            "apt-get",
            "install",
            "--yes",
            "-qq",
            "--no-install-recommends",
            "--no-remove",
        ])
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::{fs::PermissionsExt, process::CommandExt};
    use std::time::{Duration, Instant};

    use super::*;

    /// With a file of the test's own in the place of the policy, and an installation that takes until
    /// somebody ends it.
    #[test]
    fn an_installation_that_is_interrupted_lets_packages_start_servers_again() -> Result<()> {
        let folder = std::env::temp_dir().join(format!("xtask-packages-{}", std::process::id()));
        for signal in ["INT", "TERM", "HUP"] {
            fs::create_dir_all(&folder)?;
            let (apt, policy) = (folder.join("apt-get"), folder.join("policy-rc.d"));
            fs::write(&apt, "#!/bin/sh\n: >\"${0%/*}/begun\"\nexec sleep 600\n")?;
            fs::set_permissions(&apt, fs::Permissions::from_mode(0o755))?;
            let script =
                NOT_STARTED.replace("/usr/sbin/policy-rc.d", &policy.display().to_string());
            // As in a terminal, the whole group gets the signal.
            let mut command = Command::new("env");
            command.args(["--default-signal=INT,TERM,HUP", "sh", "-c", &script, "apt-get"]);
            command.env("PATH", format!("{}:/usr/bin:/bin", folder.display())).process_group(0);
            let mut child = command.spawn()?;
            let deadline = Instant::now() + Duration::from_secs(60);
            while !folder.join("begun").exists() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            let there = policy.exists();
            run(Command::new("kill").args(["-s", signal, "--", &format!("-{}", child.id())]))?;
            let status = child.wait()?;
            let left = policy.exists();
            fs::remove_dir_all(&folder)?;
            assert!(there && !left, "{signal}: there: {there}, left: {left}");
            assert!(!status.success(), "{signal}: {status}");
        }
        Ok(())
    }

    #[test]
    fn a_package_has_the_name_that_the_distribution_offers() {
        let offered = |names: &'static [&str]| {
            APPLICATIONS[0].offered(move |name| names.contains(&name).then(|| "1:10.6".to_owned()))
        };
        assert_eq!(offered(&["mariadb-server-core"]), "mariadb-server-core");
        assert_eq!(offered(&["mariadb-server-core-10.6"]), "mariadb-server-core-10.6");
        assert_eq!(offered(&[]), "mariadb-server-core");
    }
}
