//! Kernel modules: which a guest loads, and in what order.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// Loaded in this order, after what they depend on. A kernel that lacks one has it built in, or does
/// without: then the daemon's own probing finds that out.
const WANTED: &[&str] = &[
    "veth",
    "bridge",
    "af_packet",
    "dummy",
    "cls_bpf",
    "act_bpf",
    "sch_ingress",
    "tcp_diag",
    "udp_diag",
    "inet_diag",
    "overlay",
    "tun",
    "tls",
    "gcm",
    "aesni_intel",
    "ghash_clmulni_intel",
    "chacha20poly1305",
    "ipv6",
];

/// Beside the modules: what was wanted when they were taken out.
pub const STAMP: &str = "modules.wanted";

pub fn wanted() -> String {
    WANTED.join(" ")
}

/// The module folder of unpacked packages.
///
/// # Errors
/// When there is none.
pub fn folder_of(unpacked: &Path, version: &str) -> Result<PathBuf> {
    ["usr/lib/modules", "lib/modules"]
        .iter()
        .map(|folder| unpacked.join(folder).join(version))
        .find(|folder| folder.join("kernel").is_dir())
        .context("its packages have no modules")
}

/// Takes the wanted modules, and what they depend on, out of a module folder: decompressed and numbered
/// in the order to load them.
///
/// # Errors
/// When a module cannot be read.
pub fn extract(folder: &Path, into: &Path) -> Result<()> {
    let mut files = BTreeMap::new();
    collect(folder, &mut files).with_context(|| folder.display().to_string())?;
    fs::create_dir_all(into)?;
    let mut loaded = Vec::new();
    for name in WANTED {
        load(name, &files, into, &mut loaded)?;
    }
    Ok(())
}

fn load(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    into: &Path,
    loaded: &mut Vec<String>,
) -> Result<()> {
    let Some(file) = files.get(name) else { return Ok(()) };
    if loaded.iter().any(|it| it == name) {
        return Ok(());
    }
    // Here already, lest a circle of dependencies has no end.
    loaded.push(name.to_owned());
    let module = read(file)?;
    for needed in depends(&module) {
        load(&needed, files, into, loaded)?;
    }
    let number = fs::read_dir(into)?.count();
    fs::write(into.join(format!("{number:02}-{name}.ko")), module)?;
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let program = match file.extension().and_then(|it| it.to_str()) {
        Some("ko") => return Ok(fs::read(file)?),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => bail!("{}: an unknown kind of compression", file.display()),
    };
    // The folder may be this machine's own: nothing is written there.
    let plain = Command::new(program)
        .args(["--decompress", "--quiet", "--stdout"])
        .arg(file)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !plain.status.success() {
        bail!("{program} {}: {}", file.display(), String::from_utf8_lossy(&plain.stderr).trim());
    }
    Ok(plain.stdout)
}

/// The modules named by `depends=` in a module's `.modinfo` section: strings, each ended by a zero.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|it| it == KEY) else { return Vec::new() };
    let value = &module[at + KEY.len()..];
    let end = value.iter().position(|&it| it == 0).unwrap_or(value.len());
    let names = String::from_utf8_lossy(&value[..end]).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(canonical).collect()
}

fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, files)?;
        } else if let Some((name, _)) =
            path.file_name().and_then(|it| it.to_str()).and_then(|it| it.split_once(".ko"))
        {
            files.insert(canonical(name), path.clone());
        }
    }
    Ok(())
}

/// A dash in a file's name is an underscore in the module's.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::depends;

    #[test]
    fn a_modules_dependencies_are_read_from_its_information() {
        assert_eq!(
            depends(b"x\0license=GPL\0depends=nf-tables,ip6_tables\0name=a\0"),
            ["nf_tables", "ip6_tables"]
        );
        assert!(depends(b"x\0depends=\0name=a\0").is_empty());
        assert!(depends(b"none").is_empty());
    }
}
