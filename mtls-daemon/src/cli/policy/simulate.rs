//! A connection that a row describes, through the data path's own tables.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::rows::text;
use crate::policy::inbound::{
    FirstBytes, Handling, ReadAs, Refusal, alpn_is_http, handling, read_as,
};
use crate::policy::{Mode, PortProtocol};
use crate::tls::hello;

/// What the client sends.
#[derive(Debug, Clone)]
pub(super) struct Call {
    /// It sends a ClientHello, with these names or none; otherwise plaintext.
    pub tls: Option<Tls>,
    /// What it speaks inside is HTTP.
    pub http: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Tls {
    pub alpn: Option<String>,
    /// It has a certificate of the mesh.
    pub certificate: bool,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Plaintext(ReadAs),
    /// The application sees a ClientHello.
    PassedThrough,
    Terminated(ReadAs),
    Rejected(&'static str),
}

impl Call {
    /// `transport`, `application` and `alpn`. A client that is said to speak mTLS and not with which
    /// ALPN is one of the mesh.
    pub fn read(row: &Value) -> Result<Self> {
        let http = match row["application"].as_str() {
            Some("http" | "http2" | "grpc") => true,
            Some("tcp") | None => false,
            Some(other) => bail!("application {other:?} is neither http nor tcp"),
        };
        let tls = match text(row, "transport")? {
            "plaintext" => None,
            "tls-without-client-cert" | "tls" => Some(false),
            "mtls" => Some(true),
            other => bail!("transport {other:?} is not known"),
        };
        let tls = tls.map(|certificate| {
            let usual = if http { "istio-http/1.1" } else { "istio" };
            let alpn = match row.get("alpn") {
                Some(alpn) => alpn.as_str().map(str::to_owned),
                None => certificate.then(|| usual.to_owned()),
            };
            Tls { alpn, certificate }
        });
        Ok(Self { tls, http })
    }

    pub fn outcome(&self, mode: Mode, protocol: PortProtocol) -> Outcome {
        let alpn = self.tls.as_ref().and_then(|tls| tls.alpn.as_deref());
        let first = match &self.tls {
            None => FirstBytes::Plaintext,
            Some(_) => FirstBytes::Tls {
                mesh_alpn: alpn.is_some_and(|name| hello::is_mesh(name.as_bytes())),
            },
        };
        let rejected = match handling(mode, protocol, first) {
            Handling::Plaintext => match read_as(protocol, Some(self.http)) {
                ReadAs::NotHttp => "protocol-error",
                read => return Outcome::Plaintext(read),
            },
            Handling::PassTls => return Outcome::PassedThrough,
            Handling::Terminate if self.tls.as_ref().is_some_and(|tls| tls.certificate) => {
                // On a declared port the bytes count, elsewhere what the ALPN promises.
                let declared = (protocol == PortProtocol::Http).then_some(self.http);
                match read_as(protocol, declared.or(alpn.and_then(alpn_is_http))) {
                    ReadAs::NotHttp => "protocol-error",
                    read => return Outcome::Terminated(read),
                }
            }
            Handling::Terminate => "client-certificate-required",
            Handling::Refuse(Refusal::Plaintext | Refusal::ForeignTls) => "no-match",
            Handling::Refuse(Refusal::TlsIsNotHttp) => "protocol-error",
        };
        Outcome::Rejected(rejected)
    }
}

impl Outcome {
    /// An application that speaks no TLS itself got what the client said.
    pub fn succeeds(self) -> bool {
        matches!(self, Self::Plaintext(_) | Self::Terminated(_))
    }

    /// `declared`: some service has the port.
    pub fn json(self, declared: bool) -> Value {
        let (tls, read) = match self {
            Self::Rejected(reason) => return json!({"outcome": "reject", "reason": reason}),
            Self::Plaintext(read) => ("none", read),
            Self::PassedThrough => ("passed-through-unterminated", ReadAs::Opaque),
            Self::Terminated(read) => ("terminated", read),
        };
        let route = if declared { "service-port" } else { "passthrough" };
        let handled_as = if read == ReadAs::Http { "http" } else { "tcp" };
        json!({"outcome": "accept", "tls": tls, "route": route, "handled_as": handled_as})
    }
}
