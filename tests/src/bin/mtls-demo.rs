//! Shows the whole thing at work on this machine's kernel, and checks it.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use mtls_tests::demo::{Attempt, Crossing, Expected, Family, From, Row, attempt, phases, report};
use mtls_tests::world::To;
use mtls_tests::{Capture, World, leftovers};
use nix::sys::signal::{SigSet, Signal};

/// Two nodes with a daemon each, six pods as network namespaces, real curl: who reaches whom, with
/// which identity, under which policy, and what crossed the wire.
#[derive(Parser)]
struct Arguments {
    /// Leave it standing, print how to look around, and clean up on Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Use IPv6 addresses
    #[arg(long)]
    ipv6: bool,
}

const WHAT: &str = "\
Two nodes, each with its own mtls-daemon, joined by a wire that is captured:

  node a   full/sleep (enrolled)     legacy/sleep (not enrolled)
  node b   full/httpbin (enrolled)   partial/httpbin (one enrolled, one not)   legacy/httpbin (not)

Each is a network namespace; the applications are curl and a small HTTP server, and know nothing
of TLS. Services: 8000 at a virtual address, to 80 in the pods.
";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    clean_up_on_signals();
    println!("{WHAT}");
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
    let family = if arguments.ipv6 { Family::V6 } else { Family::V4 };
    let started = Instant::now();
    let mut world = World::new()?;
    println!("Both daemons are ready after {:.1} s.", started.elapsed().as_secs_f32());
    let result = matrices(&mut world, family);
    if let Err(error) = &result {
        // Said before the cleanup, which may have words of its own.
        eprintln!("\n{error:#}");
    }
    if arguments.keep {
        keep(&world);
    }
    println!("\nCleaning up...");
    for daemon in &mut world.daemons {
        daemon.quiet = result.is_ok();
    }
    result
}

fn matrices(world: &mut World, family: Family) -> Result<bool> {
    let capture = Capture::start(world.node(0))?;
    let mut agree = true;
    let mut seen: Vec<Attempt> = Vec::new();
    for (number, phase) in phases().into_iter().enumerate() {
        println!("\n{}. {}\n{}", number + 1, phase.title, report::heading());
        if number > 0 {
            world.change(phase.change)?;
        }
        for row in &phase.rows {
            let attempt = attempt(world, &capture, row, family)?;
            let (line, agrees) = report::line(row, &attempt);
            println!("{line}");
            agree &= agrees;
            seen.push(attempt);
        }
        if number == 0 {
            agree &= both_endpoints(world, &capture, family)?;
        }
    }
    Ok(agree & proof(&seen)?)
}

/// Ten requests to the service with an endpoint of each kind: the answer is per connection.
fn both_endpoints(world: &World, capture: &Capture, family: Family) -> Result<bool> {
    let row = Row { from: From::Full, to: To::Partial, pod: None, expected: Expected::Either };
    let (mut with, mut without, mut problem) = (0, 0, None);
    // All ten on one side happens once in 500 runs; then ten more.
    for tries in [10, 20, 40] {
        while with + without < tries {
            let attempt = attempt(world, capture, &row, family)?;
            problem = problem.or(row.expected.differs(&attempt));
            *(if attempt.identity.is_some() { &mut with } else { &mut without }) += 1;
        }
        if with > 0 && without > 0 {
            break;
        }
    }
    let differs = problem
        .or_else(|| (with == 0 || without == 0).then(|| "only one of the two was reached".into()));
    println!(
        "\n  full -> partial, {} tries: {with} with identity, {without} in plaintext  {}",
        with + without,
        report::verdict(differs.as_deref())
    );
    Ok(differs.is_none())
}

/// The first bytes of one encrypted and one plaintext connection, as they crossed.
fn proof(seen: &[Attempt]) -> Result<bool> {
    let flow = |crossing| {
        let found = seen.iter().find(|attempt| attempt.code == 200 && attempt.wire == crossing);
        found.and_then(|attempt| attempt.flow.as_ref())
    };
    let encrypted = flow(Crossing::Encrypted).context("no encrypted connection was captured")?;
    let clear = flow(Crossing::Clear).context("no plaintext connection was captured")?;
    let hello = report::is_client_hello(&encrypted.to_server.bytes()?);
    let get = clear.to_server.bytes()?.starts_with(b"GET /headers HTTP/1.1\r\n");
    println!(
        "\nOn the wire between the nodes: a connection of identity (16 03 .. is a TLS handshake)"
    );
    print!("{}", report::first_bytes(encrypted)?);
    println!("  {}", report::verdict((!hello).then_some("not a TLS ClientHello")));
    println!("and one in the clear");
    print!("{}", report::first_bytes(clear)?);
    println!("  {}", report::verdict((!get).then_some("not an HTTP request")));
    Ok(hello && get)
}

fn keep(world: &World) {
    let (a, run) = (world.node(0), leftovers::run_directory(&world.bed.directory));
    println!("\nIt stands until Ctrl-C. Look around:");
    println!(
        "  nsenter --net={} curl http://{}/headers",
        world.pod("sleep-full").place.netns.display(),
        To::Full.v4(8000)
    );
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
