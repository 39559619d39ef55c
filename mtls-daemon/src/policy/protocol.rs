//! What a port speaks, as far as a service declares it (policy.md 3.5).

/// What is declared about a workload's port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum PortProtocol {
    /// Nothing, or the port is in no service: the first bytes tell.
    #[default]
    Auto,
    /// HTTP/1, HTTP/2 or gRPC.
    Http,
    /// Anything else, also TLS and HTTPS: opaque bytes.
    Tcp,
}

/// Ports of protocols in which the server speaks first; Istio takes them for TCP where nothing is
/// declared (`pkg/config/kube/conversion.go`): SMTP, DNS, MySQL, MongoDB.
const SERVER_FIRST: [u16; 4] = [25, 53, 3306, 27017];

impl PortProtocol {
    /// Of a service's port: the protocol decides; without one (`UNSPECIFIED` or empty) its name
    /// does, up to the first `-`; without a known one, its number.
    pub fn declared(protocol: &str, name: &str, number: u16) -> Self {
        match word(protocol, name).as_str() {
            "http" | "http2" | "grpc" | "http_proxy" => Self::Http,
            // `grpc-web` is a name of its own as a protocol; as a port's name it begins with grpc.
            "grpc-web" | "grpcweb" => Self::Http,
            "tcp" | "tls" | "https" | "mongo" | "redis" | "mysql" | "hbone" => Self::Tcp,
            _ if SERVER_FIRST.contains(&number) => Self::Tcp,
            _ => Self::Auto,
        }
    }

    /// Of a port that several services declare. HTTP wins: it is the one that hides nothing from
    /// policy, and refuses what is not HTTP.
    pub fn with(self, other: Self) -> Self {
        match (self, other) {
            (Self::Http, _) | (_, Self::Http) => Self::Http,
            (Self::Tcp, _) | (_, Self::Tcp) => Self::Tcp,
            (Self::Auto, Self::Auto) => Self::Auto,
        }
    }
}

/// Whether a service's port speaks HTTP/2 and nothing else (Istio's `IsHTTP2`).
pub fn speaks_http2(protocol: &str, name: &str) -> bool {
    matches!(word(protocol, name).as_str(), "http2" | "grpc" | "grpc-web" | "grpcweb")
}

/// What a port is declared by, in lower case.
fn word(protocol: &str, name: &str) -> String {
    let unspecified = protocol.is_empty() || protocol.eq_ignore_ascii_case("UNSPECIFIED");
    let word = if unspecified { name.split('-').next().unwrap_or_default() } else { protocol };
    word.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::PortProtocol::{self, *};
    use super::speaks_http2;

    #[test]
    fn http2_is_what_is_declared_so() {
        for (protocol, name) in
            [("HTTP2", "tcp"), ("GRPC", ""), ("grpc-web", ""), ("", "grpc-api"), ("", "http2")]
        {
            assert!(speaks_http2(protocol, name), "{protocol} {name}");
        }
        for (protocol, name) in
            [("HTTP", "grpc"), ("TCP", "http2"), ("HTTPS", ""), ("", "http"), ("", "")]
        {
            assert!(!speaks_http2(protocol, name), "{protocol} {name}");
        }
    }

    #[test]
    fn a_protocol_decides_then_the_name_then_the_number() {
        for (protocol, name, number, expected) in [
            ("HTTP", "tcp", 80, Http),
            ("http2", "", 80, Http),
            ("GRPC", "x", 1, Http),
            ("GRPC-Web", "x", 1, Http),
            ("TCP", "http", 80, Tcp),
            ("HTTPS", "http", 443, Tcp),
            ("TLS", "", 443, Tcp),
            ("MONGO", "", 27017, Tcp),
            ("UNSPECIFIED", "http-web", 80, Http),
            ("UNSPECIFIED", "grpc", 80, Http),
            ("UNSPECIFIED", "grpc-web", 80, Http),
            ("", "tcp-x", 80, Tcp),
            ("", "web", 80, Auto),
            ("", "", 8080, Auto),
            ("UNSPECIFIED", "", 3306, Tcp),
            ("UNSPECIFIED", "http", 3306, Http),
            ("", "httpx", 80, Auto),
        ] {
            let found = PortProtocol::declared(protocol, name, number);
            assert_eq!(found, expected, "{protocol} {name} {number}");
        }
    }

    #[test]
    fn http_wins_over_what_other_services_say() {
        assert_eq!(Auto.with(Http), Http);
        assert_eq!(Tcp.with(Http), Http);
        assert_eq!(Tcp.with(Auto), Tcp);
    }
}
