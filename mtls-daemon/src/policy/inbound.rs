//! What a server does with a connection, by the port's mode, its declared protocol and the client's
//! first bytes (policy.md 1.8-1.11, 3.4, 3.5). The data path and the command line ask the same tables.

use super::Mode;
use super::PortProtocol;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstBytes {
    /// Anything but a ClientHello.
    Plaintext,
    Tls {
        /// One of the mesh's ALPN names is offered.
        mesh_alpn: bool,
    },
}

/// What becomes of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handling {
    /// Plaintext goes to the application as it is.
    Plaintext,
    /// The client's own TLS goes to the application untouched, and nobody is identified by it.
    PassTls,
    /// TLS ends here; without a client certificate that verifies, the handshake fails.
    Terminate,
    Refuse(Refusal),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// STRICT, and the client speaks plaintext.
    Plaintext,
    /// PERMISSIVE on an HTTP port: TLS that is not the mesh's is neither terminated nor HTTP.
    ForeignTls,
    /// DISABLE on an HTTP port: TLS is no HTTP.
    TlsIsNotHttp,
}

pub fn handling(mode: Mode, protocol: PortProtocol, first: FirstBytes) -> Handling {
    use FirstBytes::{Plaintext, Tls};
    let http = protocol == PortProtocol::Http;
    match (mode, first) {
        (Mode::Strict, Plaintext) => Handling::Refuse(Refusal::Plaintext),
        // Whatever its ALPN (policy.md 1.10).
        (Mode::Strict, Tls { .. }) | (Mode::Permissive, Tls { mesh_alpn: true }) => {
            Handling::Terminate
        }
        (Mode::Permissive | Mode::Disable, Plaintext) => Handling::Plaintext,
        (Mode::Permissive, Tls { mesh_alpn: false }) if http => {
            Handling::Refuse(Refusal::ForeignTls)
        }
        (Mode::Disable, Tls { .. }) if http => Handling::Refuse(Refusal::TlsIsNotHttp),
        (Mode::Permissive | Mode::Disable, Tls { .. }) => Handling::PassTls,
    }
}

/// As what the bytes are read, once they are plaintext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadAs {
    Http,
    Opaque,
    /// A port that is declared HTTP, and the client speaks something else.
    NotHttp,
}

/// `http`: what the client sends looks like HTTP, or its mesh ALPN says so. None: not known.
pub fn read_as(protocol: PortProtocol, http: Option<bool>) -> ReadAs {
    match (protocol, http) {
        (PortProtocol::Http, Some(false)) => ReadAs::NotHttp,
        (PortProtocol::Http, _) | (PortProtocol::Auto, Some(true)) => ReadAs::Http,
        (PortProtocol::Tcp, _) | (PortProtocol::Auto, _) => ReadAs::Opaque,
    }
}

/// The mesh's ALPN names that say what is inside: HTTP or not. None: the name says neither.
pub fn alpn_is_http(alpn: &str) -> Option<bool> {
    match alpn {
        "istio-http/1.0" | "istio-http/1.1" | "istio-h2" => Some(true),
        "istio-peer-exchange" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_1_8_every_mode_protocol_and_first_bytes() {
        use FirstBytes::{Plaintext, Tls};
        use Handling::{PassTls, Refuse, Terminate};
        use PortProtocol::{Auto, Http, Tcp};
        let (mesh, foreign) = (Tls { mesh_alpn: true }, Tls { mesh_alpn: false });
        for protocol in [Http, Tcp, Auto] {
            let table = |mode| [Plaintext, mesh, foreign].map(|f| handling(mode, protocol, f));
            let http = protocol == Http;
            let unless = |refusal, otherwise| if http { Refuse(refusal) } else { otherwise };
            assert_eq!(table(Mode::Strict), [Refuse(Refusal::Plaintext), Terminate, Terminate]);
            let foreign = unless(Refusal::ForeignTls, PassTls);
            assert_eq!(table(Mode::Permissive), [Handling::Plaintext, Terminate, foreign]);
            let tls = unless(Refusal::TlsIsNotHttp, PassTls);
            assert_eq!(table(Mode::Disable), [Handling::Plaintext, tls, tls]);
        }
    }

    #[test]
    fn rule_3_5_a_declared_protocol_decides_and_else_what_is_spoken() {
        use PortProtocol::{Auto, Http, Tcp};
        for (protocol, http, expected) in [
            (Http, None, ReadAs::Http),
            (Http, Some(true), ReadAs::Http),
            (Http, Some(false), ReadAs::NotHttp),
            (Tcp, Some(true), ReadAs::Opaque),
            (Auto, Some(true), ReadAs::Http),
            (Auto, Some(false), ReadAs::Opaque),
            (Auto, None, ReadAs::Opaque),
        ] {
            assert_eq!(read_as(protocol, http), expected, "{protocol:?} {http:?}");
        }
        assert_eq!(alpn_is_http("istio-h2"), Some(true));
        assert_eq!(alpn_is_http("istio-peer-exchange"), Some(false));
        assert_eq!(alpn_is_http("istio"), None);
    }
}
