//! One boot: qemu, what the guest prints, and how it ended.

use std::{
    collections::{HashMap, VecDeque},
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::kernels::Kernel;

pub struct Settings<'a> {
    /// Before each line of output.
    pub name: &'a str,
    /// In MiB.
    pub memory: u32,
    pub limit: Option<Duration>,
    pub accelerator: Accelerator,
}

/// What is known after a guest has ended, however it ended.
#[derive(Default)]
pub struct Ended {
    /// In the order of their ends.
    pub steps: Vec<StepEnd>,
    /// Each test that a test program of the numbered step reported, with its word for how it went; and the
    /// verifier's counts.
    pub tests: Vec<(usize, String, String)>,
    /// How many passed, of each step that counts its tests.
    pub passed: HashMap<usize, u64>,
    /// Why the guest did not come to its end by itself.
    pub fault: Option<String>,
    /// The last lines of the console.
    pub last_lines: Vec<String>,
    pub took: Duration,
}

pub struct StepEnd {
    /// Its number in the payload.
    pub step: usize,
    pub code: i32,
    pub seconds: u64,
}

/// A panic with its trace, and what came before it.
const LAST_LINES: usize = 80;

/// Boots a kernel and waits for its end.
///
/// # Errors
/// When qemu cannot be started. What goes wrong inside is in the answer.
pub fn boot(settings: &Settings, kernel: &Kernel, initramfs: &Path) -> Result<Ended> {
    let result = initramfs.with_extension("result");
    fs::write(&result, "")?;
    let start = Instant::now();
    let mut qemu = Guest::start(settings, kernel, initramfs, &result)?;
    let mut ended = watch(settings, &mut qemu)?;
    drop(qemu);
    ended.took = start.elapsed();
    let text = fs::read_to_string(&result)?;
    fs::remove_file(&result)?;
    for line in text.lines().map(str::trim) {
        ended.steps.extend(step_end(line));
    }
    if ended.fault.is_none() && !text.lines().any(|line| line.trim() == "end") {
        ended.fault = Some("the guest ended without a result".to_owned());
    }
    Ok(ended)
}

/// A running qemu; ended with its owner.
struct Guest {
    child: Child,
    lines: Receiver<String>,
}

impl Guest {
    fn start(
        settings: &Settings,
        kernel: &Kernel,
        initramfs: &Path,
        result: &Path,
    ) -> Result<Self> {
        // setpriv: should this program be killed, the kernel kills qemu.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-monitor",
                "none",
                "-machine",
                "pc",
            ])
            .args(settings.accelerator.arguments())
            .args(["-cpu", "max", "-smp", "2", "-m", &settings.memory.to_string(), "-no-reboot"])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", "console=ttyS0 panic=-1 quiet"])
            .args(["-serial", "stdio", "-serial", &format!("file:{}", result.display())])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = qemu.spawn().context("cannot start qemu")?;
        let console = child.stdout.take().context("qemu has no standard output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || read_lines(console, &sender));
        Ok(Self { child, lines })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_lines(console: impl Read, sender: &mpsc::Sender<String>) {
    let mut console = BufReader::new(console);
    let mut bytes = Vec::new();
    while console.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
        let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        bytes.clear();
        if sender.send(line).is_err() {
            return;
        }
    }
}

