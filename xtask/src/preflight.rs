//! Looked at before anything long starts: is this a machine on which the daemon, the demo and the
//! tests can work? They never skip a promise, so what is missing is an error at once.

use std::{fs, process::Command};

use anyhow::{Result, bail};

use crate::shell::output;

/// Capabilities without which nothing here works, by their bit in `CapEff` (linux/capability.h).
const CAPABILITIES: &[(u32, &str)] =
    &[(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (21, "CAP_SYS_ADMIN")];

/// Sysctls that keep a client's source address on the last leg.
const SYSCTLS: &[&str] =
    &["net/ipv4/tcp_fwmark_accept", "net/ipv4/fwmark_reflect", "net/ipv6/fwmark_reflect"];

pub fn is_root() -> bool {
    status_field("Uid:").is_some_and(|ids| ids.split_whitespace().nth(1) == Some("0"))
}

/// Checks for root, capabilities and kernel features. The daemon itself probes for the details of
/// BPF and names the missing one.
///
/// # Errors
/// Names everything that is missing, with what to do about it.
pub fn check() -> Result<()> {
    let mut missing = Vec::new();
    if !is_root() {
        missing.push(
            "root: namespaces, cgroups and BPF programs need it. Run the same command behind \
             `sudo -E env \"PATH=$PATH\"`, which keeps cargo where it is found"
                .to_owned(),
        );
    } else {
        capabilities(&mut missing);
        veth(&mut missing);
    }
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    for (name, option) in [("cgroup2", "CONFIG_CGROUPS"), ("bpf", "CONFIG_BPF_SYSCALL")] {
        if !filesystems.lines().any(|line| line.split_whitespace().last() == Some(name)) {
            missing.push(format!("the {name} file system: a kernel with {option}"));
        }
    }
    for sysctl in SYSCTLS {
        if fs::metadata(format!("/proc/sys/{sysctl}")).is_err() {
            missing.push(format!(
                "the sysctl {}: a kernel with IPv4 and IPv6 networking",
                sysctl.replace('/', ".")
            ));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "this machine lacks what the daemon needs:\n  - {}\n`cargo xtask vm` runs the same in a \
         virtual machine with a suitable kernel",
        missing.join("\n  - ")
    );
}

fn capabilities(missing: &mut Vec<String>) {
    let effective = status_field("CapEff:")
        .and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
        .unwrap_or_default();
    for (bit, name) in CAPABILITIES {
        if effective & (1 << bit) == 0 {
            missing.push(format!(
                "{name}: root without it is a container; start that with --privileged"
            ));
        }
    }
}

/// Asks the kernel itself, in a network namespace that ends with the command.
fn veth(missing: &mut Vec<String>) {
    let mut probe = Command::new("unshare");
    probe.args(["--net", "ip", "link", "add", "mtls-a", "type", "veth", "peer", "name", "mtls-b"]);
    if let Err(error) = output(&mut probe) {
        missing.push(format!(
            "network namespaces with veth pairs (CONFIG_NET_NS, CONFIG_VETH): {error:#}"
        ));
    }
}

fn status_field(name: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned)
}
