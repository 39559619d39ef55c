//! What `cargo xtask vm` promises of guests that go wrong. They boot a kernel, which takes qemu and a while:
//! `cargo test -p xtask --features vm`, as `.ci/run` does.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

const KERNEL: &str = "6.1";

/// `xtask vm exec` of one line of shell.
fn vm(options: &[&str], script: &str) -> Command {
    // As in a terminal: what is started in the background may have been told to ignore Ctrl-C.
    let mut xtask = Command::new("env");
    xtask.args(["--default-signal=INT,TERM", env!("CARGO_BIN_EXE_xtask")]);
    xtask.args(["vm", "exec", "--kernel", KERNEL]).args(options).args(["--", "sh", "-c", script]);
    xtask
}

/// Standard output of a run that is to fail.
fn failing(options: &[&str], script: &str) -> Result<String> {
    let Output { status, stdout, stderr } = vm(options, script).output()?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    assert_eq!(status.code(), Some(1), "{stdout}\n{}", String::from_utf8_lossy(&stderr));
    assert!(stdout.contains("kernels: 0 passed, 1 failed"), "{stdout}");
    Ok(stdout)
}

#[test]
fn a_command_that_fails_has_failed_and_one_that_works_has_passed() -> Result<()> {
    let stdout = failing(&[], "echo to be seen; exit 3")?;
    assert!(stdout.lines().any(|line| line == "   6.1 | to be seen"), "{stdout}");
    assert!(stdout.contains("sh: exit code 3"), "{stdout}");
    assert!(vm(&[], "true").status()?.success());
    Ok(())
}

#[test]
fn a_panic_is_a_failure_with_the_last_lines_of_the_console() -> Result<()> {
    let stdout = failing(&[], "echo before; sleep 1; echo c >/proc/sysrq-trigger")?;
    assert!(stdout.contains("the kernel panicked"), "{stdout}");
    let (_, last) = stdout.split_once("the last lines of 6.1:").context("no last lines")?;
    assert!(last.contains("| before"), "{stdout}");
    assert!(last.contains("Kernel panic - not syncing"), "{stdout}");
    Ok(())
}

#[test]
fn a_guest_that_hangs_is_ended_and_has_failed() -> Result<()> {
    let stdout = failing(&["--timeout", "60"], "echo before; sleep 100000")?;
    assert!(stdout.contains("no end after 60 s"), "{stdout}");
    let (_, last) = stdout.split_once("the last lines of 6.1:").context("no last lines")?;
    assert!(last.contains("| before"), "{stdout}");
    Ok(())
}

#[test]
fn a_guest_that_ends_without_a_result_has_failed() -> Result<()> {
    let stdout = failing(&[], "poweroff -f")?;
    assert!(stdout.contains("the guest ended without a result"), "{stdout}");
    assert!(stdout.contains("sh: no result"), "{stdout}");
    Ok(())
}

/// Without `tcp_diag`, older connections cannot be found, so they could not be ended.
#[test]
fn the_daemon_refuses_a_kernel_that_lists_no_tcp_sockets() -> Result<()> {
    let built = Command::new(env!("CARGO_BIN_EXE_xtask")).arg("build").output()?;
    let said = String::from_utf8_lossy(&built.stderr);
    ensure!(built.status.success(), "{said}");
    let daemon = said.lines().find_map(|line| line.strip_prefix("xtask: daemon: "));
    let daemon = daemon.with_context(|| format!("no daemon: {said}"))?;
    let run = format!("{daemon} run --node n --config-dir /c --state-dir /s; test $? = 69");
    let output =
        vm(&["--with", daemon], &format!("rmmod tcp_diag && mkdir /c && {run}")).output()?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{stdout}");
    for part in ["this kernel lacks SOCK_DESTROY", "CONFIG_INET_TCP_DIAG", "modprobe tcp_diag"] {
        ensure!(stdout.contains(part), "no word of {part}: {stdout}");
    }
    Ok(())
}

#[test]
fn ctrl_c_and_a_killed_run_leave_no_process() -> Result<()> {
    for signal in ["INT", "TERM", "KILL"] {
        let mut run = Run::start()?;
        let guests = run.guests()?;
        assert_eq!(guests.len(), 1, "{guests:?}");
        let status = run.end(signal)?;
        assert!(!status.success(), "{signal}: {status}");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !run.guests()?.is_empty() {
            assert!(Instant::now() < deadline, "{signal} left {:?}", run.guests()?);
            sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// A run whose guest is up and waits.
struct Run {
    xtask: Child,
    // Kept open: a closed pipe would end it as well.
    _stdout: BufReader<ChildStdout>,
}

impl Run {
    fn start() -> Result<Self> {
        let mut xtask = vm(&[], "echo it runs; sleep 100000").stdout(Stdio::piped()).spawn()?;
        let mut stdout = BufReader::new(xtask.stdout.take().context("no pipe")?);
        let mut line = String::new();
        while !line.ends_with("| it runs\n") {
            line.clear();
            ensure!(stdout.read_line(&mut line)? > 0, "it ended before it ran");
        }
        Ok(Self { xtask, _stdout: stdout })
    }

    /// Emulators that read this run's file system.
    fn guests(&self) -> Result<Vec<u32>> {
        let image = format!("-{}.cpio", self.xtask.id());
        let processes = fs::read_dir("/proc")?.filter_map(|entry| {
            let entry = entry.ok()?;
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            command
                .split(|&byte| byte == 0)
                .any(|arg| arg.ends_with(image.as_bytes()))
                .then_some(pid)
        });
        Ok(processes.collect())
    }

    fn end(&mut self, signal: &str) -> Result<ExitStatus> {
        let pid = self.xtask.id().to_string();
        ensure!(Command::new("kill").args(["-s", signal, &pid]).status()?.success());
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if let Some(status) = self.xtask.try_wait()? {
                return Ok(status);
            }
            sleep(Duration::from_millis(50));
        }
        bail!("{signal} does not end it")
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // It has ended, unless the test failed.
        let _ = self.xtask.kill();
        let _ = self.xtask.wait();
    }
}
