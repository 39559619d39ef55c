//! Processes in a network namespace and a cgroup.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lines::Lines;
use crate::wait;

/// A program built beside this one (`mtls-testbed`, `mtls-daemon`, `mtls-demo`), or where `variable` points.
///
/// # Errors
/// When it has not been built.
pub fn sibling(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let here = std::env::current_exe().context("finding the current executable")?;
    let mut directory = here.parent().context("the current executable has no directory")?;
    if directory.file_name() == Some(OsStr::new("deps")) {
        directory = directory.parent().context("deps has no parent")?;
    }
    let path = directory.join(name);
    ensure!(
        path.exists(),
        "{} is not built: run `cargo xtask build`, or set {variable}",
        path.display()
    );
    Ok(path)
}

/// A command of this host, in no testbed's namespace. As in a [`Place`], the kernel kills it with the thread
/// that starts it, and Ctrl-C is not for it.
pub fn bound(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).process_group(0);
    command
}

/// Where a process runs.
#[derive(Debug, Clone)]
pub struct Place {
    pub netns: PathBuf,
    pub cgroup: Option<PathBuf>,
}

impl Place {
    /// A command that will run here. `mtls-testbed exec` enters the namespace and the cgroup and
    /// then becomes the program, so the process' id is the program's own.
    ///
    /// # Errors
    /// When the launcher is not built.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = Command::new(sibling("mtls-testbed", "MTLS_TESTBED_BIN")?);
        command.arg("exec").arg("--netns").arg(&self.netns);
        if let Some(cgroup) = &self.cgroup {
            command.arg("--cgroup").arg(cgroup);
        }
        // Of its own process group: Ctrl-C is for us, who then end it in order.
        command.arg("--").arg(program).process_group(0);
        Ok(command)
    }
}

/// A running process whose output is collected. Killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    pub stdout: Lines,
    pub stderr: Lines,
}

impl Process {
    /// Starts `command`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: impl Into<String>, mut command: Command) -> Result<Self> {
        let name = name.into();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
        let stdout = Lines::of(child.stdout.take().context("stdout is piped")?);
        let stderr = Lines::of(child.stderr.take().context("stderr is piped")?);
        Ok(Self { name, child, stdout, stderr })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("process id")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// The exit status, if it has ended.
    ///
    /// # Errors
    /// When the kernel cannot say.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for the end of the process.
    ///
    /// # Errors
    /// When `limit` passes first.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        wait::until(limit, &format!("{name} to end"), || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("still running".into()),
            Err(error) => Err(error.to_string()),
        })
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            self.child.kill()?;
            self.child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be started. Its exit status is the caller's to judge.
pub fn output(mut command: Command) -> Result<Output> {
    command.stdin(Stdio::null());
    command.output().with_context(|| format!("running {:?}", command.get_program()))
}

/// One `ip -batch`, in the namespace named by the end of the path `netns` or in our own: many
/// changes at the price of one process.
///
/// # Errors
/// When any of the lines fails.
pub fn ip(netns: Option<&Path>, script: &str) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(name) = netns.and_then(Path::file_name) {
        command.arg("-n").arg(name);
    }
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("running ip (is iproute2 installed?)")?;
    child.stdin.take().context("stdin is piped")?.write_all(script.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("ip {netns:?}: {}in:\n{script}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
