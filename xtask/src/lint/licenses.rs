//! Licences, banned crates and origins of everything that gets compiled in.

use anyhow::{Result, bail};

use super::{
    manifest::{Dependency, Rules},
    spdx,
};

/// # Errors
/// Lists every crate that breaks a rule of `deny.toml`.
pub fn check(rules: &Rules, dependencies: &[Dependency]) -> Result<()> {
    let mut faults: Vec<String> = dependencies.iter().filter_map(|it| fault(rules, it)).collect();
    faults.sort();
    faults.dedup();
    if faults.is_empty() {
        return Ok(());
    }
    bail!("dependencies against deny.toml:\n  {}", faults.join("\n  "));
}

fn fault(rules: &Rules, dependency: &Dependency) -> Option<String> {
    let Dependency { name, version, license, source } = dependency;
    if let Some(reason) = rules.bans.get(name) {
        return Some(format!("{name} {version} is banned: {reason}"));
    }
    // Our own crates say what they say.
    let source = source.as_deref()?;
    if !source.starts_with("registry+") {
        return Some(format!("{name} {version} comes from {source}: only the registry is allowed"));
    }
    let Some(license) = license else {
        return Some(format!("{name} {version} names no licence"));
    };
    match spdx::allowed(license, &rules.licenses) {
        Ok(true) => None,
        Ok(false) => Some(format!("{name} {version}: licence {license} is not allowed")),
        Err(error) => Some(format!("{name} {version}: licence {license}: {error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dependency(name: &str, license: Option<&str>, source: Option<&str>) -> Dependency {
        Dependency {
            name: name.to_owned(),
            version: semver::Version::new(1, 0, 0),
            license: license.map(str::to_owned),
            source: source.map(str::to_owned),
        }
    }

    #[test]
    fn bans_origins_and_licences_are_told_apart() {
        let rules = Rules {
            licenses: vec!["MIT".to_owned()],
            bans: [("openssl".to_owned(), "because".to_owned())].into(),
            ignored_advisories: [].into(),
        };
        let said = |it: Dependency| fault(&rules, &it).unwrap_or_default();
        assert_eq!(said(dependency("a", Some("MIT"), Some("registry+x"))), "");
        assert_eq!(said(dependency("ours", Some("Other"), None)), "");
        assert!(
            said(dependency("a", Some("GPL-3.0-only"), Some("registry+x"))).contains("not allowed")
        );
        assert!(said(dependency("a", None, Some("registry+x"))).contains("no licence"));
        assert!(said(dependency("a", Some("MIT"), Some("git+x"))).contains("only the registry"));
        assert!(said(dependency("openssl", Some("MIT"), Some("registry+x"))).contains("because"));
    }
}
