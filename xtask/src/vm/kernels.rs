//! Kernels: found in Debian's archive, reduced to what a guest needs, and cached.
//!
//! `<cache>/kernels/<version>/` has `vmlinuz` and `modules/NN-name.ko`, in the order to load them;
//! `<cache>/kernels/<series>.newest` has the version that the archive's newest of that series was.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::{debian::Debian, modules};
use crate::{shell::say, workspace::Workspace};

pub struct Kernel {
    /// As in `uname -r`.
    pub version: String,
    pub image: PathBuf,
    /// A folder of modules as [`modules::extract`] leaves it.
    pub modules: Option<PathBuf>,
}

impl Kernel {
    /// A kernel of this machine's files: `IMAGE`, or `IMAGE:MODULES` with a `/lib/modules/<version>`.
    /// Its modules are put into `scratch`.
    ///
    /// # Errors
    /// When it is no x86-64 kernel, or a module cannot be read.
    pub fn of_file(argument: &str, scratch: &Path) -> Result<Self> {
        let (image, folder) = match argument.split_once(':') {
            Some((image, folder)) => (image, Some(Path::new(folder))),
            None => (argument, None),
        };
        let image = PathBuf::from(image);
        let bytes = fs::read(&image).with_context(|| image.display().to_string())?;
        let version = version_of(&bytes)
            .with_context(|| format!("{} is no x86-64 kernel (bzImage)", image.display()))?;
        let modules = match folder {
            None => None,
            Some(folder) => {
                let into = scratch.join(format!("{version}-{}.modules", std::process::id()));
                modules::extract(folder, &into)?;
                Some(into)
            }
        };
        Ok(Self { version, image, modules })
    }

    /// Whether it is older than a series, given by its two numbers.
    pub fn is_before(&self, series: [u64; 2]) -> bool {
        numbers(&self.version) < series.to_vec()
    }
}

pub struct Kernels<'a> {
    folder: PathBuf,
    mirror: Option<&'a str>,
    refresh: bool,
    /// Opened when something is missing: what is cached needs no network.
    archive: Option<Debian>,
}

impl<'a> Kernels<'a> {
    /// # Errors
    /// When the cache cannot be written.
    pub fn open(workspace: &Workspace, mirror: Option<&'a str>, refresh: bool) -> Result<Self> {
        let folder = workspace.cache().join("kernels");
        fs::create_dir_all(&folder)?;
        Ok(Self { folder, mirror, refresh, archive: None })
    }

    /// The newest kernel of a series: cached, or fetched.
    ///
    /// # Errors
    /// When there is no such kernel, or it cannot be fetched.
    pub fn get(&mut self, series: &str) -> Result<Kernel> {
        if !self.refresh
            && let Some(version) = self.remembered(series)
        {
            return Ok(self.kernel(version));
        }
        // One run at a time fetches; the next finds what it fetched.
        let lock = File::create(self.folder.join(".lock"))?;
        lock.lock()?;
        if !self.refresh
            && let Some(version) = self.remembered(series)
        {
            return Ok(self.kernel(version));
        }
        let version = match self.fetch_newest(series) {
            Ok(version) => version,
            Err(error) => {
                let cached = if self.refresh { None } else { newest(series, self.cached()?) };
                let Some(version) = cached else { return Err(error) };
                say(format_args!(
                    "vm: {series}: {error:#}; taking Linux {version}, fetched before"
                ));
                version
            }
        };
        Ok(self.kernel(version))
    }

    /// What the archive's newest of the series was when it was asked, if it is cached. Another cached
    /// kernel of the series need not be the newest: somebody may have asked for that very one.
    fn remembered(&self, series: &str) -> Option<String> {
        let version = fs::read_to_string(self.record(series)).ok()?;
        self.is_complete(&version).then_some(version)
    }

    fn record(&self, series: &str) -> PathBuf {
        self.folder.join(format!("{series}.newest"))
    }

    fn cached(&self) -> Result<impl Iterator<Item = String>> {
        let names = fs::read_dir(&self.folder)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter(|version| self.is_complete(version)))
    }

    fn fetch_newest(&mut self, series: &str) -> Result<String> {
        let archive = match &mut self.archive {
            Some(archive) => archive,
            none => none.insert(Debian::open(&self.folder.join(".debian"), self.mirror)?),
        };
        let names = archive.names("linux-image-")?;
        let offered = names.iter().filter_map(|name| name.strip_prefix("linux-image-"));
        let version = match (newest(series, offered.map(str::to_owned)), &archive.incomplete) {
            (Some(version), _) => version,
            (None, None) => bail!("Debian offers no such kernel"),
            (None, Some(why)) => {
                bail!("Debian offers no such kernel, or its list is missing: {why}")
            }
        };
        if !self.is_complete(&version) {
            say(format_args!("vm: fetching Linux {version}"));
            self.fetch(&version)?;
        }
        fs::write(self.record(series), &version)?;
        Ok(version)
    }

    fn fetch(&self, version: &str) -> Result<()> {
        let archive = self.archive.as_ref().context("the archive is not open")?;
        // From 7.x the image's package only depends on those that have the files.
        let mut packages = vec![format!("linux-image-{version}")];
        for part in ["linux-binary-", "linux-modules-"] {
            let name = format!("{part}{version}");
            if archive.names(&name)?.contains(&name) {
                packages.push(name);
            }
        }
        let unpacked = self.folder.join(format!(".{version}.unpacked"));
        let next = self.folder.join(format!(".{version}.new"));
        for folder in [&unpacked, &next] {
            let _ = fs::remove_dir_all(folder);
            fs::create_dir_all(folder)?;
        }
        archive.unpack(&packages, &unpacked)?;
        let image = find(&unpacked, &["boot", "usr/lib/modules", "lib/modules"], version)?;
        fs::copy(image, next.join("vmlinuz"))?;
        let folder = modules::folder_of(&unpacked, version)?;
        modules::extract(&folder, &next.join("modules"))?;
        fs::write(next.join(modules::STAMP), modules::wanted())?;
        fs::remove_dir_all(&unpacked)?;
        let folder = self.folder.join(version);
        let _ = fs::remove_dir_all(&folder);
        fs::rename(&next, &folder)?;
        Ok(())
    }

    fn is_complete(&self, version: &str) -> bool {
        let stamp = fs::read_to_string(self.folder.join(version).join(modules::STAMP));
        stamp.is_ok_and(|stamp| stamp == modules::wanted())
    }

    fn kernel(&self, version: String) -> Kernel {
        let folder = self.folder.join(&version);
        Kernel { image: folder.join("vmlinuz"), modules: Some(folder.join("modules")), version }
    }
}

