//! The server side: looks at the first bytes, and shakes hands once policy has decided to.

use std::io;
use std::time::SystemTime;

use tokio::io::AsyncRead;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::handshake::Verified;
use super::hello::{Hello, Http, MAX_HELLO, Scan, Seen};
use super::verify::{AuthenticatedPeer, TlsSummary};
use super::{HandshakeError, Replay, TlsIdentity, handshake};

pub type ServerStream = tokio_rustls::server::TlsStream<Replay<TcpStream>>;

/// What a connection's first bytes turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A whole TLS ClientHello. One that offers a mesh protocol is policy.md 3.4's test in PERMISSIVE.
    Tls(Hello),
    /// Something else, also if it only looked like TLS at first.
    NotTls,
    /// The client closed its side before sending anything.
    Closed,
}

/// Reads until the first bytes are known to be a ClientHello or not: at most [`MAX_HELLO`] and one
/// read. All of them stay in `stream` and are read again by whoever takes it next.
///
/// Not bounded in time. Cancel-safe: dropping the future loses nothing, and the question may be
/// asked again. After a timeout `stream.peeked()` tells a silent client from a slow one.
pub async fn first_bytes<S: AsyncRead + Unpin>(stream: &mut Replay<S>) -> io::Result<Kind> {
    let mut scan = Scan::default();
    loop {
        match scan.look(stream.peeked()) {
            Seen::Hello(hello) => return Ok(Kind::Tls(hello)),
            Seen::NotTls => return Ok(Kind::NotTls),
            Seen::Incomplete if stream.peeked().len() > MAX_HELLO => return Ok(Kind::NotTls),
            Seen::Incomplete => {}
        }
        if stream.peek_more().await? == 0 {
            return Ok(if stream.peeked().is_empty() { Kind::Closed } else { Kind::NotTls });
        }
    }
}

/// Terminates: requires and verifies the client's SVID. `answer` is the application protocol that
/// the server chooses, out of those that the ClientHello offers ([`Hello`]); None answers none.
///
/// Not bounded in time: the caller does that.
pub async fn accept(
    stream: Replay<TcpStream>,
    own: &TlsIdentity,
    answer: Option<Http>,
) -> Result<(ServerStream, AuthenticatedPeer, TlsSummary), HandshakeError> {
    own.certificate().check(SystemTime::now())?;
    let shake = TlsAcceptor::from(own.server(answer)).accept(stream);
    let (stream, verified) = handshake::run_server(own.keeps_sessions(), shake).await?;
    let connection = stream.get_ref().1;
    let summary = TlsSummary::of(connection);
    match verified {
        Some(Verified { peer, resumed })
            if resumed == summary.resumed && peer.is_of(connection) =>
        {
            Ok((stream, peer, summary))
        }
        _ => Err(handshake::nobody()),
    }
}
