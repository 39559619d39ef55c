//! Where things are: the source tree, and a cache that outlives `cargo clean` and serves every clone.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

pub struct Workspace {
    root: PathBuf,
    cache: PathBuf,
}

impl Workspace {
    /// Finds the source tree from where cargo runs this program, and the cache folder from
    /// `XDG_CACHE_HOME` or `HOME`.
    ///
    /// # Errors
    /// When neither variable is set, or the cache folder cannot be made.
    pub fn find() -> Result<Self> {
        // At run time first: a target folder shared by two clones would bake in the wrong one.
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest.parent().context("xtask has no parent folder")?.to_owned();
        let cache = match env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
            Some(cache) => PathBuf::from(cache),
            None => PathBuf::from(
                env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?,
            )
            .join(".cache"),
        }
        .join("mtls-ebpf");
        fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
        Ok(Self { root, cache })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Downloads and installed tools; everything in it can be deleted at any time.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The object that the daemon's build script takes: the same place whatever `CARGO_TARGET_DIR` says.
    pub fn ebpf_object(&self) -> PathBuf {
        self.root.join("target/ebpf/mtls-ebpf.o")
    }

    /// The cargo that started this program, at the root of the source tree.
    pub fn cargo(&self) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.root);
        // `cargo run` describes this very package in its environment; it is nobody else's business.
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(|name| {
                name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
            }) {
                cargo.env_remove(name);
            }
        }
        cargo
    }
}
