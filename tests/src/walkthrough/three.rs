//! Walkthrough 3: a service's own policy, who it is, and who may not reach it.

use serde_json::json;

use crate::mesh::Mesh;
use crate::walkthrough::certificate::Question;
use crate::walkthrough::steps::{DENIED, IDENTITY, PLAINTEXT, REFUSED};
use crate::walkthrough::{Check, Expected, Member, Request, Step, Walkthrough};

/// From the same namespace, from outside the mesh, from another namespace.
fn matrix(own: Expected, legacy: Expected, full: Expected) -> Vec<Check> {
    [("mtls-test", own), ("legacy", legacy), ("full", full)]
        .map(|(from, expected)| Check::Request(Request::headers(from, "mtls-test", expected)))
        .into()
}

/// The server's certificate is there to be seen by anybody, whatever the mode.
fn certificate() -> Check {
    Check::Certificate(Question { from: "legacy", to: "mtls-test" })
}

/// Denies `sleep` of `full` to GET.
pub fn deny_get(mesh: &mut Mesh) {
    let spec = json!({
        "selector": {"matchLabels": {"app": "httpbin"}},
        "action": "DENY",
        "rules": [{
            "from": [{"source": {"principals": ["cluster.local/ns/full/sa/sleep"]}}],
            "to": [{"operation": {"methods": ["GET"]}}],
        }],
    });
    mesh.put("security.istio.io/v1beta1", "AuthorizationPolicy", "mtls-test", "no-full", spec);
}

pub fn walkthrough() -> Walkthrough {
    let mut permissive = matrix(IDENTITY, PLAINTEXT, IDENTITY);
    permissive.push(certificate());
    let mut strict = matrix(IDENTITY, REFUSED, IDENTITY);
    strict.push(certificate());
    Walkthrough {
        number: 3,
        title: "one service: who it is, and who may reach it",
        members: vec![
            Member::new("sleep-mtls-test", "mtls-test", "sleep", true),
            Member::new("sleep-full", "full", "sleep", true),
            Member::new("sleep-legacy", "legacy", "sleep", false),
            Member::new("httpbin-mtls-test", "mtls-test", "httpbin", true),
        ],
        servers: vec![],
        steps: vec![
            Step {
                id: "S3-1",
                title: "no policy: PERMISSIVE",
                change: |_, _| {},
                checks: permissive,
            },
            Step {
                id: "S3-3",
                title: "a port's mode is that of the pods' port, 80; the service's, 8000, is none",
                change: |mesh, _| {
                    mesh.mode_by_port("mtls-test", "httpbin", "PERMISSIVE", &[(8000, "STRICT")]);
                },
                checks: matrix(IDENTITY, PLAINTEXT, IDENTITY),
            },
            Step {
                id: "S3-3",
                title: "STRICT for port 80",
                change: |mesh, _| {
                    mesh.mode_by_port("mtls-test", "httpbin", "PERMISSIVE", &[(80, "STRICT")]);
                },
                checks: matrix(IDENTITY, REFUSED, IDENTITY),
            },
            Step {
                id: "S3-4",
                title: "STRICT for httpbin; the rule for clients lies where it has no effect",
                change: |mesh, _| {
                    mesh.mode("mtls-test", "httpbin", "STRICT");
                    let host = "httpbin.mtls-test.svc.cluster.local";
                    mesh.destination_rule("default", "httpbin", host, "ISTIO_MUTUAL");
                },
                checks: strict,
            },
            Step {
                id: "S3-8",
                title: "and sleep of full may not GET",
                change: |mesh, _| deny_get(mesh),
                checks: matrix(IDENTITY, REFUSED, DENIED),
            },
        ],
    }
}
