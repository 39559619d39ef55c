//! One `mtls-daemon` on one node: started, watched, killed, cleaned up after.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::bed::{Node, Testbed};
use crate::process::{Process, sibling};
use crate::{admin, leftovers, netns, wait};

/// How long a daemon may take until it is ready. Includes making the CA, on a busy machine.
pub const START: Duration = Duration::from_secs(30);
/// How long a change of configuration may take in tests that do not measure it.
pub const RELOAD: Duration = Duration::from_secs(10);
/// How long an access log line may be awaited.
pub const LOG: Duration = Duration::from_secs(10);

/// The address of metrics and readiness, in the node's network namespace.
pub const HTTP: &str = "127.0.0.1:15020";

/// How a daemon is to run.
#[derive(Debug, Clone)]
pub struct DaemonSpec {
    /// The node, its namespace and cgroup.
    pub node: Node,
    /// The name it gives itself; the node's own unless a test is about names.
    pub name: String,
    pub config: PathBuf,
    pub state: PathBuf,
    pub run: PathBuf,
    /// Shared by the nodes of a mesh.
    pub ca: PathBuf,
    /// More arguments.
    pub arguments: Vec<String>,
    /// A program that becomes the daemon, with its arguments: `env NAME=value`, `setpriv ...`.
    pub under: Vec<String>,
    /// Where names of nodes that need cleaning up are noted.
    nodes: PathBuf,
}

impl DaemonSpec {
    /// The daemon of node number `index`, with the testbed's directories.
    pub fn new(bed: &Testbed, index: usize) -> Self {
        let node = bed.nodes[index].clone();
        Self {
            name: node.name.clone(),
            config: bed.config_directory(),
            // One daemon's alone, as it would be on two machines.
            state: bed.directory.join("state").join(&node.name),
            node,
            run: leftovers::run_directory(&bed.directory),
            ca: bed.directory.join("ca"),
            arguments: Vec::new(),
            under: Vec::new(),
            nodes: leftovers::nodes_directory(&bed.directory),
        }
    }

    /// With another argument, and its value.
    #[must_use]
    pub fn with(mut self, flag: &str, value: &str) -> Self {
        self.arguments.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// Started by another program, which becomes it.
    #[must_use]
    pub fn under(mut self, program: &[&str]) -> Self {
        self.under = program.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// The command line, in the node's place.
    ///
    /// # Errors
    /// When the daemon is not built.
    pub fn command(&self) -> Result<Command> {
        let daemon = sibling("mtls-daemon", "MTLS_DAEMON_BIN")?;
        let mut command = match self.under.split_first() {
            None => self.node.place.command(daemon)?,
            Some((program, arguments)) => {
                let mut command = self.node.place.command(program)?;
                command.args(arguments).arg(daemon);
                command
            }
        };
        command.args(["run", "--node", &self.name]);
        for (flag, path) in [
            ("--config-dir", &self.config),
            ("--state-dir", &self.state),
            ("--run-dir", &self.run),
            ("--ca-dir", &self.ca),
        ] {
            command.arg(flag).arg(path);
        }
        command.args(&self.arguments);
        Ok(command)
    }

    /// Starts it, without waiting for anything.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(self) -> Result<Daemon> {
        let command = self.command()?;
        // Noted before it can pin anything: whoever finds the note cleans up.
        fs::write(self.nodes.join(&self.name), "")?;
        let process = Process::start(format!("mtls-daemon of {}", self.name), command)?;
        Ok(Daemon { spec: self, process, quiet: false })
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready; the text holds its own words.
    pub fn start(self) -> Result<Daemon> {
        let mut daemon = self.spawn()?;
        daemon.ready()?;
        Ok(daemon)
    }

    /// Starts it and waits until it refuses to run.
    ///
    /// # Errors
    /// When it goes on running.
    pub fn refused(self) -> Result<(ExitStatus, String)> {
        let name = self.name.clone();
        fs::write(self.nodes.join(&name), "")?;
        let mut process = Process::start(format!("mtls-daemon of {name}"), self.command()?)?;
        let status = process.wait(START).with_context(|| format!("{name} should refuse to run"))?;
        // The stream has ended with the process; its last lines may still be on their way.
        let _ = process.stderr.find_after(usize::MAX, Duration::from_secs(2), "", |_| Some(()));
        Ok((status, process.stderr.all().join("\n")))
    }
}

/// A running daemon. When dropped: SIGTERM, then SIGKILL, then `mtls-daemon cleanup`.
pub struct Daemon {
    pub spec: DaemonSpec,
    pub process: Process,
    /// Say nothing when dropped. Tests want to hear: the harness shows it when they fail.
    pub quiet: bool,
}

impl Daemon {
    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// When it ends or time passes first; the text holds its own words.
    pub fn ready(&mut self) -> Result<()> {
        let name = self.spec.name.clone();
        let ready = wait::until(START, &format!("the daemon of {name} to be ready"), || {
            if let Ok(Some(status)) = self.process.exited() {
                // Not worth waiting on: reported as the answer.
                return Ok(Err(anyhow!("the daemon ended: {status}")));
            }
            let status = self.status().map_err(|error| format!("{error:#}"))?;
            match status["ready"].as_bool() {
                Some(true) => Ok(Ok(())),
                _ => Err(format!("status says {status}")),
            }
        });
        ready.and_then(|inner| inner).with_context(|| self.words())
    }

    /// What it said at the end, the first failures that it logged and the last line, for an error's
    /// text.
    pub fn words(&self) -> String {
        let (said, mut logged) = (self.process.stderr.all(), self.process.stdout.all());
        let said = said[said.len().saturating_sub(30)..].join("\n  ");
        let last = logged.pop();
        logged.retain(|line| !line.contains(r#""outcome":"ok""#));
        logged.truncate(5);
        logged.extend(last);
        let name = &self.spec.name;
        format!("mtls-daemon of {name} said:\n  {said}\nand logged:\n  {}", logged.join("\n  "))
    }

    /// The admin socket's answer.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn status(&self) -> Result<Value> {
        let socket = self.spec.run.join(&self.spec.name).join("admin.sock");
        let (code, body) = admin::get_unix(&socket, "/status")?;
        ensure!(code == 200, "GET /status: {code}: {body}");
        serde_json::from_str(&body).with_context(|| format!("the status in JSON: {body}"))
    }

    /// The number of the configuration that is in force.
    ///
    /// # Errors
    /// When the status has none.
    pub fn generation(&self) -> Result<u64> {
        let status = self.status()?;
        status["config"]["generation"]
            .as_u64()
            .with_context(|| format!("status has no config.generation: {status}"))
    }

    /// Waits until a configuration later than `generation` is in force.
    ///
    /// # Errors
    /// When it does not come.
    pub fn reloaded_after(&self, generation: u64) -> Result<()> {
        let what = format!("{} to have a configuration after {generation}", self.spec.name);
        wait::until(RELOAD, &what, || match self.generation() {
            Ok(now) if now > generation => Ok(()),
            Ok(now) => Err(format!("generation is {now}")),
            Err(error) => Err(format!("{error:#}")),
        })
        .with_context(|| self.words())
    }

    /// GET of `path` at the address for metrics and readiness, from the node's namespace.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn http(&self, path: &str) -> Result<admin::Answer> {
        let address = HTTP.parse().context("an address")?;
        netns::inside(&self.spec.node.place.netns, || admin::get_tcp(address, path))
    }

    /// The sum over the metric's lines that hold all of `labels`.
    ///
    /// # Errors
    /// When metrics cannot be read. A metric that is not there is 0: nothing was counted yet.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        Ok(self.values(name, labels)?.into_iter().sum())
    }

    /// The same for a metric that must be there, where 0 would say something.
    ///
    /// # Errors
    /// When metrics cannot be read, or no line is such.
    pub fn reported(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let values = self.values(name, labels)?;
        ensure!(!values.is_empty(), "no metric {name} with {labels:?}");
        Ok(values.into_iter().sum())
    }

    fn values(&self, name: &str, labels: &[&str]) -> Result<Vec<f64>> {
        let (code, body) = self.http("/metrics")?;
        ensure!(code == 200, "GET /metrics: {code}");
        let named = |line: &&str| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        };
        let values = body.lines().filter(named).filter_map(|line| line.rsplit(' ').next());
        values.map(|value| value.parse().with_context(|| format!("{name}: {value}"))).collect()
    }

