//! A slow end slows the other down; what is in between is not kept in the daemons' memory.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mtls_tests::World;
use mtls_tests::apps::{Meter, Noise};
use mtls_tests::client::{self, summary_of_noise};
use mtls_tests::wait::patience;
use mtls_tests::world::To;
use serde_json::Value;

const PORT: u16 = 9000;
const LENGTH: u64 = 256 << 20;
/// What a daemon may need for one connection whose reader is slow.
const GROWTH_KIB: u64 = 32 << 10;
/// No byte for so long: the sender is blocked.
const STILL: Duration = Duration::from_millis(700);

/// Sends the noise and its end, counting as it goes.
fn send(mut stream: TcpStream, sent: &AtomicU64) -> Result<()> {
    let mut noise = Noise::new(LENGTH);
    while let Some(piece) = noise.piece() {
        for part in piece.chunks(64 << 10) {
            stream.write_all(part)?;
            sent.fetch_add(part.len() as u64, Ordering::Relaxed);
        }
    }
    stream.shutdown(Shutdown::Write)?;
    // Until the other side has read it all.
    let (rest, end) = client::read_to_end(&mut stream)?;
    ensure!(rest.is_empty() && end == client::End::Clean, "the receiver ended {end:?}");
    Ok(())
}

fn receive(mut stream: TcpStream) -> Result<Value> {
    let (mut meter, mut bytes) = (Meter::default(), vec![0; 1 << 18]);
    loop {
        match stream.read(&mut bytes).with_context(|| format!("after {} bytes", meter.bytes))? {
            0 => return Ok(meter.summary()),
            read => meter.take(&bytes[..read]),
        }
    }
}

/// Waits until the sender gets no further, and says how far it got.
fn blocked(sent: &AtomicU64) -> Result<u64> {
    let deadline = Instant::now() + patience(client::LIMIT / 2);
    let (mut last, mut since) = (0, Instant::now());
    while since.elapsed() < STILL || last == 0 {
        ensure!(Instant::now() < deadline, "the sender is never blocked; it has sent {last}");
        thread::sleep(Duration::from_millis(20));
        let now = sent.load(Ordering::Relaxed);
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}

/// The client's and the server's end of a connection; both are the test's own.
fn pair(world: &World, to: SocketAddr) -> Result<(TcpStream, TcpStream)> {
    let listener = world.pod("httpbin-full").inside(|| Ok(TcpListener::bind(("::", PORT))?))?;
    thread::scope(|scope| {
        let accepted = scope.spawn(move || listener.accept());
        let mut client = world.pod("sleep-full").inside(|| client::connect(to))?;
        // The server's end is there once something was said.
        client.write_all(b"!")?;
        let (mut server, _) = accepted.join().expect("no panic")?;
        server.read_exact(&mut [0])?;
        server.set_read_timeout(Some(patience(client::LIMIT)))?;
        server.set_write_timeout(Some(patience(client::LIMIT)))?;
        Ok((client, server))
    })
}

fn check(upload: bool) -> Result<()> {
    let world = World::new()?;
    let (client, server) = pair(&world, To::Full.v4(PORT))?;
    let (sender, receiver) = if upload { (client, server) } else { (server, client) };
    let before = [world.a().resident()?, world.b().resident()?];
    let sent = AtomicU64::new(0);
    thread::scope(|scope| {
        let sending = scope.spawn(|| send(sender, &sent));
        let reached = blocked(&sent)?;
        ensure!(reached < LENGTH, "{reached} bytes went somewhere that nobody reads");
        for (daemon, before) in world.daemons.iter().zip(before) {
            let now = daemon.resident()?;
            let grown = now.saturating_sub(before);
            let name = &daemon.spec.name;
            ensure!(grown < GROWTH_KIB, "{name} grew by {grown} KiB, from {before} to {now}");
        }
        assert_eq!(receive(receiver)?, summary_of_noise(LENGTH));
        sending.join().expect("no panic")?;
        for (daemon, before) in world.daemons.iter().zip(before) {
            let grown = daemon.resident()?.saturating_sub(before);
            ensure!(grown < GROWTH_KIB, "{} kept {grown} KiB", daemon.spec.name);
        }
        Ok(())
    })
}

#[test]
fn a_server_that_does_not_read_blocks_its_client() -> Result<()> {
    check(true)
}

#[test]
fn a_client_that_does_not_read_blocks_its_server() -> Result<()> {
    check(false)
}