/// What `uname -r` will say, from the header of an image (Documentation/x86/boot.rst).
fn version_of(image: &[u8]) -> Option<String> {
    const MAGIC: usize = 0x202;
    const VERSION: usize = 0x20e;
    if image.get(MAGIC..MAGIC + 4)? != b"HdrS" {
        return None;
    }
    let at = usize::from(u16::from_le_bytes(image.get(VERSION..VERSION + 2)?.try_into().ok()?));
    let text = image.get(0x200 + at..)?;
    let end = text.iter().position(|byte| *byte == b' ' || *byte == 0)?;
    String::from_utf8(text[..end].to_vec()).ok()
}

fn find(unpacked: &Path, folders: &[&str], version: &str) -> Result<PathBuf> {
    folders
        .iter()
        .flat_map(|folder| {
            let folder = unpacked.join(folder);
            [folder.join(format!("vmlinuz-{version}")), folder.join(version).join("vmlinuz")]
        })
        .find(|path| path.is_file())
        .context("its packages have no vmlinuz")
}

/// The newest cloud kernel whose version starts with the series.
fn newest(series: &str, versions: impl Iterator<Item = String>) -> Option<String> {
    versions.filter(|version| is_of(version, series)).max_by_key(|version| numbers(version))
}

fn is_of(version: &str, series: &str) -> bool {
    // Other than packages for whole series, a version has three numbers.
    let release = version.split(['+', '-']).next().unwrap_or_default();
    version.ends_with("-cloud-amd64")
        && release.split('.').count() >= 3
        // 6.1 is not 6.12.
        && version.strip_prefix(series).is_some_and(|rest| !rest.starts_with(|it: char| it.is_ascii_digit()))
}

fn numbers(version: &str) -> Vec<u64> {
    version.split(|it: char| !it.is_ascii_digit()).filter_map(|it| it.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::{Kernel, newest, version_of};

    #[test]
    fn kernels_are_before_a_series_by_number() {
        let check = |version: &str, expected| {
            let kernel = Kernel { version: version.to_owned(), image: "/k".into(), modules: None };
            assert_eq!(kernel.is_before([5, 15]), expected, "{version}");
        };
        check("5.10.0-46-cloud-amd64", true);
        check("5.9.3-cloud-amd64", true);
        check("5.14.21-generic", true);
        check("5.15.135", false);
        check("5.17.0-1-cloud-amd64", false);
        check("6.1.0-56-cloud-amd64", false);
        check("7.3.4+deb13-cloud-amd64", false);
    }

    #[test]
    fn an_image_says_its_version() {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x315].copy_from_slice(b"5.15.135-own (root@x)");
        assert_eq!(version_of(&image).as_deref(), Some("5.15.135-own"));
        assert_eq!(version_of(&image[..0x300]), None);
        assert_eq!(version_of(b"\x7fELF"), None);
    }

    #[test]
    fn the_newest_kernel_of_a_series_is_taken() {
        let versions = [
            "5.10.0-46-cloud-amd64",
            "6.1-cloud-amd64",
            "6.1.0-0.deb11.52-cloud-amd64",
            "6.1.0-56-cloud-amd64",
            "6.1.0-9-cloud-amd64",
            "6.12.94+deb13-cloud-amd64",
            "6.12.117+deb13-cloud-amd64",
            "6.12.200+deb13-cloud-amd64-dbg",
            "7.0.13+deb13-cloud-amd64",
            "7.3.4+deb13-cloud-amd64",
            "7.3.4+deb13-amd64",
            "cloud-amd64",
        ];
        let check = |series, expected: Option<&str>| {
            assert_eq!(
                newest(series, versions.map(str::to_owned).into_iter()).as_deref(),
                expected,
                "{series}"
            );
        };
        check("5.10", Some("5.10.0-46-cloud-amd64"));
        check("6.1", Some("6.1.0-56-cloud-amd64"));
        check("6.12", Some("6.12.117+deb13-cloud-amd64"));
        check("6.12.94", Some("6.12.94+deb13-cloud-amd64"));
        check("7", Some("7.3.4+deb13-cloud-amd64"));
        check("6.2", None);
    }
}