    /// Memory that it occupies now, in KiB.
    ///
    /// # Errors
    /// When it is gone.
    pub fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next()).context("VmRSS")?;
        number.parse().context("VmRSS in KiB")
    }

    /// Whether the daemon does without a feature of newer kernels.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn does_without(&self, feature: &str) -> Result<bool> {
        let status = self.status()?;
        let missing = status["kernel"]["without"].as_array();
        Ok(missing.is_some_and(|missing| missing.iter().any(|it| it == feature)))
    }

    /// How many connections the kernel programs decided so (`outbound_redirected`, ...).
    ///
    /// # Errors
    /// When metrics cannot be read.
    pub fn decided(&self, decision: &str) -> Result<f64> {
        self.metric("mtls_bpf_decisions_total", &[&format!("decision=\"{decision}\"")])
    }

    /// How many access log lines there are: a mark for [`Daemon::logged`].
    pub fn mark(&self) -> usize {
        self.process.stdout.len()
    }

    /// Waits for an access log line after `mark` that passes `is`.
    ///
    /// # Errors
    /// When none comes.
    pub fn logged(&self, mark: usize, what: &str, is: impl FnMut(&Value) -> bool) -> Result<Value> {
        self.process.stdout.find_json(mark, LOG, what, is).with_context(|| self.words())
    }

    /// Waits for a line of the daemon's own log that passes `is`.
    ///
    /// # Errors
    /// When none comes.
    pub fn said(&self, mark: usize, what: &str, is: impl Fn(&str) -> bool) -> Result<String> {
        self.process.stderr.find_after(mark, LOG, what, |line| is(line).then(|| line.to_owned()))
    }

    /// SIGKILL; what it pinned stays.
    ///
    /// # Errors
    /// When it does not die.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// SIGTERM, and waits for the orderly end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn term(&mut self) -> Result<ExitStatus> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(Duration::from_secs(20))
    }

    /// Starts it again (after [`Daemon::kill9`] or [`Daemon::term`]) and waits until it is ready.
    ///
    /// # Errors
    /// When it still runs, or does not become ready.
    pub fn restart(&mut self) -> Result<()> {
        if self.process.exited()?.is_none() {
            bail!("the daemon of {} still runs", self.spec.name);
        }
        let name = format!("mtls-daemon of {}", self.spec.name);
        self.process = Process::start(name, self.spec.command()?)?;
        self.ready()
    }

    /// `mtls-daemon cleanup`, as an operator would after taking the daemon away.
    ///
    /// # Errors
    /// When it fails.
    pub fn cleanup(&self) -> Result<()> {
        leftovers::cleanup_node(&self.spec.name, &self.spec.run)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.process.exited() {
            let _ = self.term();
        }
        let _ = self.kill9();
        if !self.quiet {
            eprintln!("{}", self.words());
        }
        if let Err(error) = self.cleanup() {
            eprintln!("{error:#}");
            assert!(std::thread::panicking(), "{error:#}");
        }
    }
}
