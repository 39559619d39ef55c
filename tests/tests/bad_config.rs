//! A configuration that cannot be served is refused at start, with its place and its reason.
#![forbid(unsafe_code)]

use std::process::Command;

use anyhow::{Result, ensure};
use mtls_tests::process::{output, sibling};
use mtls_tests::{DaemonSpec, Mesh, PodSpec, Testbed};

/// A file, and what the refusal must say besides the file's name.
struct Bad {
    what: &'static str,
    text: &'static str,
    says: &'static [&'static str],
}

const BAD: &[Bad] = &[
    Bad {
        what: "text that is not YAML",
        text: "apiVersion: security.istio.io/v1\nkind: [PeerAuthentication\n",
        says: &["bad.yaml"],
    },
    Bad {
        what: "a kind that is not understood",
        text: "apiVersion: security.istio.io/v1\nkind: PearAuthentication\nmetadata: {name: x, namespace: full}\nspec: {}\n",
        says: &["bad.yaml:", "PearAuthentication"],
    },
    Bad {
        what: "an object in the second document",
        text: "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: x, namespace: full}\nspec: {address: 10.0.0.1, serviceAccount: x}\n---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: y, namespace: full}\nspec:\n  address: MAYBE\n",
        says: &["bad.yaml:10", "MAYBE"],
    },
    Bad {
        what: "a workload on this node without its entries",
        text: "apiVersion: mtls-ebpf.dev/v1alpha1\nkind: NodeWorkload\nmetadata: {name: x, namespace: full}\nspec: {networkNamespace: nowhere, workloadEntries: [missing]}\n",
        says: &["bad.yaml:", "missing"],
    },
    Bad {
        what: "a cgroup alone",
        text: "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: x, namespace: full}\nspec: {address: 10.0.0.1, serviceAccount: x}\n---\napiVersion: mtls-ebpf.dev/v1alpha1\nkind: NodeWorkload\nmetadata: {name: x, namespace: full}\nspec: {cgroup: /x.service, workloadEntries: [x]}\n",
        says: &["bad.yaml:", "cgroup"],
    },
];

#[test]
fn the_daemon_exits_with_64_and_says_where_and_why() -> Result<()> {
    let bed = Testbed::new(&[PodSpec::new(0, "pod", 10)])?;
    for Bad { what, text, says } in BAD {
        Mesh::new(bed.config_directory()).write_file("bad.yaml", text)?;
        let (status, words) = DaemonSpec::new(&bed, 0).refused()?;
        ensure!(status.code() == Some(64), "{what}: {status}: {words}");
        for word in *says {
            ensure!(words.contains(word), "{what}: no {word:?} in: {words}");
        }
    }
    Ok(())
}

/// Objects that are closed in their own place: the daemon starts without them, `check` does not pass.
const CLOSED: &[Bad] = &[
    Bad {
        what: "a mode that does not exist",
        text: "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x, namespace: full}\nspec:\n  mtls:\n    mode: SOMETIMES\n",
        says: &["bad.yaml:6", "SOMETIMES"],
    },
    Bad {
        what: "an action that does not exist",
        text: "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x, namespace: full}\nspec:\n  action: PERHAPS\n",
        says: &["bad.yaml:5", "PERHAPS"],
    },
    Bad {
        what: "a rule with a mode that does not exist",
        text: "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x, namespace: full}\nspec:\n  host: x\n  trafficPolicy: {tls: {mode: OFTEN}}\n",
        says: &["bad.yaml:6", "OFTEN"],
    },
    Bad {
        what: "tokens",
        text: "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: x, namespace: full}\nspec: {}\n",
        says: &["bad.yaml:1", "tokens are not validated"],
    },
];

#[test]
fn check_says_the_same_without_running_anything() -> Result<()> {
    let directory = tempfile::tempdir()?;
    for Bad { what, text, says } in BAD.iter().chain(CLOSED) {
        std::fs::write(directory.path().join("bad.yaml"), text)?;
        let mut command = Command::new(sibling("mtls-daemon", "MTLS_DAEMON_BIN")?);
        command.arg("check").arg(directory.path());
        let output = output(command)?;
        let words = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ensure!(output.status.code() == Some(64), "{what}: {}: {words}", output.status);
        for word in *says {
            ensure!(words.contains(word), "{what}: no {word:?} in: {words}");
        }
    }
    Ok(())
}

