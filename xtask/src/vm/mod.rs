//! `cargo xtask vm`: the same demo, tests and daemon under other kernels, each in a virtual machine.

mod cpio;
mod debian;
mod guest;
mod installed;
mod kernels;
mod modules;
mod payload;
mod report;
mod rootfs;

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{
    packages,
    shell::say,
    vm::{
        guest::Ended,
        kernels::{Kernel, Kernels},
        payload::Payload,
        report::Report,
    },
    workspace::Workspace,
};

/// Kernels that every change should work on, each long-term series and the newest; and one that is too
/// old, on which the daemon is to say so.
const MATRIX: &[&str] = &["5.10", "6.1", "6.12", "6.18", "7"];

/// The oldest series on which the daemon starts (docs/kernels.md). It only says what is expected: what
/// happens is what the daemon finds by probing.
const FLOOR: [u64; 2] = [5, 15];

/// Seconds that a kernel may take unless told otherwise: about twice what all tests take under emulation, two
/// guests at a time on two cores.
const LIMIT: u64 = 7200;

/// Run the demo, the tests or the daemon under other kernels, in virtual machines
///
/// Fetches qemu and Debian's kernels (once; they are cached, and after that no network is needed),
/// boots each kernel with nothing but the programs that are needed, and prints a table kernel x test.
/// A kernel that panics, hangs or ends without a result has failed. On a kernel below the daemon's floor
/// the demo and the tests are one check: it refuses to start with exit code 69, naming what is missing,
/// which is `refused (69)` in the table and counts as passed. Needs no root but for installing
/// qemu. Only x86-64.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Run the demo inside
    ///
    /// Whatever follows `--` is passed to the demo.
    Demo(Guests),
    /// Run the integration tests of tests/ inside: the same programs that `cargo xtask test` runs
    ///
    /// What follows `--` is passed to each test program: a filter, --nocapture.
    Test {
        /// Only this file of tests/tests (without .rs). May be repeated.
        #[arg(long = "test", value_name = "NAME")]
        only: Vec<String>,
        #[command(flatten)]
        guests: Guests,
    },
    /// Run the daemon inside, until it ends or until Ctrl-C
    ///
    /// What follows `--` is passed to mtls-daemon; without a verb in front, `run` is put there. Without
    /// --kernel it is the newest kernel only.
    Run(Guests),
    /// Run any command of this machine inside
    ///
    /// `cargo xtask vm exec --kernel 6.1 -- ip -details link`
    Exec(Guests),
}

#[derive(clap::Args)]
struct Guests {
    /// A series (6.12), a version (6.12.94) or a number in front of it (7: the newest 7.x). May be repeated.
    /// [default: 5.10 6.1 6.12 6.18 7]
    #[arg(long = "kernel", value_name = "VERSION")]
    kernels: Vec<String>,
    /// A kernel of your own, with the folder of its modules (/lib/modules/VERSION) if what guests need is
    /// not built in (docs/kernels.md). May be repeated; with it no other kernel is run unless named.
    #[arg(long = "image", value_name = "BZIMAGE[:MODULES]")]
    images: Vec<String>,
    /// Seconds that one kernel may take [default: 7200; none for `run`]
    #[arg(long)]
    timeout: Option<u64>,
    /// Memory of a guest in MiB
    #[arg(long, default_value_t = 3072)]
    memory: u32,
    /// A file or folder of this machine that is there inside as well, at the same path; a program with its
    /// libraries. May be repeated.
    #[arg(long, value_name = "PATH")]
    with: Vec<std::path::PathBuf>,
    /// Look for newer kernels than the cached ones
    #[arg(long)]
    refresh: bool,
    /// Where Debian's archive is, if this machine's own apt does not say: URL/debian, URL/debian-security
    #[arg(long, value_name = "URL", env = "MTLS_DEBIAN_MIRROR")]
    mirror: Option<String>,
    /// Optimised programs
    #[arg(long)]
    release: bool,
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<String>,
}

pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    if !cfg!(target_arch = "x86_64") {
        bail!("vm runs x86-64 kernels, on an x86-64 machine");
    }
    let (guests, matrix, limit) = match &args.verb {
        Verb::Demo(guests) | Verb::Test { guests, .. } | Verb::Exec(guests) => {
            (guests, MATRIX, Some(LIMIT))
        }
        Verb::Run(guests) => (guests, &MATRIX[MATRIX.len() - 1..], None),
    };
    packages::ensure(packages::VM)?;
    packages::ensure(packages::TEST)?;
    let payload = match &args.verb {
        Verb::Demo(_) => Payload::demo(workspace, guests.release, &guests.args)?,
        Verb::Test { only, .. } => Payload::tests(workspace, guests.release, only, &guests.args)?,
        Verb::Run(_) => Payload::daemon(workspace, guests.release, &guests.args)?,
        Verb::Exec(_) => Payload::command(&guests.args)?,
    };
    let asked: Vec<&str> = match guests.kernels.as_slice() {
        [] if guests.images.is_empty() => matrix.to_vec(),
        named => named.iter().map(String::as_str).collect(),
    };
    let mut archive = Kernels::open(workspace, guests.mirror.as_deref(), guests.refresh)?;
    // All of them first: a kernel that cannot be had is said before the first minute is spent.
    let mut kernels = Vec::new();
    for image in &guests.images {
        let kernel = Kernel::of_file(image, &rootfs::scratch(workspace)?)?;
        kernels.push((kernel.version.clone(), kernel));
    }
    for name in asked {
        let kernel = archive.get(name).with_context(|| format!("kernel {name}"))?;
        kernels.push((name.to_owned(), kernel));
    }

    let accelerator = guest::Accelerator::find();
    let mut report = Report::default();
    for (name, kernel) in &kernels {
        say(format_args!("vm: {name}: Linux {}", kernel.version));
        let refusal = if kernel.is_before(FLOOR) { payload.below_floor() } else { None };
        let payload = refusal.as_ref().unwrap_or(&payload);
        let settings = guest::Settings {
            name,
            memory: guests.memory,
            limit: guests.timeout.or(limit).map(Duration::from_secs),
            accelerator,
        };
        let ended = rootfs::write(workspace, kernel, payload, &guests.with).and_then(|image| {
            let ended = guest::boot(&settings, kernel, &image);
            let _ = std::fs::remove_file(&image);
            ended
        });
        // What the kernels before it came to is not lost.
        let ended = ended.unwrap_or_else(|error| Ended {
            fault: Some(format!("{error:#}")),
            ..Ended::default()
        });
        report.add(name, &kernel.version, payload, ended);
    }
    for (_, kernel) in &kernels[..guests.images.len()] {
        if let Some(modules) = &kernel.modules {
            let _ = std::fs::remove_dir_all(modules);
        }
    }
    report.print();
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
