//! Five thousand connections at once, all of them alive.
#![forbid(unsafe_code)]

use std::net::TcpStream;

use anyhow::Result;
use mtls_tests::World;
use mtls_tests::client::{self, ping};
use mtls_tests::wait::until;
use mtls_tests::world::{To, serve};

const CONNECTIONS: usize = 5_000;
const THREADS: usize = 10;

#[test]
fn five_thousand_are_open_at_once_and_each_is_answered() -> Result<()> {
    client::raise_descriptor_limit();
    let world = World::new()?;
    let _echo = serve(world.pod("httpbin-full"), "echo", 9000)?;
    let client = world.pod("sleep-full");
    let mut groups: Vec<Vec<TcpStream>> = std::thread::scope(|scope| {
        let open = |group: usize| {
            client.inside(|| {
                (0..CONNECTIONS / THREADS)
                    .map(|number| {
                        let mut stream = client::connect(To::Full.v4(9000))?;
                        ping(&mut stream, &format!("first words of {group}/{number}"))?;
                        Ok(stream)
                    })
                    .collect::<Result<Vec<_>>>()
            })
        };
        let threads: Vec<_> = (0..THREADS).map(|group| scope.spawn(move || open(group))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Result<_>>()
    })?;
    for (daemon, direction) in [(world.a(), "outbound"), (world.b(), "inbound")] {
        let label = format!("direction=\"{direction}\"");
        until(client::LIMIT, "the metric to say so", || {
            match daemon.metric("mtls_open_connections", &[&label]) {
                Ok(open) if open >= CONNECTIONS as f64 => Ok(()),
                other => Err(format!("mtls_open_connections: {other:?}")),
            }
        })?;
    }
    // The oldest still live.
    for (group, streams) in groups.iter_mut().enumerate() {
        for (number, stream) in streams.iter_mut().enumerate() {
            ping(stream, &format!("last words of {group}/{number}"))?;
        }
    }
    Ok(())
}
