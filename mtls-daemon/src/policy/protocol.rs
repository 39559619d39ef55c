//! What a service port is declared to carry (policy.md 1.8, 3.5).

/// A port that no service declares is nobody's promise: it is read as `Auto` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortProtocol {
    /// HTTP in any version, gRPC among it.
    Http,
    /// Anything else that is named: its bytes are relayed as they are.
    Tcp,
    /// Not declared: the first bytes tell.
    Auto,
}

impl PortProtocol {
    /// An explicit protocol decides; without one (`UNSPECIFIED`) the port's name does (`http-web`,
    /// `grpc`), as for a Kubernetes Service.
    pub fn declared(protocol: &str, name: &str) -> Self {
        let explicit = !protocol.is_empty() && !protocol.eq_ignore_ascii_case("UNSPECIFIED");
        let text = if explicit { protocol } else { name };
        let text = text.to_ascii_lowercase();
        match text.split('-').next().unwrap_or_default() {
            "http" | "http2" | "grpc" => Self::Http,
            "tcp" | "tls" | "https" | "mongo" | "mysql" | "redis" => Self::Tcp,
            _ => Self::Auto,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::PortProtocol::{Auto, Http, Tcp};
    use super::*;

    #[test]
    fn the_protocol_decides_before_the_name() {
        for (protocol, name, expected) in [
            ("HTTP", "tcp", Http),
            ("TCP", "http", Tcp),
            ("GRPC-WEB", "x", Http),
            ("UNSPECIFIED", "http", Http),
            ("UNSPECIFIED", "grpc-web", Http),
            ("UNSPECIFIED", "https", Tcp),
            ("UNSPECIFIED", "mysql-main", Tcp),
            ("UNSPECIFIED", "auto", Auto),
            ("UNSPECIFIED", "httpish", Auto),
            ("", "", Auto),
        ] {
            assert_eq!(PortProtocol::declared(protocol, name), expected, "{protocol} {name}");
        }
    }
}
