//! Known security advisories, checked without a network: `xtask/advisories.txt` has one line for each
//! advisory of the RustSec database as of the day it was written. Where that database can be had,
//! `cargo deny check advisories` asks for today's.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, bail};
use semver::VersionReq;

use super::manifest::{Dependency, Rules};
use crate::{
    shell::{output, say},
    workspace::Workspace,
};

const LIST: &str = "xtask/advisories.txt";

/// One line: `ID crate kind patched|patched... unaffected|...`, tab-separated.
#[derive(Debug)]
struct Advisory {
    id: String,
    package: String,
    /// `vulnerability`, `unsound`, `unmaintained` or `notice`.
    kind: String,
    safe: Vec<VersionReq>,
}

/// # Errors
/// Lists every dependency that an advisory concerns and that `deny.toml` does not excuse, and every
/// excuse that is no longer needed.
pub fn check(workspace: &Workspace, rules: &Rules, dependencies: &[Dependency]) -> Result<()> {
    let text = fs::read_to_string(workspace.root().join(LIST))
        .with_context(|| format!("cannot read {LIST}"))?;
    let (date, advisories) = parse(&text).context(LIST)?;
    let hits = hits(&advisories, dependencies);
    let mut faults: Vec<_> = hits
        .iter()
        .filter(|(id, _)| !rules.ignored_advisories.contains_key(id))
        .map(|(id, what)| format!("{id}: {what}"))
        .collect();
    for id in rules.ignored_advisories.keys() {
        if !hits.iter().any(|(hit, _)| hit == id) {
            faults
                .push(format!("{id}: deny.toml ignores it, and it concerns nothing here any more"));
        }
    }
    if !faults.is_empty() {
        bail!("advisories:\n  {}", faults.join("\n  "));
    }
    say(format_args!(
        "lint: {} crate versions, none concerned by the {} advisories known on {date}",
        dependencies.iter().map(|it| (&it.name, &it.version)).collect::<BTreeSet<_>>().len(),
        advisories.len()
    ));
    Ok(())
}

fn hits(advisories: &[Advisory], dependencies: &[Dependency]) -> BTreeSet<(String, String)> {
    let mut hits = BTreeSet::new();
    for Dependency { name, version, source, .. } in dependencies {
        for advisory in advisories.iter().filter(|it| it.package == *name && it.kind != "notice") {
            if source.is_some() && !advisory.safe.iter().any(|safe| safe.matches(version)) {
                hits.insert((advisory.id.clone(), format!("{name} {version}: {}", advisory.kind)));
            }
        }
    }
    hits
}

/// The day of the list, and its advisories.
fn parse(text: &str) -> Result<(String, Vec<Advisory>)> {
    let (first, _) = text.split_once('\n').context("is empty")?;
    let date = first.rsplit(' ').next().unwrap_or_default().to_owned();
    let advisories = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let fields: Vec<_> = line.split('\t').collect();
            let [id, package, kind, safe] = fields.as_slice() else {
                bail!("no advisory: {line:?}")
            };
            let safe = safe.split('|').filter(|it| !it.is_empty()).map(VersionReq::parse);
            Ok(Advisory {
                id: (*id).to_owned(),
                package: (*package).to_owned(),
                kind: (*kind).to_owned(),
                safe: safe.collect::<Result<_, _>>().with_context(|| format!("{id}: version"))?,
            })
        })
        .collect::<Result<_>>()?;
    Ok((date, advisories))
}

/// Writes the list anew from a clone of the database.
///
/// # Errors
/// When the folder is no git repository with that database in it.
pub fn update(workspace: &Workspace, database: &Path) -> Result<()> {
    let git = |args: &[&str]| {
        output(std::process::Command::new("git").arg("-C").arg(database).args(args))
    };
    let date = git(&["log", "-1", "--format=%cs"])?;
    let mut lines = BTreeSet::new();
    for file in git(&["ls-tree", "-r", "--name-only", "HEAD", "crates"])?.lines() {
        if file.ends_with(".md") {
            let text = git(&["show", &format!("HEAD:{file}")])?;
            lines.extend(line_of(&text).with_context(|| file.to_owned())?);
        }
    }
    let count = lines.len();
    let list: String = lines.into_iter().map(|line| line + "\n").collect();
    let text = format!(
        "# The RustSec advisory database, facts only (id, crate, kind, versions not concerned), of {date}\
         # Written by `cargo xtask lint --update-advisories FOLDER`. Each id names its full text.\n{list}"
    );
    parse(&text)?;
    fs::write(workspace.root().join(LIST), text)?;
    say(format_args!("{LIST}: {count} advisories of {}", date.trim()));
    Ok(())
}

/// The facts of one advisory, which is Markdown that starts with a TOML block. `None` if withdrawn.
fn line_of(markdown: &str) -> Result<Option<String>> {
    let block =
        markdown.trim_start().strip_prefix("```toml").context("does not start with TOML")?;
    let (block, _) = block.split_once("\n```").context("its TOML does not end")?;
    let table: toml::Table = block.parse()?;
    let advisory = table.get("advisory").context("no [advisory]")?;
    let text = |key: &str| advisory.get(key).and_then(|value| value.as_str());
    if text("withdrawn").is_some() {
        return Ok(None);
    }
    let mut safe = Vec::new();
    for key in ["patched", "unaffected"] {
        let ranges = table
            .get("versions")
            .and_then(|versions| versions.get(key))
            .and_then(|it| it.as_array());
        safe.extend(ranges.into_iter().flatten().filter_map(|it| it.as_str()).map(str::to_owned));
    }
    Ok(Some(format!(
        "{}\t{}\t{}\t{}",
        text("id").context("no id")?,
        text("package").context("no package")?,
        text("informational").unwrap_or("vulnerability").trim(),
        safe.join("|")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADVISORY: &str = "```toml\n[advisory]\nid = \"RUSTSEC-2024-0336\"\npackage = \"rustls\"\n\
        [versions]\npatched = [\">= 0.23.5\", \">= 0.22.4, < 0.23.0\"]\n```\n# Title\n";

    fn version(text: &str) -> Dependency {
        Dependency {
            name: "rustls".to_owned(),
            version: text.parse().expect("a version"),
            license: None,
            source: Some("registry+x".to_owned()),
        }
    }

    #[test]
    fn an_advisory_concerns_the_versions_outside_its_safe_ranges() {
        let line = line_of(ADVISORY).expect("TOML").expect("not withdrawn");
        let (date, advisories) = parse(&format!("# of 2026-01-02\n{line}\n")).expect("a list");
        assert_eq!(date, "2026-01-02");
        assert_eq!(hits(&advisories, &[version("0.23.4")]).len(), 1);
        assert_eq!(hits(&advisories, &[version("0.22.3")]).len(), 1);
        assert_eq!(hits(&advisories, &[version("0.22.4")]).len(), 0);
        assert_eq!(hits(&advisories, &[version("0.23.40")]).len(), 0);
    }

    #[test]
    fn a_withdrawn_advisory_is_left_out() {
        let withdrawn = ADVISORY.replace("[versions]", "withdrawn = \"2024-05-01\"\n[versions]");
        assert_eq!(line_of(&withdrawn).expect("TOML"), None);
    }

    #[test]
    fn the_repositorys_own_list_can_be_read() {
        let (_, advisories) = parse(include_str!("../../advisories.txt")).expect("a list");
        assert!(advisories.len() > 1000, "{}", advisories.len());
    }
}
