//! What cargo built, and where: taken from cargo's own messages, since `CARGO_TARGET_DIR`, profiles
//! and targets all move it.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::workspace::Workspace;

/// The programs that the demo and the tests are made of.
pub struct Binaries {
    pub daemon: PathBuf,
    artifacts: Vec<Artifact>,
}

/// One executable that cargo made.
pub struct Artifact {
    pub package: String,
    pub target: String,
    pub kind: Kind,
    pub executable: PathBuf,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    Program,
    /// The tests inside a library or a program.
    UnitTest,
    /// A file in a package's tests/.
    IntegrationTest,
}

impl Binaries {
    /// Builds the daemon and the tests' programs. The kernel object must be there.
    ///
    /// # Errors
    /// When the build fails.
    pub fn build(workspace: &Workspace, release: bool) -> Result<Self> {
        let mut cargo = workspace.cargo();
        cargo.args(["build", "--package", "mtls-daemon", "--package", "mtls-tests", "--bins"]);
        if release {
            cargo.arg("--release");
        }
        Self::from_artifacts(executables(&mut cargo)?)
    }

    /// # Errors
    /// When the daemon is not among them.
    pub fn from_artifacts(artifacts: Vec<Artifact>) -> Result<Self> {
        let daemon = find(&artifacts, "mtls-daemon", "mtls-daemon")
            .context("cargo built no mtls-daemon program")?
            .to_owned();
        Ok(Self { daemon, artifacts })
    }

    /// A program of the `mtls-tests` package.
    ///
    /// # Errors
    /// When that package has no such program.
    pub fn tests_program(&self, name: &str) -> Result<&Path> {
        find(&self.artifacts, "mtls-tests", name)
            .with_context(|| format!("the package mtls-tests has no program {name}"))
    }

    /// Every program that was built.
    pub fn all(&self) -> impl Iterator<Item = &Path> {
        self.artifacts
            .iter()
            .filter(|it| it.kind == Kind::Program)
            .map(|it| it.executable.as_path())
    }

    /// Tells a program where the others are.
    pub fn environment(&self) -> Vec<(String, String)> {
        let mut environment =
            vec![("MTLS_DAEMON_BIN".to_owned(), self.daemon.display().to_string())];
        for (program, variable) in
            [("mtls-testbed", "MTLS_TESTBED_BIN"), ("mtls-demo", "MTLS_DEMO_BIN")]
        {
            if let Ok(path) = self.tests_program(program) {
                environment.push((variable.to_owned(), path.display().to_string()));
            }
        }
        environment
    }
}

fn find<'a>(artifacts: &'a [Artifact], package: &str, target: &str) -> Option<&'a Path> {
    artifacts
        .iter()
        .find(|it| it.package == package && it.target == target && it.kind == Kind::Program)
        .map(|it| it.executable.as_path())
}

/// Runs a `cargo build` or `cargo test --no-run` and returns the executables it made.
///
/// # Errors
/// When cargo fails; its own messages have gone to the terminal.
pub fn executables(cargo: &mut Command) -> Result<Vec<Artifact>> {
    cargo.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let mut child = cargo.spawn().context("cannot start cargo")?;
    let stdout = child.stdout.take().context("cargo has no standard output")?;
    let mut artifacts = Vec::new();
    for line in BufReader::new(stdout).lines() {
        // A build script or a test may print whatever it likes; only cargo's own lines count.
        if let Ok(message) = serde_json::from_str::<Value>(&line?) {
            artifacts.extend(artifact(&message));
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("the build failed: {status}");
    }
    Ok(artifacts)
}

fn artifact(message: &Value) -> Option<Artifact> {
    if message["reason"] != "compiler-artifact" {
        return None;
    }
    let target = &message["target"];
    let kind = match (message["profile"]["test"].as_bool()?, target["kind"][0].as_str()?) {
        (false, _) => Kind::Program,
        (true, "test") => Kind::IntegrationTest,
        (true, _) => Kind::UnitTest,
    };
    Some(Artifact {
        package: package_name(message["package_id"].as_str()?)?,
        target: target["name"].as_str()?.to_owned(),
        kind,
        executable: PathBuf::from(message["executable"].as_str()?),
    })
}

/// A package id is `path+file:///folder/NAME#VERSION`, or `...#NAME@VERSION` where the names differ.
fn package_name(id: &str) -> Option<String> {
    let (path, fragment) = id.rsplit_once('#')?;
    let name = match fragment.split_once('@') {
        Some((name, _)) => name,
        None => path.rsplit('/').next()?,
    };
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::package_name;

    #[test]
    fn a_package_id_names_its_package() {
        let name = |id| package_name(id).expect("a name");
        assert_eq!(name("path+file:///src/mtls-daemon#0.1.0"), "mtls-daemon");
        assert_eq!(name("path+file:///src/tests#mtls-tests@0.1.0"), "mtls-tests");
        assert_eq!(package_name("mtls-daemon"), None);
    }
}
