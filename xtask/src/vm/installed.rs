//! The files of packages that are installed on this machine, for guests that run their programs.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::shell::output;

/// What a program does not read: it would only fill a guest's memory.
const LEFT_OUT: &[&str] = &[
    "/usr/share/doc/",
    "/usr/share/fonts/",
    "/usr/share/javascript/",
    "/usr/share/lintian/",
    "/usr/share/locale/",
    "/usr/share/man/",
    "/usr/share/sphinx_rtd_theme/",
];

/// Every file of these packages and of all that they depend on.
///
/// # Errors
/// When one of them is not installed, or there is no dpkg.
pub fn files(packages: &[&str]) -> Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    let mut waiting: Vec<String> = packages.iter().map(|&name| name.to_owned()).collect();
    let mut seen = BTreeSet::new();
    while let Some(name) = waiting.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let Ok(list) = output(Command::new("dpkg-query").args(["--listfiles", &name])) else {
            // One of several alternatives, or a virtual package.
            anyhow::ensure!(
                !packages.contains(&name.as_str()),
                "the files of the package {name} are unknown: dpkg does not have it"
            );
            continue;
        };
        files.extend(list.lines().filter(|path| is_wanted(path)).map(PathBuf::from));
        let depends = output(Command::new("dpkg-query").args([
            "--show",
            "--showformat=${Depends}, ${Pre-Depends}",
            &name,
        ]))
        .with_context(|| format!("the package {name}"))?;
        waiting.extend(names(&depends));
    }
    Ok(files)
}

fn is_wanted(path: &str) -> bool {
    // Packages list folders too, and links to them (/bin). A file that one lists may have been removed since.
    !LEFT_OUT.iter().any(|folder| path.starts_with(folder)) && Path::new(path).is_file()
}

/// `libc6 (>= 2.36), awk | mawk:any` names three packages.
fn names(depends: &str) -> impl Iterator<Item = String> + '_ {
    depends.split([',', '|']).filter_map(|one| {
        let name = one.trim().split([' ', '(', ':']).next()?;
        (!name.is_empty()).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn versions_and_architectures_are_no_part_of_a_name() {
        let names: Vec<_> = names("libc6 (>= 2.36), awk | mawk:any, , python3.11").collect();
        assert_eq!(names, ["libc6", "awk", "mawk", "python3.11"]);
    }
}