/// In a directory of its own: exit code, what went to stdout, and to stderr.
fn lint(text: &[u8], arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
    let directory = tempfile::tempdir()?;
    std::fs::write(directory.path().join("a.yaml"), text)?;
    let mut command = Command::new(sibling("mtls-daemon", "MTLS_DAEMON_BIN")?);
    command.args(["policy", "lint"]).args(arguments).arg(directory.path());
    let output = output(command)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}

#[test]
fn lint_prints_findings_for_programs_and_ends_with_65() -> Result<()> {
    for Bad { what, text, .. } in CLOSED {
        let (code, out, _) = lint(text.as_bytes(), &["-o", "json"])?;
        ensure!(code == Some(65), "{what}: {code:?}: {out}");
        ensure!(!out.is_empty(), "{what}: no finding");
        for line in out.lines() {
            let finding: serde_json::Value = serde_json::from_str(line)?;
            for field in ["file", "object", "field", "code", "severity", "reason"] {
                ensure!(finding[field].is_string(), "{what}: no {field} in {line}");
            }
            ensure!(finding["line"].is_u64(), "{what}: {line}");
        }
    }
    let warned = b"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x}\nspec: {mtsl: {}}\n";
    let (code, out, _) = lint(warned, &[])?;
    ensure!(code == Some(0) && out.contains("did you mean mtls?"), "{code:?}: {out}");
    ensure!(lint(warned, &["--deny-warnings"])?.0 == Some(65));
    Ok(())
}

#[test]
fn hostile_files_are_named_and_bounded() -> Result<()> {
    let nested = "[".repeat(100_000);
    let bomb = (0..60).fold("a0: &a0 [x, x]\n".to_owned(), |text, n| {
        text + &format!("a{}: &a{} [*a{n}, *a{n}, *a{n}]\n", n + 1, n + 1)
    });
    let large = "#".repeat(100 << 20);
    for (what, text, code) in [
        ("nesting", nested.as_bytes(), "E_YAML_LIMIT"),
        ("aliases", bomb.as_bytes(), "E_YAML_LIMIT"),
        ("100 MB", large.as_bytes(), "E_FILE_SIZE"),
        ("no text", &[0xff, 0xfe, 0], "E_YAML_SYNTAX"),
    ] {
        let (status, out, err) = lint(text, &[])?;
        ensure!(status == Some(65), "{what}: {status:?}: {err}");
        ensure!(out.contains("a.yaml") && out.contains(code), "{what}: {out}");
        ensure!(out.len() < 10_000, "{what}: {} bytes of findings", out.len());
    }
    Ok(())
}

#[test]
fn what_the_testbed_writes_passes_the_check() -> Result<()> {
    let world = mtls_tests::World::without_daemons(&[])?;
    world.mesh.write()?;
    let mut command = Command::new(sibling("mtls-daemon", "MTLS_DAEMON_BIN")?);
    command.arg("check").arg(world.bed.config_directory());
    let output = output(command)?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

#[test]
fn the_examples_are_good() -> Result<()> {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples");
    for node in ["node-a", "node-b"] {
        let mut command = Command::new(sibling("mtls-daemon", "MTLS_DAEMON_BIN")?);
        command.args(["check", examples, "--node", node]);
        let output = output(command)?;
        let words = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.code() == Some(0), "{output:?}");
        let says = format!("good, 1 workloads for node {node}, 0 warnings");
        ensure!(words.contains(&says), "{words}");
    }
    Ok(())
}

#[test]
fn an_unknown_argument_is_a_usage_error() -> Result<()> {
    let mut command = Command::new(sibling("mtls-daemon", "MTLS_DAEMON_BIN")?);
    command.args(["run", "--no-such-flag"]);
    ensure!(output(command)?.status.code() == Some(2));
    Ok(())
}
