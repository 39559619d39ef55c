//! What of a network namespace the daemon could set, as an operator sees it: rules, routes, sysctls.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{netns, process};

/// Those that keep a client's address on the last leg, below `/proc/sys/net`.
const SYSCTLS: [&str; 3] = ["ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"];

/// All of them, a line each.
///
/// # Errors
/// When they cannot be read, or lack what every namespace has: a comparison would say nothing.
pub fn of(space: &Path) -> Result<BTreeSet<String>> {
    let name = space.file_name().context("a namespace's name")?;
    let mut lines = BTreeSet::new();
    for family in ["-4", "-6"] {
        for what in [&["rule", "list"][..], &["route", "list", "table", "all"]] {
            let mut command = Command::new("ip");
            command.arg("-n").arg(name).arg(family).args(what);
            let output = process::output(command)?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let text = String::from_utf8(output.stdout)?;
            let known = if what[0] == "rule" { "lookup main" } else { "table local" };
            ensure!(text.contains(known), "ip {family} {what:?}: no {known:?} in {text:?}");
            // The kernel's own, which come when a link is ready.
            let own = |line: &&str| !line.starts_with("fe80::") && !line.contains("ff00::/8");
            lines.extend(text.lines().filter(own).map(|line| format!("{family} {line}")));
        }
    }
    for sysctl in SYSCTLS {
        let value = netns::inside(space, || {
            fs::read_to_string(format!("/proc/sys/net/{sysctl}")).context(sysctl)
        })?;
        lines.insert(format!("{sysctl} = {}", value.trim()));
    }
    Ok(lines)
}

/// # Errors
/// When the settings are not what they were; names what came and what went.
pub fn same(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Result<()> {
    let left: Vec<_> = after.difference(before).collect();
    let gone: Vec<_> = before.difference(after).collect();
    ensure!(left.is_empty() && gone.is_empty(), "left: {left:?}, gone: {gone:?}");
    Ok(())
}
