//! What people and probes ask the daemon: metrics and readiness over HTTP, its status over a Unix
//! socket that root alone can open.

mod http;
pub mod readiness;
mod socket;
pub mod status;

pub use readiness::{Condition, Readiness};
pub use status::Status;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpListener;

use crate::telemetry::metrics::Metrics;
use socket::AdminSocket;

/// Where the answers come from.
pub struct State {
    pub readiness: Readiness,
    pub metrics: Arc<Metrics>,
    /// Makes the answer to `GET /status`. Called on the blocking pool, by several at a time.
    pub status: Box<dyn Fn() -> Status + Send + Sync>,
}

/// Why the daemon cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("another daemon answers on {}: stop it first, or give this one another --node", .0.display())]
    Busy(PathBuf),
    #[error(
        "{} is there and is no socket: it is not this daemon's, remove it or give another --run-dir",
        .0.display()
    )]
    Foreign(PathBuf),
    #[error("cannot listen on {}: {error}", path.display())]
    Socket { path: PathBuf, error: io::Error },
    #[error(
        "cannot listen on {address} for metrics and readiness: {error}; give another --http-address, \
         or off"
    )]
    Http { address: SocketAddr, error: io::Error },
}

/// Both listeners, bound and not yet answering.
pub struct Admin {
    socket: AdminSocket,
    http: Option<TcpListener>,
}

impl Admin {
    /// Binds the admin socket (0600; a dead daemon's is replaced, a living one's is not) and the HTTP
    /// address, if there is one.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn bind(path: &Path, http: Option<SocketAddr>) -> Result<Self, AdminError> {
        let socket = AdminSocket::bind(path)?;
        let http = match http {
            None => None,
            Some(address) => Some(
                TcpListener::bind(address)
                    .await
                    .map_err(|error| AdminError::Http { address, error })?,
            ),
        };
        Ok(Self { socket, http })
    }

    /// The HTTP address with its real port.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Answers until it is dropped, which also removes the admin socket's file.
    pub async fn serve(self, state: Arc<State>) {
        let socket = http::serve(&self.socket.listener, http::Door::Socket, state.clone());
        match &self.http {
            Some(listener) => {
                tokio::join!(socket, http::serve(listener, http::Door::Tcp, state));
            }
            None => socket.await,
        }
    }
}

#[cfg(test)]
mod tests;
