//! The unit files that are shipped: systemd understands them, and they say what the documentation does.
#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mtls_tests::process;

fn shipped(name: &str) -> Result<String> {
    let files = [
        ("mtls-daemon.service", include_str!("../../deploy/systemd/mtls-daemon.service")),
        ("mtls-ca.service", include_str!("../../deploy/systemd/mtls-ca.service")),
        ("mtls-workload.conf", include_str!("../../deploy/systemd/mtls-workload.conf")),
    ];
    let found = files.iter().find(|(known, _)| *known == name);
    Ok((*found.with_context(|| format!("{name} is not shipped"))?.1).to_owned())
}

/// The values of `key` in `section`, in order; unknown lines are an error.
fn values(text: &str, section: &str, key: &str) -> Result<Vec<String>> {
    let (mut here, mut found) = (String::new(), Vec::new());
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            here = name.to_owned();
            continue;
        }
        let (name, value) =
            line.split_once('=').with_context(|| format!("no assignment: {line}"))?;
        if here == section && name == key {
            found.push(value.to_owned());
        }
    }
    Ok(found)
}

#[test]
fn workloads_are_ordered_after_the_daemon_and_the_daemon_after_the_ca() -> Result<()> {
    let daemon = shipped("mtls-daemon.service")?;
    let after = values(&daemon, "Unit", "After")?.join(" ");
    ensure!(after.contains("mtls-ca.service"), "{after}");
    let workload = shipped("mtls-workload.conf")?;
    ensure!(values(&workload, "Unit", "After")? == ["mtls-daemon.service"], "{workload}");
    let before = values(&workload, "Service", "ExecStartPre")?;
    ensure!(before.len() == 1 && before[0].starts_with("+"), "as root: {before:?}");
    ensure!(before[0].contains("mtls-daemon wait"), "{before:?}");
    Ok(())
}

/// As many files as it takes connections.
#[test]
fn the_ca_may_open_a_file_for_every_connection() -> Result<()> {
    let limit = values(&shipped("mtls-ca.service")?, "Service", "LimitNOFILE")?;
    ensure!(limit.len() == 1 && limit[0].parse::<u32>()? > 2 * 4096, "{limit:?}");
    Ok(())
}

/// Options that would take from the daemon what it lives by.
#[test]
fn no_option_takes_its_mounts_or_its_network() -> Result<()> {
    let daemon = shipped("mtls-daemon.service")?;
    for option in [
        "PrivateMounts",
        "PrivateNetwork",
        "PrivateTmp",
        "PrivateDevices",
        "ProtectSystem",
        "ProtectHome",
        "ProtectControlGroups",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectProc",
        "RestrictNamespaces",
        "ReadWritePaths",
        "DynamicUser",
        "IPAddressDeny",
    ] {
        ensure!(values(&daemon, "Service", option)?.is_empty(), "{option}");
    }
    let capabilities = values(&daemon, "Service", "CapabilityBoundingSet")?.join(" ");
    for capability in ["CAP_BPF", "CAP_NET_ADMIN", "CAP_SYS_ADMIN"] {
        ensure!(capabilities.contains(capability), "{capability}");
    }
    ensure!(values(&daemon, "Service", "Restart")? == ["always"]);
    Ok(())
}

/// With the programs of this build in the place of the installed ones.
#[test]
fn systemd_finds_nothing_wrong_with_them() -> Result<()> {
    if std::env::var_os("MTLS_VM_KERNEL").is_some() {
        // A guest has no systemd, and what is tested is none of its kernel's.
        eprintln!("in a guest: the units are given to systemd-analyze on its host");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let daemon = process::sibling("mtls-daemon", "MTLS_DAEMON_BIN")?.display().to_string();
    let workload = format!(
        "[Unit]\nDescription=A workload\n[Service]\nExecStart=/bin/true\n{}",
        shipped("mtls-workload.conf")?
    );
    let units = [
        ("mtls-daemon.service", shipped("mtls-daemon.service")?),
        ("mtls-ca.service", shipped("mtls-ca.service")?),
        ("web.service", workload),
    ];
    let mut paths: Vec<PathBuf> = Vec::new();
    for (name, text) in units {
        let path = directory.path().join(name);
        fs::write(&path, text.replace("/usr/local/bin/mtls-daemon", &daemon))?;
        paths.push(path);
    }
    let output = process::output({
        let mut command = Command::new("systemd-analyze");
        command.arg("verify").args(&paths);
        command
    })?;
    let said = String::from_utf8_lossy(&output.stderr);
    let own: Vec<&str> = said
        .lines()
        .filter(|line| ["mtls-", "web.service"].iter().any(|name| line.contains(name)))
        // (the manual is elsewhere before it is installed)
        .filter(|line| !line.contains("bare-metal.md") && !line.contains("ca.md"))
        .collect();
    ensure!(own.is_empty(), "{said}");
    ensure!(output.status.success(), "{}: {said}", output.status);
    Ok(())
}
