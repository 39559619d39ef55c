//! What is asked: a connection, or a request on one.

use std::net::{IpAddr, SocketAddr};

/// A connection as the server's side sees it.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// The client's SPIFFE ID without `spiffe://`, from its verified SVID. None: plaintext.
    pub principal: Option<&'a str>,
    /// Where the packets come from.
    pub source: IpAddr,
    /// The client behind trusted proxies; without those, `source`.
    pub remote: IpAddr,
    /// The workload's own address and port.
    pub destination: SocketAddr,
    /// The server name of the TLS handshake.
    pub sni: Option<&'a str>,
}

/// An HTTP request.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    pub method: &'a str,
    /// Normalised. A query may follow; only the header `:path` is compared with it.
    pub path: &'a str,
    /// `:authority`, or `Host`, with the port if one was sent.
    pub host: &'a str,
    pub headers: &'a dyn Headers,
}

/// A request's headers, wherever they are kept.
pub trait Headers {
    /// True if the test holds for the value of any field of this name. Names have no case.
    fn any(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool;
}
