//! A peer of the mesh whose ClientHello comes late: `openssl s_client` with an SVID, behind a
//! forwarder that holds the client's first bytes back.
//!
//! ```text
//!   any client ── 127.0.0.1 ── s_client ── 127.0.0.1 ── forwarder ──(delay)── server
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::bed::Pod;
use crate::client;
use crate::openssl::Pair;

/// Stands ready in a pod for one connection.
pub struct Late {
    /// Where a client in the pod connects to.
    pub address: SocketAddr,
    early: Receiver<Result<Vec<u8>>>,
}

impl Late {
    /// Stands ready in `pod` to reach `to` as the peer with `svid`, with `delay` between the
    /// connection and its first byte.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn new(pod: &Pod, to: SocketAddr, svid: &Pair, delay: Duration) -> Result<Self> {
        let listen = || Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
        let (front, back) = (pod.inside(listen)?, pod.inside(listen)?);
        let address = front.local_addr()?;
        let behind = back.local_addr()?;
        let (said, early) = channel();
        let (place, svid, namespace) = (pod.place.clone(), svid.clone(), pod.place.netns.clone());
        std::thread::spawn(move || {
            let heard = crate::netns::enter(&namespace).and_then(|()| forward(&back, to, delay));
            let _ = said.send(heard);
        });
        std::thread::spawn(move || {
            let result = place.command("openssl").and_then(|mut command| {
                command.args(["s_client", "-quiet", "-alpn", "istio", "-connect"]);
                command.arg(behind.to_string()).arg("-cert").arg(&svid.certificate);
                wrap(&front, command.arg("-key").arg(&svid.key))
            });
            if let Err(error) = result {
                eprintln!("late peer: {error:#}");
            }
        });
        Ok(Self { address, early })
    }

    /// What the server said before the peer's first byte; that is known once the delay is over.
    ///
    /// # Errors
    /// When the server could not be reached.
    pub fn early(&self) -> Result<Vec<u8>> {
        self.early.recv_timeout(client::LIMIT).context("nobody connected")?
    }
}

/// Connects at once, listens for `delay`, and only then passes on what the client has sent.
fn forward(listener: &TcpListener, to: SocketAddr, delay: Duration) -> Result<Vec<u8>> {
    let (inner, _) = listener.accept()?;
    let mut outer = client::connect(to)?;
    let mut early = Vec::new();
    if !delay.is_zero() {
        outer.set_read_timeout(Some(delay))?;
        let mut bytes = [0; 1024];
        match outer.read(&mut bytes) {
            Ok(read) => early.extend_from_slice(&bytes[..read]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error).context("during the delay"),
        }
    }
    outer.set_read_timeout(None)?;
    let (mut up, mut down) = ((inner.try_clone()?, outer.try_clone()?), (outer, inner));
    std::thread::spawn(move || pump(&mut up.0, &mut up.1));
    std::thread::spawn(move || pump(&mut down.0, &mut down.1));
    Ok(early)
}

fn pump(from: &mut TcpStream, to: &mut TcpStream) {
    // However it ends: the other end is told, and the test looks at what arrived.
    let _ = std::io::copy(from, to);
    let _ = to.shutdown(Shutdown::Write);
}

/// Gives one connection to a TLS client's standard input and output.
fn wrap(listener: &TcpListener, tls: &mut Command) -> Result<()> {
    let (stream, _) = listener.accept()?;
    let mut child =
        tls.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut input = child.stdin.take().context("stdin is piped")?;
    let mut output = child.stdout.take().context("stdout is piped")?;
    let mut client = stream.try_clone()?;
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(read @ 1..) = client.read(&mut bytes) {
            if input.write_all(&bytes[..read]).is_err() {
                return;
            }
        }
    });
    let mut client = stream;
    let _ = std::io::copy(&mut output, &mut client);
    let _ = client.shutdown(Shutdown::Both);
    child.kill()?;
    child.wait()?;
    Ok(())
}
