//! What we depend on (cargo's own answer) and what may be depended on (`deny.toml`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{shell::output, workspace::Workspace};

/// The parts of `deny.toml` that are checked here.
pub struct Rules {
    pub licenses: Vec<String>,
    /// Crate and reason.
    pub bans: BTreeMap<String, String>,
    /// Advisory and reason.
    pub ignored_advisories: BTreeMap<String, String>,
}

/// One crate that gets compiled into something of ours.
pub struct Dependency {
    pub name: String,
    pub version: semver::Version,
    pub license: Option<String>,
    /// `None` for our own.
    pub source: Option<String>,
}

impl Rules {
    /// # Errors
    /// When `deny.toml` is absent, is no TOML, or an entry has no reason.
    pub fn read(workspace: &Workspace) -> Result<Self> {
        let path = workspace.root().join("deny.toml");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).context("deny.toml")
    }

    fn parse(text: &str) -> Result<Self> {
        let table: toml::Table = text.parse()?;
        let list = |section: &str, key: &str| -> Vec<toml::Value> {
            table
                .get(section)
                .and_then(|section| section.get(key))
                .and_then(|value| value.as_array())
                .cloned()
                .unwrap_or_default()
        };
        let reasoned = |section: &str, key: &str, name: &str| -> Result<BTreeMap<String, String>> {
            list(section, key)
                .iter()
                .map(|entry| {
                    let field = |field: &str| {
                        entry
                            .get(field)
                            .and_then(|value| value.as_str())
                            .map(str::to_owned)
                            .with_context(|| format!("{section}.{key}: an entry has no `{field}`"))
                    };
                    Ok((field(name)?, field("reason")?))
                })
                .collect()
        };
        let licenses: Vec<_> = list("licenses", "allow")
            .iter()
            .filter_map(|it| it.as_str().map(str::to_owned))
            .collect();
        Ok(Self {
            licenses,
            bans: reasoned("bans", "deny", "crate")?,
            ignored_advisories: reasoned("advisories", "ignore", "id")?,
        })
    }
}

/// Everything that the workspace in `folder` compiles on this kind of machine.
///
/// # Errors
/// When a lock file is stale, or a dependency has not been fetched.
pub fn dependencies(workspace: &Workspace, folder: &str) -> Result<Vec<Dependency>> {
    let cargo = |args: &[&str]| {
        let mut cargo = workspace.cargo();
        output(cargo.current_dir(workspace.root().join(folder)).args(args).arg("--locked"))
    };
    // `metadata` knows the licences, but also lists optional crates that nobody turned on; `tree` knows
    // what is compiled.
    let tree = cargo(&["tree", "--workspace", "--prefix=none", "--no-dedupe", "--format={p}"])?;
    let compiled: BTreeSet<_> = tree.lines().filter_map(name_and_version).collect();
    let metadata: Value = serde_json::from_str(&cargo(&[
        "metadata",
        "--format-version=1",
        "--filter-platform",
        PLATFORM,
    ])?)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let mut dependencies = packages.iter().map(dependency).collect::<Result<Vec<_>>>()?;
    dependencies.retain(|it| compiled.contains(&(it.name.as_str(), it.version.to_string())));
    if dependencies.is_empty() {
        bail!("cargo tree and cargo metadata agree on no package");
    }
    Ok(dependencies)
}

/// Only this platform's crates are on the disk.
const PLATFORM: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-unknown-linux-gnu"
} else {
    "x86_64-unknown-linux-gnu"
};

/// A line of `cargo tree`: `name v1.2.3 (proc-macro)`.
fn name_and_version(line: &str) -> Option<(&str, String)> {
    let mut words = line.split_whitespace();
    Some((words.next()?, words.next()?.strip_prefix('v')?.to_owned()))
}

fn dependency(package: &Value) -> Result<Dependency> {
    let text = |key: &str| package[key].as_str().map(str::to_owned);
    let name = text("name").context("a package without a name")?;
    let version = text("version").context("a package without a version")?.parse()?;
    Ok(Dependency { name, version, license: text("license"), source: text("source") })
}

#[cfg(test)]
mod tests {
    use super::Rules;

    #[test]
    fn the_repositorys_own_rules_can_be_read() {
        let rules = Rules::parse(include_str!("../../../deny.toml")).expect("deny.toml");
        assert!(rules.licenses.iter().any(|it| it == "Apache-2.0"));
        assert!(rules.bans.contains_key("openssl"));
    }

    #[test]
    fn an_exception_needs_a_reason() {
        assert!(Rules::parse("[advisories]\nignore = [{ id = \"RUSTSEC-2020-0001\" }]").is_err());
        assert!(
            Rules::parse("[advisories]\nignore = [{ id = \"RUSTSEC-2020-0001\", reason = \"x\" }]")
                .is_ok()
        );
    }
}
