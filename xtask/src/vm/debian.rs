//! Debian's archive, read by apt with lists and caches of our own: this machine's apt is not touched.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    packages::KEYRING,
    shell::{output, say},
};

/// Suites that have the kernels, each small to list: the security updates carry every long-term series,
/// backports the newer ones.
const SUITES: &[(Part, &str)] = &[
    (Part::Security, "bullseye-security"),
    (Part::Security, "bookworm-security"),
    (Part::Security, "trixie-security"),
    (Part::Main, "trixie-backports"),
];

/// As on Ubuntu.
const NO_ARCHIVE: &str = "\
this machine's apt has no Debian archive to take kernels from: set MTLS_DEBIAN_MIRROR, or give --mirror, to \
the URL of a mirror of Debian without its last part: URL/debian has the archive, URL/debian-security its \
security updates";

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Main,
    Security,
}

pub struct Debian {
    folder: PathBuf,
    /// Why the list of a suite may be missing or old: old suites leave the archive.
    pub incomplete: Option<String>,
}

impl Debian {
    /// Fetches the lists of packages.
    ///
    /// # Errors
    /// When it is not known where Debian's archive is. What of it cannot be reached is in
    /// [`Self::incomplete`].
    pub fn open(folder: &Path, mirror: Option<&str>) -> Result<Self> {
        for sub in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(folder.join(sub))?;
        }
        let [main, security] = match mirror {
            Some(mirror) => {
                let mirror = mirror.trim_end_matches('/');
                [format!("{mirror}/debian"), format!("{mirror}/debian-security")]
            }
            None => own_mirror()?,
        };
        let mut sources = String::new();
        for (part, suite) in SUITES {
            let archive = if *part == Part::Main { &main } else { &security };
            sources += &format!("deb [arch=amd64 signed-by={KEYRING}] {archive} {suite} main\n");
        }
        fs::write(folder.join("sources.list"), sources)?;
        let mut debian = Self { folder: folder.to_owned(), incomplete: None };
        say("vm: fetching the lists of Debian's kernels");
        let updated = output(debian.apt("apt-get").args(["update", "-qq"]));
        debian.incomplete = updated.err().map(|error| format!("{error:#}"));
        Ok(debian)
    }

    /// Names of packages that start so.
    ///
    /// # Errors
    /// When apt fails.
    pub fn names(&self, start: &str) -> Result<Vec<String>> {
        let names = output(self.apt("apt-cache").args(["pkgnames", start]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Fetches packages and unpacks them into a folder.
    ///
    /// # Errors
    /// When a package cannot be fetched, or has the wrong checksum.
    pub fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        let downloads = self.folder.join("download");
        let _ = fs::remove_dir_all(&downloads);
        fs::create_dir_all(&downloads)?;
        output(
            self.apt("apt-get").current_dir(&downloads).args(["download", "-qq"]).args(packages),
        )?;
        for file in fs::read_dir(&downloads)? {
            output(Command::new("dpkg-deb").arg("--extract").arg(file?.path()).arg(into))?;
        }
        fs::remove_dir_all(&downloads)?;
        Ok(())
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        let folder = self.folder.display();
        for option in [
            format!("Dir::Etc::sourcelist={folder}/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "Dir::Etc::preferences=/dev/null".to_owned(),
            "Dir::Etc::preferencesparts=/dev/null".to_owned(),
            format!("Dir::State::lists={folder}/lists"),
            // What is installed here is not what is offered.
            "Dir::State::status=/dev/null".to_owned(),
            format!("Dir::Cache::archives={folder}/archives"),
            format!("Dir::Cache::pkgcache={folder}/packages.bin"),
            format!("Dir::Cache::srcpkgcache={folder}/sources.bin"),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures::=amd64".to_owned(),
            // The cache folder may be readable for its owner alone.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            apt.arg("-o").arg(option);
        }
        apt.env("LC_ALL", "C");
        apt
    }
}

/// Where this machine itself gets Debian's packages, and their security updates, from.
fn own_mirror() -> Result<[String; 2]> {
    let format = "$(LABEL)|$(REPO_URI)";
    let targets = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        format,
        "Created-By: Packages",
    ]))?;
    let find = |label: &str| {
        let line = targets.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix('|'));
        line.map(|uri| uri.trim_end_matches('/').to_owned())
    };
    let main = find("Debian").context(NO_ARCHIVE)?;
    // Mirrors of Debian commonly have the security archive beside it.
    let security = find("Debian-Security").unwrap_or_else(|| format!("{main}-security"));
    Ok([main, security])
}
