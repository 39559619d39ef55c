//! Walkthrough 2: mTLS between workloads, for the mesh, for a namespace, for a workload.

use crate::walkthrough::steps::{IDENTITY, PLAINTEXT, REFUSED};
use crate::walkthrough::{Check, Expected, Member, Request, Step, Walkthrough};

const NAMESPACES: [&str; 3] = ["foo", "bar", "legacy"];

/// All nine requests; `refused` are the namespaces whose httpbin refuses plaintext.
fn matrix(refused: &[&str]) -> Vec<Check> {
    let mut checks = Vec::new();
    for from in NAMESPACES {
        for to in NAMESPACES {
            checks.push(Check::Request(Request::ip(from, to, expected(from, to, refused))));
        }
    }
    checks
}

fn expected(from: &str, to: &str, refused: &[&str]) -> Expected {
    match (from, to) {
        ("legacy", to) if refused.contains(&to) => REFUSED,
        ("legacy", _) | (_, "legacy") => PLAINTEXT,
        _ => IDENTITY,
    }
}

pub fn walkthrough() -> Walkthrough {
    let mut defaults = matrix(&[]);
    defaults.push(Check::Header(Request::headers("foo", "foo", IDENTITY)));
    defaults.push(Check::Header(Request::headers("foo", "legacy", PLAINTEXT)));
    Walkthrough {
        number: 2,
        title: "mutual TLS between workloads",
        members: vec![
            Member::new("sleep-foo", "foo", "sleep", true),
            Member::new("sleep-bar", "bar", "sleep", true),
            Member::new("sleep-legacy", "legacy", "sleep", false),
            Member::new("httpbin-foo", "foo", "httpbin", true),
            Member::new("httpbin-bar", "bar", "httpbin", true),
            Member::new("httpbin-legacy", "legacy", "httpbin", false),
        ],
        servers: vec![],
        steps: vec![
            Step {
                id: "S2-4",
                title: "no policy: PERMISSIVE, and clients use mTLS where they can",
                change: |_, _| {},
                checks: defaults,
            },
            Step {
                id: "S2-8",
                title: "STRICT for the mesh",
                change: |mesh, _| {
                    mesh.namespace_mode("istio-system", "STRICT");
                },
                checks: matrix(&["foo", "bar"]),
            },
            Step {
                id: "S2-9",
                title: "STRICT for the namespace foo, and no longer for the mesh",
                change: |mesh, _| {
                    mesh.remove("PeerAuthentication", "istio-system", "default");
                    mesh.namespace_mode("foo", "STRICT");
                },
                checks: matrix(&["foo"]),
            },
            Step {
                id: "S2-10",
                title: "STRICT for the workload httpbin in bar, and no longer for foo",
                change: |mesh, _| {
                    mesh.remove("PeerAuthentication", "foo", "default");
                    mesh.mode("bar", "httpbin", "STRICT");
                    let host = "httpbin.bar.svc.cluster.local";
                    mesh.destination_rule("bar", "httpbin", host, "ISTIO_MUTUAL");
                },
                checks: matrix(&["bar"]),
            },
            Step {
                id: "S2-11",
                title: "all policies deleted: as it was, and nothing was restarted",
                change: |mesh, _| {
                    mesh.remove("PeerAuthentication", "bar", "httpbin");
                    mesh.remove("DestinationRule", "bar", "httpbin");
                },
                checks: matrix(&[]),
            },
        ],
    }
}
