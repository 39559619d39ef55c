//! What a step is, and what may be expected.

use crate::bed::Testbed;
use crate::mesh::Mesh;
use crate::walkthrough::certificate;
use crate::world::{SERVICE_PORT, TARGET_PORT};

/// How a request should cross, and whom the server should see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// In mutual TLS, as the client.
    Mutual,
    /// In the clear.
    Clear,
    /// One or the other: the service has an endpoint of each kind.
    Either,
    /// No answer comes from the server: it does not matter how far it got.
    None,
    /// As [`Link::None`], and nothing of the request may cross in the clear.
    NotInTheClear,
}

/// What a request should come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// HTTP status code; 0 for none.
    pub code: u16,
    /// curl's exit code.
    pub exit: i32,
    pub link: Link,
}

/// 200 in mutual TLS.
pub const IDENTITY: Expected = Expected { code: 200, exit: 0, link: Link::Mutual };
/// 200 in the clear.
pub const PLAINTEXT: Expected = Expected { code: 200, exit: 0, link: Link::Clear };
/// 200, one or the other.
pub const EITHER: Expected = Expected { code: 200, exit: 0, link: Link::Either };
/// The server's node resets a plaintext client.
pub const REFUSED: Expected = Expected { code: 0, exit: 56, link: Link::None };
/// A policy of the server's denies the request.
pub const DENIED: Expected = Expected { code: 403, exit: 0, link: Link::Mutual };
/// The client's node answers, as the server does not speak mTLS.
pub const UNAVAILABLE: Expected = Expected { code: 503, exit: 0, link: Link::NotInTheClear };

/// One request by `sleep.<from>` to `httpbin.<to>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub from: &'static str,
    pub to: &'static str,
    pub path: &'static str,
    /// The service's port and the pods' port behind it.
    pub ports: (u16, u16),
    pub expected: Expected,
}

impl Request {
    /// To `/headers`, which shows what the server was told of the client.
    pub const fn headers(from: &'static str, to: &'static str, expected: Expected) -> Self {
        Self { from, to, path: "/headers", ports: (SERVICE_PORT, TARGET_PORT), expected }
    }

    /// To `/ip`.
    pub const fn ip(from: &'static str, to: &'static str, expected: Expected) -> Self {
        Self { from, to, path: "/ip", ports: (SERVICE_PORT, TARGET_PORT), expected }
    }

    /// The same at a port that the service does not have: to the pod itself.
    #[must_use]
    pub const fn at_port(mut self, port: u16) -> Self {
        self.ports = (port, port);
        self
    }

    /// The identity that the client has when it has one.
    pub fn identity(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/sleep", self.from)
    }

    /// What the server's application should read in X-Forwarded-Client-Cert and echo: the client's
    /// URI; none of both when either is right.
    pub fn uri(&self) -> Option<Option<String>> {
        let shows = self.path == "/headers" && self.expected.code == 200;
        match self.expected.link {
            Link::Either if shows => None,
            Link::Mutual if shows => Some(Some(self.identity())),
            _ => Some(None),
        }
    }
}

/// What is looked at under a policy.
pub enum Check {
    Request(Request),
    /// Again and again: the answers with an identity should be as many as `with` says.
    Tries {
        request: Request,
        tries: usize,
        with: With,
    },
    /// The whole header that the server's application reads.
    Header(Request),
    /// The certificate that a server shows to whoever asks.
    Certificate(certificate::Question),
}

/// How many of several answers should come with an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum With {
    All,
    /// Some, not all.
    Some,
}

/// A policy, and what is looked at under it.
pub struct Step {
    /// As the table of docs/walkthroughs.md calls it.
    pub id: &'static str,
    pub title: &'static str,
    /// The change that leads from the step before to this one.
    pub change: fn(&mut Mesh, &Testbed),
    pub checks: Vec<Check>,
}
