//! Shows the whole thing at work on this machine's kernel, and checks it.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use mtls_tests::demo::report;
use mtls_tests::walkthrough::{self, Family, Walkthrough};
use mtls_tests::{Town, leftovers};
use nix::sys::signal::{SigSet, Signal};

/// Two nodes with a daemon each, pods as network namespaces, real curl: who reaches whom, with which
/// identity, under which policy, and what crossed the wire.
#[derive(Parser)]
struct Arguments {
    /// 2: modes for the mesh, a namespace, a workload; 3: one service and who may reach it; 4:
    /// automatic mTLS
    #[arg(long, value_enum, default_value_t = Which::Four)]
    walkthrough: Which,
    /// Leave the (last) town standing, print how to look around, and clean up on Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Use IPv6 addresses
    #[arg(long)]
    ipv6: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    #[value(name = "2")]
    Two,
    #[value(name = "3")]
    Three,
    #[value(name = "4")]
    Four,
    All,
}

impl Which {
    fn has(self, walkthrough: &Walkthrough) -> bool {
        match self {
            Self::Two => walkthrough.number == 2,
            Self::Three => walkthrough.number == 3,
            Self::Four => walkthrough.number == 4,
            Self::All => true,
        }
    }
}

const WHAT: &str = "\
Each pod is a network namespace; the applications are curl (sleep) and a small HTTP server in the
manner of httpbin, and know nothing of TLS. httpbin.<namespace> is a service: 8000 at a virtual
address, to 80 in its pods. The wire between the nodes is captured.";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    clean_up_on_signals();
    match run(&arguments) {
        Ok(true) => {
            println!("\nAll as expected.");
            ExitCode::SUCCESS
        }
        Ok(false) => {
            println!("\nSomething differs: see the lines marked DIFFERS.");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("\nThe demo could not be completed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Blocks SIGINT and SIGTERM for all threads, and gives them to one that cleans up.
fn clean_up_on_signals() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    if let Err(error) = signals.thread_block() {
        eprintln!("Ctrl-C will not clean up ({error}); the next run does");
        return;
    }
    std::thread::spawn(move || {
        let _ = signals.wait();
        eprintln!("\nCleaning up...");
        // The main thread may be in the middle of making something.
        for _ in 0..3 {
            if let Err(error) = leftovers::remove_own() {
                eprintln!("{error:#}");
            }
        }
        std::process::exit(130);
    });
}

fn run(arguments: &Arguments) -> Result<bool> {
    let chosen: Vec<Walkthrough> =
        walkthrough::all().into_iter().filter(|it| arguments.walkthrough.has(it)).collect();
    println!("{WHAT}");
    let mut agree = true;
    for (index, walkthrough) in chosen.iter().enumerate() {
        agree &= walk(walkthrough, arguments, index + 1 == chosen.len())?;
    }
    Ok(agree)
}

fn walk(walkthrough: &Walkthrough, arguments: &Arguments, last: bool) -> Result<bool> {
    let family = if arguments.ipv6 { Family::V6 } else { Family::V4 };
    println!("\n=== Walkthrough {}: {}\n", walkthrough.number, walkthrough.title);
    println!("{}", report::town(walkthrough));
    let started = Instant::now();
    let mut town = Town::of(walkthrough)?;
    println!("\nBoth daemons are ready after {:.1} s.", started.elapsed().as_secs_f32());
    let mut say = |line: &str| println!("{line}");
    let result = walkthrough::play(&mut town, walkthrough, family, &mut say)
        .and_then(|played| Ok(report::proof(&played, &mut say)? && played.differing.is_empty()));
    if let Err(error) = &result {
        // Said before the cleanup, which may have words of its own.
        eprintln!("\n{error:#}");
    }
    if arguments.keep && last {
        keep(&town);
    }
    println!("\nCleaning up...");
    for daemon in &mut town.world.daemons {
        daemon.quiet = true;
    }
    result
}

fn keep(town: &Town) {
    let world = &town.world;
    let (a, run) = (world.node(0), leftovers::run_directory(&world.bed.directory));
    println!("\nIt stands until Ctrl-C. Look around:");
    let client = town.members.iter().find(|it| it.app == "sleep" && it.enrolled);
    if let (Some(client), Some(server)) = (client, town.members.iter().find(|it| it.app != "sleep"))
    {
        println!(
            "  nsenter --net={} curl http://{}/headers",
            world.pod(client.pod).place.netns.display(),
            town.service(server.namespace, Family::V4, mtls_tests::world::SERVICE_PORT)
        );
    }
    println!("  mtls-daemon status --node {} --run-dir {}", a.name, run.display());
    println!(
        "  nsenter --net={} curl http://{}/metrics",
        a.place.netns.display(),
        mtls_tests::daemon::HTTP
    );
    println!("  edit {}/mesh.yaml: it is reloaded", world.bed.config_directory().display());
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
