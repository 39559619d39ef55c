//! What crossed the wire between the two nodes, captured from the first packet on.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use crate::bed::{Node, WIRE};
use crate::netns;
use crate::packet::{Flow, Flows, segment};

/// A running capture on a node's end of the wire, both directions.
pub struct Capture {
    requests: Sender<Sender<Vec<Flow>>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Capture {
    /// Starts to capture; what is sent after this returns is seen.
    ///
    /// # Errors
    /// When the kernel has no packet sockets, or the caller is not root.
    pub fn start(node: &Node) -> Result<Self> {
        let (requests, receiver) = channel();
        let (ready, started) = channel();
        let path = node.place.netns.clone();
        let thread = std::thread::spawn(move || {
            let opened = netns::enter(&path).and_then(|()| open());
            match opened {
                Ok((socket, index)) => {
                    let _ = ready.send(Ok(()));
                    run(&socket, index, &receiver)
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                    Ok(())
                }
            }
        });
        started.recv().context("the capture thread ended")??;
        Ok(Self { requests, thread: Some(thread) })
    }

    /// Every connection seen so far, after all that has already crossed was read.
    ///
    /// # Errors
    /// When the capture failed.
    pub fn flows(&self) -> Result<Vec<Flow>> {
        let (answer, flows) = channel();
        self.requests.send(answer).map_err(|_| anyhow!("the capture has ended"))?;
        flows.recv().context("the capture has ended")
    }

    /// The connections to a server that pass `server`.
    ///
    /// # Errors
    /// When the capture failed.
    pub fn flows_to(&self, server: SocketAddr) -> Result<Vec<Flow>> {
        Ok(self.flows()?.into_iter().filter(|flow| flow.server == server).collect())
    }

    /// Whether `canary` crossed the wire in the clear, in any connection and either direction.
    ///
    /// # Errors
    /// When nothing at all was captured, or the capture has gaps: neither proves anything.
    pub fn saw(&self, canary: &str) -> Result<bool> {
        let flows = self.flows()?;
        ensure!(!flows.is_empty(), "the capture saw no TCP connection at all");
        for flow in &flows {
            let held = flow
                .holds(canary.as_bytes())
                .with_context(|| format!("{} -> {}", flow.client, flow.server))?;
            if held {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // Closing the channel ends the thread.
        let (gone, _) = channel();
        self.requests = gone;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open() -> Result<(OwnedFd, usize)> {
    let socket =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
            .context("opening a packet socket (CONFIG_PACKET, root)")?;
    // Beyond the sysctl's limit: a lost packet makes an assertion worthless (and is noticed).
    setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).context("a large receive buffer")?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 20_000))?;
    let index = if_nametoindex(WIRE).context("the node has no wire")?;
    Ok((socket, index as usize))
}

/// Reads until the owner is gone. A request is answered once the socket has nothing more.
fn run(socket: &OwnedFd, index: usize, requests: &Receiver<Sender<Vec<Flow>>>) -> Result<()> {
    let mut flows = Flows::default();
    let mut buffer = vec![0; 1 << 18];
    let mut pending: Vec<Sender<Vec<Flow>>> = Vec::new();
    loop {
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, from)) => {
                // The socket sees all the node's interfaces; the wire is one of them.
                if from.is_some_and(|from| from.ifindex() == index)
                    && let Some(segment) = segment(&buffer[..length])
                {
                    flows.take(&segment);
                }
            }
            Err(error) => {
                let error = std::io::Error::from(error);
                match error.kind() {
                    ErrorKind::WouldBlock => {
                        for request in pending.drain(..) {
                            let _ = request.send(flows.all().to_vec());
                        }
                        match requests.recv_timeout(Duration::ZERO) {
                            Ok(request) => pending.push(request),
                            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
                            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                        }
                    }
                    ErrorKind::Interrupted => {}
                    _ => return Err(error).context("reading packets"),
                }
            }
        }
    }
}
