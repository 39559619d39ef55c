//! Echo for thousands of connections on one thread.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde_json::json;

use super::{end_of, event, plain};

/// Bytes that one client may leave unread before the server stops reading from it.
const BACKLOG: usize = 1 << 20;
const LISTENER: u64 = 0;

struct Client {
    stream: TcpStream,
    peer: SocketAddr,
    /// Received, and not yet sent back.
    owed: Vec<u8>,
    bytes: u64,
    ended: bool,
}

/// Serves for ever.
///
/// # Errors
/// When the kernel refuses to poll.
pub fn serve(listener: &TcpListener) -> Result<()> {
    crate::client::raise_descriptor_limit();
    let poll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll")?;
    listener.set_nonblocking(true)?;
    poll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut clients: HashMap<u64, Client> = HashMap::new();
    let mut events = vec![EpollEvent::empty(); 256];
    loop {
        let count = match poll.wait(&mut events, EpollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            result => result?,
        };
        for ready in &events[..count] {
            if ready.data() == LISTENER {
                accept(listener, &poll, &mut clients)?;
                continue;
            }
            let Some(client) = clients.get_mut(&ready.data()) else { continue };
            match turn(client) {
                Ok(false) => {
                    let wanted = interest(client);
                    poll.modify(&client.stream, &mut EpollEvent::new(wanted, ready.data()))?;
                }
                over => {
                    let end = end_of(&over.map(|_| ()));
                    event(
                        "closed",
                        json!({"peer": client.peer, "bytes": client.bytes, "end": end}),
                    );
                    clients.remove(&ready.data());
                }
            }
        }
    }
}

fn accept(listener: &TcpListener, poll: &Epoll, clients: &mut HashMap<u64, Client>) -> Result<()> {
    loop {
        let (stream, peer) = match listener.accept() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
            result => result.context("accepting")?,
        };
        let peer = plain(peer);
        event("accepted", json!({"peer": peer, "local": plain(stream.local_addr()?)}));
        stream.set_nonblocking(true)?;
        let token = u64::try_from(stream.as_raw_fd()).context("a descriptor")?;
        poll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        clients.insert(token, Client { stream, peer, owed: Vec::new(), bytes: 0, ended: false });
    }
}

fn interest(client: &Client) -> EpollFlags {
    let mut wanted = EpollFlags::empty();
    if !client.ended && client.owed.len() < BACKLOG {
        wanted |= EpollFlags::EPOLLIN;
    }
    if !client.owed.is_empty() {
        wanted |= EpollFlags::EPOLLOUT;
    }
    wanted
}

/// Reads once, and sends what it can. True when the conversation is over.
fn turn(client: &mut Client) -> std::io::Result<bool> {
    let mut bytes = [0; 1 << 16];
    if !client.ended && client.owed.len() < BACKLOG {
        match client.stream.read(&mut bytes) {
            Ok(0) => client.ended = true,
            Ok(read) => {
                client.bytes += read as u64;
                client.owed.extend_from_slice(&bytes[..read]);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    while !client.owed.is_empty() {
        match client.stream.write(&client.owed) {
            Ok(sent) => drop(client.owed.drain(..sent)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    if client.ended {
        // The peer may already be gone altogether.
        let _ = client.stream.shutdown(Shutdown::Write);
    }
    Ok(client.ended)
}
