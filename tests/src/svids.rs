//! Certificates in directories, as an operator's own tools put them there: the shared topology with the
//! source `files` on both nodes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::daemon::{Daemon, DaemonSpec};
use crate::openssl::{self, Pair};
use crate::{Testbed, World};

/// A root and what it signed, by name, with the directories that the nodes read.
#[derive(Debug, Clone)]
pub struct Material {
    /// Where everything is made before it is put in place.
    staging: PathBuf,
    directory: PathBuf,
    root: Pair,
}

impl Material {
    /// The directory of node a, where files lie flat.
    pub const A: &'static str = "a";
    /// The directory of node b, `<namespace>/<service account>/`.
    pub const B: &'static str = "b";

    /// # Errors
    /// When openssl is not installed.
    pub fn new(bed: &Path) -> Result<Self> {
        let (staging, directory) = (bed.join("staging"), bed.join("svids"));
        fs::create_dir_all(&staging)?;
        for node in [Self::A, Self::B] {
            fs::create_dir_all(directory.join(node))?;
        }
        let root = openssl::self_signed(&staging, "root")?;
        Ok(Self { staging, directory, root })
    }

    pub fn root(&self) -> &Pair {
        &self.root
    }

    pub fn node(&self, node: &str) -> PathBuf {
        self.directory.join(node)
    }

    /// The key of a flat certificate of node a.
    pub fn key(&self, name: &str) -> PathBuf {
        self.node(Self::A).join(format!("{name}.key"))
    }

    /// A new certificate and key for `spiffe://cluster.local/ns/<namespace>/sa/<account>`.
    ///
    /// # Errors
    /// When openssl refuses.
    pub fn issue(&self, name: &str, account: &str) -> Result<Pair> {
        let (namespace, account) = account.split_once('/').context("namespace/account")?;
        let uri = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
        openssl::svid(&self.staging, name, &self.root, &uri)
    }

    /// Puts a new pair in place, file by file, each in one step.
    ///
    /// # Errors
    /// When openssl refuses.
    pub fn renew(&self, node: &str, name: &str, account: &str) -> Result<()> {
        let pair = self.issue(name, account)?;
        let to = self.node(node);
        for (from, name) in
            [(&pair.key, format!("{name}.key")), (&pair.certificate, format!("{name}.pem"))]
        {
            let beside = to.join(format!(".{name}"));
            fs::copy(from, &beside)?;
            fs::rename(beside, to.join(name))?;
        }
        Ok(())
    }

    /// Puts a new pair in place as a mounted secret is changed: a directory of its own, and one link
    /// that is exchanged.
    ///
    /// # Errors
    /// When openssl refuses.
    pub fn swap(&self, account: &str, version: &str) -> Result<()> {
        let mount = self.node(Self::B).join(account);
        let new = mount.join(format!("..{version}"));
        fs::create_dir_all(&new)?;
        let pair = self.issue(&account.replace('/', "-"), account)?;
        fs::copy(&pair.certificate, new.join("tls.crt"))?;
        fs::copy(&pair.key, new.join("tls.key"))?;
        fs::copy(&self.root.certificate, new.join("ca.crt"))?;
        let link = mount.join("..data_tmp");
        symlink(format!("..{version}"), &link)?;
        fs::rename(link, mount.join("..data"))?;
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            if !mount.join(name).is_symlink() {
                symlink(Path::new("..data").join(name), mount.join(name))?;
            }
        }
        Ok(())
    }

    /// The serial number that a daemon uses for `identity`.
    ///
    /// # Errors
    /// When it has none.
    pub fn serial(&self, daemon: &Daemon, identity: &str) -> Result<String> {
        let svid = svid(daemon, identity)?;
        Ok(svid["serial"].as_str().with_context(|| format!("no serial: {svid}"))?.to_owned())
    }
}

/// What a daemon's status says of `identity`.
///
/// # Errors
/// When it does not know it.
pub fn svid(daemon: &Daemon, identity: &str) -> Result<serde_json::Value> {
    let status = daemon.status()?;
    let svids = status["svids"].as_array().context("svids")?;
    let svid = svids.iter().find(|svid| svid["identity"] == identity).cloned();
    svid.with_context(|| format!("no {identity}: {status}"))
}

/// The shared topology, both nodes with certificates from files.
///
/// # Errors
/// As [`World::new`].
pub fn from_files() -> Result<(World, Material)> {
    let mut made = None;
    let world = World::with(
        &[],
        |_, bed: &Testbed| made = Some(prepare(&bed.directory)),
        |spec| with_files(spec),
    );
    // Why there are none says more than that a daemon did not become ready.
    let material = made.context("the topology was not made")??;
    Ok((world?, material))
}

fn prepare(directory: &Path) -> Result<Material> {
    let material = Material::new(directory)?;
    material.renew(Material::A, "sleep", "full/sleep")?;
    fs::copy(&material.root.certificate, material.node(Material::A).join("ca.crt"))?;
    material.swap("full/httpbin", "1")?;
    material.swap("partial/httpbin", "1")?;
    Ok(material)
}

fn with_files(spec: DaemonSpec) -> DaemonSpec {
    let node = if spec.name.ends_with("-a") { Material::A } else { Material::B };
    let directory = spec.config.with_file_name("svids").join(node);
    let directory = directory.display().to_string();
    spec.with("--identity-source", "files").with("--svid-dir", &directory)
}
