//! Which requests are made under which policy, and what is expected of each.

use crate::demo::{Attempt, Crossing};
use crate::mesh::Mesh;
use crate::world::To;

/// The identity of the enrolled client.
pub const SLEEP: &str = "spiffe://cluster.local/ns/full/sa/sleep";

/// A client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// Enrolled; addresses services.
    Full,
    /// Not enrolled, so nobody translates a service's address for it: it addresses pods.
    Legacy,
}

impl From {
    pub fn pod(self) -> &'static str {
        match self {
            Self::Full => "sleep-full",
            Self::Legacy => "sleep-legacy",
        }
    }

    pub fn namespace(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Legacy => "legacy",
        }
    }
}

/// What a request should come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// 200, over mTLS, with the client's identity.
    Identity,
    /// 200, in the clear.
    Plaintext,
    /// 200, one or the other: the service has an endpoint of each kind.
    Either,
    /// The server's node resets a plaintext client: no HTTP answer, curl exits 56.
    Refused,
    /// The client's node answers 503, as the server does not speak mTLS.
    Unavailable,
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Identity => "identity, 200",
            Self::Plaintext => "plaintext, 200",
            Self::Either => "either, 200",
            Self::Refused => "refused: 000, exit 56",
            Self::Unavailable => "no mTLS there: 503",
        })
    }
}

impl Expected {
    /// What differs, in words; nothing when all agrees.
    pub fn differs(self, attempt: &Attempt) -> Option<String> {
        let identity = attempt.identity.as_deref();
        let answer = (attempt.code, attempt.exit);
        let by_identity = || match (identity, attempt.wire) {
            (Some(SLEEP), Crossing::Encrypted) => None,
            (Some(SLEEP), wire) => Some(format!("with an identity, but {wire} on the wire")),
            (other, _) => Some(format!("identity {other:?} instead of {SLEEP}")),
        };
        let in_the_clear = || match (identity, attempt.wire) {
            (None, Crossing::Clear) => None,
            (identity, wire) => Some(format!("not plaintext: {identity:?}, {wire} on the wire")),
        };
        let is = |code, exit| {
            (answer != (code, exit)).then(|| {
                format!("HTTP {:03}, curl's exit {}: {}", answer.0, answer.1, attempt.curl_said)
            })
        };
        match self {
            Self::Identity => is(200, 0).or_else(by_identity),
            Self::Plaintext => is(200, 0).or_else(in_the_clear),
            Self::Either if identity.is_some() => is(200, 0).or_else(by_identity),
            Self::Either => is(200, 0).or_else(in_the_clear),
            Self::Refused => is(0, 56),
            Self::Unavailable => is(503, 0).or_else(|| {
                (attempt.wire == Crossing::Clear).then(|| "the request crossed in the clear".into())
            }),
        }
    }
}

/// One request.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub from: From,
    pub to: To,
    /// The pod to address directly, for clients that are not enrolled.
    pub pod: Option<&'static str>,
    pub expected: Expected,
}

/// A policy, and the requests made under it.
pub struct Phase {
    pub title: &'static str,
    /// The change of policy that leads from the phase before to this one.
    pub change: fn(&mut Mesh),
    pub rows: Vec<Row>,
}

/// Full to full, then legacy to full; the other rows are the same in every phase.
fn rows(full: Expected, legacy: Expected) -> Vec<Row> {
    use Expected::{Either, Plaintext};
    let row = |from, to, pod, expected| Row { from, to, pod, expected };
    vec![
        row(From::Full, To::Full, None, full),
        row(From::Full, To::Partial, None, Either),
        row(From::Full, To::Legacy, None, Plaintext),
        row(From::Legacy, To::Full, Some("httpbin-full"), legacy),
        row(From::Legacy, To::Partial, Some("httpbin-partial"), Plaintext),
        row(From::Legacy, To::Partial, Some("plain-partial"), Plaintext),
        row(From::Legacy, To::Legacy, Some("httpbin-legacy"), Plaintext),
    ]
}

/// The four policies of the automatic mTLS walkthrough.
pub fn phases() -> Vec<Phase> {
    use Expected::{Identity, Plaintext, Refused, Unavailable};
    vec![
        Phase {
            title: "PERMISSIVE everywhere (no policy at all)",
            change: |_| {},
            rows: rows(Identity, Plaintext),
        },
        Phase {
            title: "STRICT for httpbin in full",
            change: |mesh| {
                mesh.mode("full", "httpbin", "STRICT");
            },
            rows: rows(Identity, Refused),
        },
        Phase {
            title: "DISABLE for httpbin in full",
            change: |mesh| {
                mesh.mode("full", "httpbin", "DISABLE");
            },
            rows: rows(Plaintext, Plaintext),
        },
        Phase {
            title: "DISABLE for httpbin in full, and a DestinationRule that wants ISTIO_MUTUAL to it",
            change: |mesh| {
                mesh.destination_rule("full", "httpbin", &To::Full.host(), "ISTIO_MUTUAL");
            },
            rows: rows(Unavailable, Plaintext),
        },
    ]
}
