//! The demo, as `cargo xtask demo` runs it: to its end, and left standing until Ctrl-C.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mtls_tests::leftovers;
use mtls_tests::process::{Process, bound, sibling};
use nix::sys::signal::Signal;

/// A whole walkthrough, on a busy machine.
const LIMIT: Duration = Duration::from_secs(240);

/// A running demo; what it leaves is removed when dropped.
struct Demo {
    process: Process,
    prefix: String,
}

impl Demo {
    fn start(arguments: &[&str]) -> Result<Self> {
        let mut command = bound(sibling("mtls-demo", "MTLS_DEMO_BIN")?);
        command.args(arguments);
        let process = Process::start("mtls-demo", command)?;
        // Its only testbed: one walkthrough is one town.
        let prefix = format!("mt{}x1", process.pid());
        Ok(Self { process, prefix })
    }

    /// Waits for a line that starts so.
    fn says(&self, start: &str) -> Result<()> {
        let starts = |line: &str| line.starts_with(start).then_some(());
        let said = self.process.stdout.find_after(0, LIMIT, start, starts);
        said.with_context(|| self.process.stderr.all().join("\n"))
    }

    /// Waits for its end: the exit code, once all of its output is here.
    fn ends(&mut self) -> Result<i32> {
        let status = self.process.wait(LIMIT)?;
        for stream in [&self.process.stdout, &self.process.stderr] {
            let _ = stream.find_after(usize::MAX, Duration::from_secs(5), "", |_| Some(()));
        }
        status.code().with_context(|| format!("{status}"))
    }

    /// Nothing of it is left, and there was something.
    fn left_nothing(&self, stood: &[String]) -> Result<()> {
        ensure!(!stood.is_empty(), "a town that stands is seen");
        let left = leftovers::remains(&self.prefix);
        ensure!(left.is_empty(), "left behind: {left:?}");
        Ok(())
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = leftovers::remove(&self.prefix);
    }
}

#[test]
fn the_demo_runs_to_its_end_with_proof_from_the_wire() -> Result<()> {
    let mut demo = Demo::start(&[])?;
    demo.says("Both daemons are ready")?;
    let stood = leftovers::remains(&demo.prefix);
    let code = demo.ends()?;
    let said = demo.process.stdout.all();
    let text = said.join("\n");
    ensure!(code == 0, "exit {code}: {text}\n{:?}", demo.process.stderr.all());
    ensure!(said.last().is_some_and(|last| last == "All as expected."), "{text}");
    ensure!(!text.contains("DIFFERS"), "{text}");
    // The walkthrough that it plays when not told otherwise, and its first and last step.
    for part in ["=== Walkthrough 4", "\nS4-2: ", "\nS4-7: ", "  ok\n"] {
        ensure!(text.contains(part), "no {part:?} in {text}");
    }
    let (before, proof) =
        text.split_once("On the wire between the nodes").context("the proof from the wire")?;
    ensure!(before.contains("response code: 200"), "{before}");
    let (identity, clear) = proof.split_once("and one in the clear").context("both kinds")?;
    // A TLS handshake, and `GET /`.
    for (part, first) in [(identity, "16 03 "), (clear, "47 45 54 20 2f ")] {
        let bytes = part.lines().find(|line| line.contains("  ") && line.trim().starts_with(first));
        ensure!(bytes.is_some(), "no bytes that start with {first}: {part}");
        ensure!(part.lines().any(|line| line.trim() == "ok"), "{part}");
    }
    demo.left_nothing(&stood)
}

#[test]
fn a_demo_that_is_kept_stands_until_ctrl_c_and_then_leaves_nothing() -> Result<()> {
    let mut demo = Demo::start(&["--walkthrough", "3", "--keep", "--ipv6"])?;
    demo.says("It stands until Ctrl-C")?;
    // Until it has said how to look around.
    demo.says("  edit ")?;
    let stood = leftovers::remains(&demo.prefix);
    demo.process.signal(Signal::SIGINT)?;
    let code = demo.ends()?;
    ensure!(code == 130, "exit {code}: {:?}", demo.process.stderr.all());
    ensure!(!demo.process.stdout.all().join("\n").contains("DIFFERS"), "all was as expected");
    demo.left_nothing(&stood)
}
