//! Walkthrough 4: automatic mTLS. Only servers have policies; what clients send follows, endpoint by
//! endpoint.

use crate::mesh::Mesh;
use crate::walkthrough::steps::{EITHER, IDENTITY, PLAINTEXT, REFUSED, UNAVAILABLE, With};
use crate::walkthrough::{Check, Expected, Member, Request, Step, Walkthrough};

const FULL: &str = "httpbin.full.svc.cluster.local";
/// A second port of httpbin in full, the example of an exception.
pub const EXCEPTION: u16 = 3000;

/// A pod of the same service as an enrolled one, itself not enrolled at first.
const NOSIDECAR: Member = Member::new("nosidecar-partial", "partial", "httpbin", false);

/// Full to full, then legacy to full; the other rows are the same under every policy.
fn matrix(full: Expected, legacy: Expected) -> Vec<Check> {
    [
        Request::headers("full", "full", full),
        Request::headers("full", "partial", EITHER),
        Request::headers("full", "legacy", PLAINTEXT),
        Request::headers("legacy", "full", legacy),
        Request::headers("legacy", "partial", PLAINTEXT),
        Request::headers("legacy", "legacy", PLAINTEXT),
    ]
    .map(Check::Request)
    .into()
}

fn tries(with: With) -> Check {
    let request = Request::headers("full", "partial", EITHER);
    Check::Tries { request, tries: 10, with }
}

fn no_policy(mesh: &mut Mesh) {
    mesh.remove("PeerAuthentication", "full", "httpbin");
}

pub fn walkthrough() -> Walkthrough {
    let mut permissive = matrix(IDENTITY, PLAINTEXT);
    permissive.push(tries(With::Some));
    Walkthrough {
        number: 4,
        title: "automatic mutual TLS",
        members: vec![
            Member::new("sleep-full", "full", "sleep", true),
            Member::new("sleep-legacy", "legacy", "sleep", false),
            Member::new("httpbin-full", "full", "httpbin", true),
            Member::new("httpbin-partial", "partial", "httpbin", true),
            NOSIDECAR,
            Member::new("httpbin-legacy", "legacy", "httpbin", false),
        ],
        servers: vec![("httpbin-full", EXCEPTION)],
        steps: vec![
            Step {
                id: "S4-2",
                title: "no policy: PERMISSIVE",
                change: |_, _| {},
                checks: permissive,
            },
            Step {
                id: "S4-5",
                title: "STRICT for httpbin in full",
                change: |mesh, _| {
                    mesh.mode("full", "httpbin", "STRICT");
                },
                checks: matrix(IDENTITY, REFUSED),
            },
            Step {
                id: "S4-6",
                title: "mTLS disabled for httpbin in full",
                change: |mesh, _| {
                    mesh.mode("full", "httpbin", "DISABLE");
                },
                checks: matrix(PLAINTEXT, PLAINTEXT),
            },
            Step {
                id: "S4-7",
                title: "and a DestinationRule that wants it all the same",
                change: |mesh, _| {
                    mesh.destination_rule("full", "httpbin", FULL, "ISTIO_MUTUAL");
                },
                checks: matrix(UNAVAILABLE, PLAINTEXT),
            },
            Step {
                id: "S4-12",
                title: "STRICT for httpbin in full, with an exception for one port",
                change: |mesh, _| {
                    mesh.remove("DestinationRule", "full", "httpbin");
                    let exception = [(EXCEPTION, "DISABLE")];
                    mesh.mode_by_port("full", "httpbin", "STRICT", &exception);
                },
                checks: vec![
                    Check::Request(Request::headers("full", "full", IDENTITY)),
                    Check::Request(Request::headers("legacy", "full", REFUSED)),
                    Check::Request(Request::headers("full", "full", PLAINTEXT).at_port(EXCEPTION)),
                    Check::Request(
                        Request::headers("legacy", "full", PLAINTEXT).at_port(EXCEPTION),
                    ),
                ],
            },
            Step {
                id: "S4-10",
                title: "the other pod of partial joins the mesh: no client is told, none restarts",
                change: |mesh, bed| {
                    no_policy(mesh);
                    Member { enrolled: true, ..NOSIDECAR }.join(mesh, bed);
                },
                checks: vec![tries(With::All)],
            },
            Step {
                id: "S4-10",
                title: "and leaves it again",
                change: |mesh, bed| {
                    mesh.remove("NodeWorkload", "partial", NOSIDECAR.pod);
                    NOSIDECAR.join(mesh, bed);
                },
                checks: vec![tries(With::Some)],
            },
        ],
    }
}
