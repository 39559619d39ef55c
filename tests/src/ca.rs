//! One `mtls-daemon ca run`, in a pod of its own: started, asked, stopped, started again.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! # use mtls_tests::{Ca, World};
//! let mut world = World::without_daemons(&[Ca::pod(0)])?;
//! let ca = Ca::start(&world.bed, &[])?;
//! world.start(|spec| ca.joined(spec, &["full/sleep", "full/httpbin", "partial/httpbin"]))?;
//! ca.revoke(&["--identity", "full/sleep"])?;
//! # Ok(())
//! # }
//! ```

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::bed::{PodSpec, Testbed};
use crate::daemon::{DaemonSpec, LOG, START};
use crate::process::{Place, Process, output, sibling};
use crate::wait;

/// The pod that it runs in.
pub const POD: &str = "ca";
/// Where it listens.
pub const PORT: u16 = 15012;
/// The name in its certificate.
pub const NAME: &str = "ca.test";

/// A running CA. Killed when dropped.
pub struct Ca {
    /// What it keeps: `--dir`.
    pub directory: PathBuf,
    pub address: SocketAddr,
    pub process: Process,
    place: Place,
    /// Where tokens and the root are written for nodes.
    files: PathBuf,
    arguments: Vec<String>,
}

impl Ca {
    /// The pod to put among a testbed's, on node `node`. It is not enrolled: its TLS is its own.
    pub fn pod(node: usize) -> PodSpec {
        PodSpec::new(node, POD, 30)
    }

    /// Starts a new CA in the pod [`Ca::pod`], with more arguments, and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up; the text holds its own words.
    pub fn start(bed: &Testbed, arguments: &[&str]) -> Result<Self> {
        let pod = bed.pod(POD);
        let place = pod.place.clone();
        let files = bed.directory.join("nodes-files");
        fs::create_dir_all(&files)?;
        let directory = bed.directory.join("mesh-ca");
        let arguments = arguments.iter().map(|&it| it.to_owned()).collect::<Vec<_>>();
        let process = run(&place, &directory, &arguments)?;
        let address = pod.v4(PORT);
        Ok(Self { directory, address, process, place, files, arguments })
    }

    /// SIGTERM, and waits for the orderly end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        let status = self.process.wait(Duration::from_secs(20))?;
        ensure!(status.success(), "the CA ended with {status}: {:?}", self.process.stderr.all());
        Ok(())
    }

    /// Starts it again with what it kept, after [`Ca::stop`] or [`Process::kill`].
    ///
    /// # Errors
    /// When it still runs, or does not come up.
    pub fn restart(&mut self) -> Result<()> {
        if self.process.exited()?.is_none() {
            bail!("the CA still runs");
        }
        self.process = run(&self.place, &self.directory, &self.arguments)?;
        Ok(())
    }

    /// `mtls-daemon ca VERB…` as its operator types it, on this CA's directory; what it prints.
    ///
    /// # Errors
    /// When it fails, with its words.
    pub fn command(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(sibling("mtls-daemon", "MTLS_DAEMON_BIN")?);
        command.arg("ca").args(words).arg("--dir").arg(&self.directory);
        let output = output(command)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "mtls-daemon ca {}: {said}", words.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// `mtls-daemon ca revoke …`
    ///
    /// # Errors
    /// As [`Ca::command`].
    pub fn revoke(&self, words: &[&str]) -> Result<String> {
        self.command(&[&["revoke"], words].concat())
    }

    /// A new join token for `node`, which may run `identities` (`namespace/account`).
    ///
    /// # Errors
    /// As [`Ca::command`].
    pub fn token(&self, node: &str, identities: &[&str]) -> Result<String> {
        self.command(&["token", "create", "--node", node, "--identities", &identities.join(",")])
    }

    /// The file with the CA's roots as they are now, as a node gets it.
    ///
    /// # Errors
    /// As [`Ca::command`].
    pub fn root_file(&self) -> Result<PathBuf> {
        let file = self.files.join("root.pem");
        fs::write(&file, self.command(&["root", "show"])?)?;
        Ok(file)
    }

    /// The arguments of a daemon whose node joins this CA with `token_file`.
    ///
    /// # Errors
    /// As [`Ca::root_file`].
    pub fn arguments_for(&self, token_file: &Path) -> Result<Vec<String>> {
        let root = self.root_file()?;
        let path = |path: &Path| path.to_str().map(str::to_owned).context("a path in UTF-8");
        Ok(vec![
            "--identity-source".into(),
            "istio-ca".into(),
            "--ca-address".into(),
            self.address.to_string(),
            "--ca-server-name".into(),
            NAME.into(),
            "--ca-root".into(),
            path(&root)?,
            "--ca-join-token-file".into(),
            path(token_file)?,
        ])
    }

    /// The daemon with this CA for its identities, and a join token of its own.
    ///
    /// # Panics
    /// When the CA gives no token: a testbed that cannot be made.
    #[must_use]
    pub fn joined(&self, mut spec: DaemonSpec, identities: &[&str]) -> DaemonSpec {
        let made = || self.arguments_for(&self.renew_token(&spec, identities)?);
        let arguments = made().unwrap_or_else(|error| panic!("{error:#}"));
        spec.arguments.extend(arguments);
        spec
    }

    /// Writes a new join token for the daemon's node to its file, and says where that is.
    ///
    /// # Errors
    /// As [`Ca::command`].
    pub fn renew_token(&self, spec: &DaemonSpec, identities: &[&str]) -> Result<PathBuf> {
        let file = self.files.join(format!("{}.token", spec.name));
        fs::write(&file, self.token(&spec.name, identities)?)?;
        Ok(file)
    }

    /// A mark for [`Ca::audited`].
    pub fn mark(&self) -> usize {
        self.process.stdout.len()
    }

    /// Waits for a line of the audit log after `mark` that passes `is`.
    ///
    /// # Errors
    /// When none comes.
    pub fn audited(
        &self,
        mark: usize,
        what: &str,
        is: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        self.process.stdout.find_json(mark, LOG, what, is)
    }
}

fn run(place: &Place, directory: &Path, arguments: &[String]) -> Result<Process> {
    let mut command = place.command(sibling("mtls-daemon", "MTLS_DAEMON_BIN")?)?;
    command.args(["ca", "run", "--dns-name", NAME, "--listen", &format!("[::]:{PORT}")]);
    command.arg("--dir").arg(directory).args(arguments);
    let mut process = Process::start("the CA", command)?;
    wait::until(START, "the CA to serve", || match process.exited() {
        // Not worth waiting on: reported as the answer.
        Ok(Some(status)) => Ok(Err(anyhow::anyhow!("it ended: {status}"))),
        _ if process.stderr.all().iter().any(|line| line.contains("the CA serves")) => Ok(Ok(())),
        _ => Err("it does not say so yet".to_owned()),
    })
    .and_then(|inner| inner)
    .with_context(|| format!("the CA said: {:?}", process.stderr.all()))?;
    Ok(process)
}
