//! The applications: servers that know nothing of the mesh. `mtls-testbed serve` runs one as a
//! process of a pod; it prints what it sees as a JSON line an event.

pub mod echo;
pub mod http;
pub mod tcp;

use std::io::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use socket2::{Domain, Socket, Type};

/// What a server does with its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// HTTP/1.1: echoes the request as JSON; `/bytes/N` answers N bytes
    Http,
    /// Sends back what it receives, and its end; thousands of connections on one thread
    Echo,
    /// Speaks first (as SMTP and MySQL do), then echoes
    Banner,
    /// Reads to the end, then answers with the number of bytes and their SHA-256
    Sink,
    /// Reads a number in a line, sends that many bytes, then its end
    Source,
    /// Sends a greeting and its end at once, and goes on reading
    HalfClose,
    /// Reads something, then resets the connection
    Reset,
    /// Reads a little, answers that this is too much, and closes while the client still sends
    Reject,
    /// Sends a line again and again until it cannot
    Drip,
    /// Answers datagrams, not connections
    Udp,
}

/// The line that [`Kind::Banner`] starts with.
pub const BANNER: &str = "220 the server speaks first\r\n";
/// What [`Kind::HalfClose`] sends before its end.
pub const GREETING: &str = "that was all from me\n";

/// What [`Kind::Reject`] answers.
pub const REJECTION: &str = "too much\n";

/// Prints an event.
pub fn event(kind: &str, mut fields: Value) {
    fields["event"] = json!(kind);
    // A reader that is gone is no reason to stop serving.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{fields}").and_then(|()| out.flush());
}

/// Connects and says something, then listens until the other end ends it. A `silent` one says nothing, and
/// its end is a reset.
///
/// # Errors
/// When there is no echo.
pub fn talk(to: SocketAddr, silent: bool) -> Result<()> {
    let mut stream = crate::client::connect(to)?;
    if silent {
        socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO))?;
    } else {
        crate::client::ping(&mut stream, "hello")?;
    }
    let (local, peer) = (plain(stream.local_addr()?), plain(stream.peer_addr()?));
    event("open", json!({"local": local, "peer": peer}));
    stream.set_read_timeout(None)?;
    let end = std::io::copy(&mut stream, &mut std::io::sink());
    event("ended", json!({"end": end_of(&end.map(|_| ()))}));
    Ok(())
}

/// Serves on `port` of every address, of both families, until killed.
///
/// # Errors
/// When the port cannot be listened on.
pub fn serve(kind: Kind, port: u16) -> Result<()> {
    if kind == Kind::Udp {
        return tcp::serve_udp(port);
    }
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).context("an IPv6 socket")?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.listen(8192)?;
    let listener = std::net::TcpListener::from(socket);
    event("listening", json!({"address": listener.local_addr()?}));
    match kind {
        Kind::Echo => echo::serve(&listener),
        _ => tcp::serve(&listener, kind),
    }
}

/// An address as the peer wrote it: v4-mapped ones as IPv4.
pub fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => (v4, address.port()).into(),
            None => address,
        },
        IpAddr::V4(_) => address,
    }
}

/// How a stream ended.
pub fn end_of(result: &std::io::Result<()>) -> String {
    match result {
        Ok(()) => "eof".into(),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => "reset".into(),
        Err(error) => format!("error: {error}"),
    }
}

/// Counts and digests bytes.
#[derive(Clone, Default)]
pub struct Meter {
    pub bytes: u64,
    digest: Sha256,
}

impl Meter {
    pub fn take(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.digest.update(bytes);
    }

    /// Number of bytes and their SHA-256 in lower-case hexadecimal.
    pub fn summary(self) -> Value {
        let digest: String =
            self.digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        json!({"bytes": self.bytes, "sha256": digest})
    }
}

/// Bytes that look random, of which no two megabytes are the same.
pub struct Noise {
    block: Vec<u8>,
    left: u64,
    number: u64,
}

impl Noise {
    /// A stream of `length` bytes.
    pub fn new(length: u64) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut block = Vec::with_capacity(1 << 20);
        while block.len() < 1 << 20 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend_from_slice(&state.to_le_bytes());
        }
        Self { block, left: length, number: 0 }
    }

    /// The next piece, or none at the end.
    pub fn piece(&mut self) -> Option<&[u8]> {
        if self.left == 0 {
            return None;
        }
        self.number += 1;
        self.block[..8].copy_from_slice(&self.number.to_le_bytes());
        let length = self.left.min(self.block.len() as u64);
        self.left -= length;
        self.block.get(..length as usize)
    }
}