fn watch(settings: &Settings, guest: &mut Guest) -> Result<Ended> {
    let mut deadline = settings.limit.map(|limit| Instant::now() + limit);
    let mut ended = Ended::default();
    let mut last = VecDeque::new();
    let mut step = 0;
    loop {
        let wait = deadline
            .map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
        match guest.lines.recv_timeout(wait) {
            Ok(line) => {
                if let Some(number) = line.strip_prefix("== step ").and_then(|it| it.parse().ok()) {
                    step = number;
                    continue;
                }
                println!("{:>6} | {line}", settings.name);
                if let Some((test, word)) = test_line(&line) {
                    ended.tests.push((step, test.to_owned(), word.to_owned()));
                }
                if let Some(count) = passed(&line) {
                    *ended.passed.entry(step).or_default() += count;
                }
                if let Some((program, count)) = instructions(&line) {
                    ended.tests.push((
                        step,
                        format!("instructions of {program}"),
                        count.to_owned(),
                    ));
                }
                if line.contains("Kernel panic - not syncing") && ended.fault.is_none() {
                    ended.fault = Some("the kernel panicked".to_owned());
                    // It restarts the machine at once, which ends qemu; if not, this does.
                    deadline = Some(Instant::now() + Duration::from_secs(5));
                }
                last.push_back(line);
                if last.len() > LAST_LINES {
                    last.pop_front();
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                let limit = settings.limit.unwrap_or_default().as_secs();
                ended.fault.get_or_insert_with(|| format!("no end after {limit} s"));
                break;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    ended.last_lines = last.into();
    Ok(ended)
}

/// `STEP CODE SECONDS`, as the guest's first program writes it to the second serial port.
fn step_end(line: &str) -> Option<StepEnd> {
    let mut words = line.split(' ');
    let step = words.next()?.parse().ok()?;
    let code = words.next()?.parse().ok()?;
    let seconds = words.next()?.parse().ok()?;
    Some(StepEnd { step, code, seconds })
}

/// `test NAME ... WORD`, as the test harness writes it.
fn test_line(line: &str) -> Option<(&str, &str)> {
    let (name, word) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let word = word.split([',', ' ']).next()?;
    let name = name.strip_suffix(" - should panic").unwrap_or(name);
    matches!(word, "ok" | "FAILED" | "ignored").then_some((name, word))
}

/// `test result: ok. COUNT passed; ..`, the harness' last line.
fn passed(line: &str) -> Option<u64> {
    let (_, said) = line.strip_prefix("test result: ")?.split_once(". ")?;
    said.split_once(" passed;")?.0.parse().ok()
}

/// `verified instructions: PROGRAM COUNT`, as the test `programs` writes it.
fn instructions(line: &str) -> Option<(&str, &str)> {
    let (_, said) = line.split_once("verified instructions: ")?;
    let (program, count) = said.split_once(' ')?;
    count.parse::<u64>().ok()?;
    Some((program, count))
}

/// How guests' instructions are carried out.
#[derive(Clone, Copy)]
pub enum Accelerator {
    Kvm,
    Emulation,
}

impl Accelerator {
    /// KVM where it works. Opening the device says little: it may refuse to make a machine, or to make
    /// the one that is wanted (nested virtualisation, in whole or in part). So one is made.
    pub fn find() -> Self {
        let usable = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
            && Self::try_kvm().is_ok();
        if usable { Self::Kvm } else { Self::Emulation }
    }

    fn try_kvm() -> Result<()> {
        let mut probe = Command::new("timeout");
        probe.args([
            "--signal=KILL",
            "10",
            "qemu-system-x86_64",
            "-nodefaults",
            "-display",
            "none",
        ]);
        probe.args(["-machine", "pc", "-cpu", "max", "-smp", "2", "-S", "-monitor", "stdio"]);
        probe
            .args(Self::Kvm.arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut probe = probe.spawn()?;
        // It may have ended already, and then says so by its exit code.
        let _ = probe.stdin.take().context("no standard input")?.write_all(b"quit\n");
        ensure!(probe.wait()?.success(), "KVM makes no such machine");
        Ok(())
    }

    fn arguments(self) -> [&'static str; 2] {
        match self {
            Self::Kvm => ["-accel", "kvm"],
            Self::Emulation => ["-accel", "tcg,thread=multi"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{instructions, passed, test_line};

    #[test]
    fn the_harness_lines_are_read() {
        assert_eq!(test_line("test strict::refuses ... ok"), Some(("strict::refuses", "ok")));
        assert_eq!(test_line("test a ... FAILED"), Some(("a", "FAILED")));
        assert_eq!(test_line("test a ... ignored, no reason"), Some(("a", "ignored")));
        assert_eq!(test_line("test a - should panic ... ok"), Some(("a", "ok")));
        assert_eq!(test_line("test a has been running for over 60 seconds"), None);
        assert_eq!(test_line("test result: ok. 1 passed"), None);
    }

    #[test]
    fn the_harness_count_is_read() {
        let line = |ok: u64| format!("test result: ok. {ok} passed; 0 failed; 0 ignored");
        assert_eq!(passed(&line(0)), Some(0));
        assert_eq!(passed(&line(12)), Some(12));
        assert_eq!(passed("test result: FAILED. 3 passed; 1 failed; 0 ignored"), Some(3));
        assert_eq!(passed("test a ... ok"), None);
    }

    #[test]
    fn the_verifiers_counts_are_read() {
        let line = "verified instructions: mtls_inbound 858";
        assert_eq!(instructions(line), Some(("mtls_inbound", "858")));
        // The harness may have begun its own line.
        assert_eq!(instructions(&format!("test a ... {line}")), Some(("mtls_inbound", "858")));
        assert_eq!(instructions("verified instructions: mtls_inbound none"), None);
    }
}
