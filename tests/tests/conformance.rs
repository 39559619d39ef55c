//! Rows of expected answers through the real binary, as an operator runs them in CI.
//!
//! With `MTLS_CONFORMANCE=DIR`, every file of that directory that a verb answers; without it, the
//! project's own rows, in files of the same form. Prints for each file how many rows ran, agreed and
//! were skipped, and why.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use mtls_tests::process::{output, sibling};
use serde_json::Value;

/// File, and the verb that answers it.
const VERBS: &[(&str, &[&str])] = &[
    ("authn-compose", &["policy", "mode"]),
    ("authn-inbound", &["policy", "mode"]),
    ("authn-inbound-ports", &["policy", "mode"]),
    ("authn-selection", &["policy", "select"]),
    ("authn-e2e-direct-pod", &["policy", "reach"]),
    ("reachability", &["policy", "reach"]),
    ("client-service-mode", &["policy", "client-tls"]),
    ("client-tls-endpoint", &["policy", "client-tls"]),
    ("client-tls-settings", &["policy", "client-tls"]),
    ("destinationrule-lookup", &["policy", "client-tls"]),
    ("validation", &["policy", "validate"]),
    ("authz-field-validation", &["policy", "validate"]),
    ("authz-sidecar", &["policy", "eval"]),
    ("authz-golden", &["policy", "eval"]),
    ("authz-l4", &["policy", "eval"]),
    ("authz-ambient-golden", &["policy", "eval"]),
    ("authz-selection", &["policy", "select"]),
    ("authz-identity-match", &["policy", "match"]),
    ("string-match", &["policy", "match"]),
    ("host-match", &["policy", "match"]),
    ("trustdomain-aliases", &["policy", "match"]),
    ("authz-l4-status", &["policy", "status"]),
    ("xfcc", &["policy", "xfcc"]),
    ("spiffe-id", &["identity", "parse"]),
    ("spiffe-trustdomain", &["identity", "parse"]),
    ("istio-identity", &["identity", "op"]),
    ("spiffe-ops", &["identity", "op"]),
    ("x509svid", &["identity", "check-svid"]),
    ("spiffe-bundle", &["identity", "check-bundle"]),
];

/// Files that no verb answers, and what asserts them instead.
const ELSEWHERE: &[(&str, &str)] = &[
    ("ca-bearer", "row by row, in the CA's own tests"),
    ("ca-impersonation", "row by row, in the CA's own tests"),
    ("ca-tokenreview", "row by row, in the CA's own tests"),
    ("trustdomain-peer", "handshakes with its certificates, in the daemon's own tests"),
    ("walkthrough-matrices", "the walkthroughs, with real traffic"),
];

/// Rows that expect what this project decided against, and why.
const OPPOSED: &[(&str, &[&str], &str)] = &[(
    "authz-ambient-golden",
    &[
        "deny-groups allow 2",
        "deny-groups allow 4",
        "deny-groups allow 8",
        "deny-groups allow 9",
        "deny-groups allow 11",
        "deny-groups allow 12",
    ],
    "a DENY rule whose clause is empty without its HTTP fields would never match there; here it denies",
)];

/// What is decided where libraries disagree (`disputed` rows): file, the words that the row's name
/// begins with, and whether such a value is valid here. The first line that fits counts.
const DECIDED: &[(&str, &str, bool)] = &[
    // Within what must be supported, and no further.
    ("spiffe-id", "id: 2049 bytes", false),
    ("spiffe-trustdomain", "td: 256 bytes", false),
    // Upper case in the scheme or the trust domain is not the canonical form.
    ("spiffe-id", "id:", false),
    ("spiffe-trustdomain", "td:", false),
    // Only tokens are found by their key's ID, and of several certificates the first is taken.
    ("spiffe-bundle", "spiffebundle_missing_kid", true),
    ("spiffe-bundle", "spiffebundle_multiple_x509", true),
];

const APART: [&str; 3] = ["skip", "needs", "disputed"];

fn own_rows() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance")
}

#[test]
fn every_row_that_a_verb_answers_agrees() -> Result<()> {
    let given = std::env::var_os("MTLS_CONFORMANCE");
    let directory = given.as_ref().map_or_else(own_rows, PathBuf::from);
    let mut files: Vec<String> = std::fs::read_dir(&directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .filter_map(|entry| {
            Some(entry.ok()?.file_name().to_str()?.strip_suffix(".json")?.to_owned())
        })
        .collect();
    files.sort();
    let mut wrong = Vec::new();
    let mut ran = 0;
    for file in &files {
        let path = directory.join(format!("{file}.json"));
        if let Some((_, where_)) = ELSEWHERE.iter().find(|(name, _)| name == file) {
            println!("{file}: no verb: {where_}");
        } else if let Some((_, verb)) = VERBS.iter().find(|(name, _)| name == file) {
            match check(file, &path, verb) {
                Ok(count) => ran += count,
                Err(error) => wrong.push(format!("{file}: {error:#}")),
            }
        } else {
            wrong.push(format!("{file}: nobody answers it: name its verb in this test"));
        }
    }
    for (file, _) in VERBS.iter().filter(|_| given.is_some()) {
        if !files.iter().any(|found| found == file) {
            wrong.push(format!("{file}.json is missing"));
        }
    }
    println!("{ran} rows ran");
    ensure!(ran > 0, "no row ran");
    ensure!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    Ok(())
}

/// A row that is wrong must be found, by name, or the test above says nothing.
#[test]
fn a_wrong_expectation_is_named_and_fails() -> Result<()> {
    let path = own_rows().join("authn-compose.json");
    let mut table: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    table["cases"][0]["expected"]["mode"] = "UNHEARD".into();
    let name = table["cases"][0]["name"].as_str().context("a name")?.to_owned();
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("authn-compose.json");
    std::fs::write(&path, table.to_string())?;
    let error = check("authn-compose", &path, &["policy", "mode"]).expect_err("a disagreement");
    ensure!(format!("{error:#}").contains(&name), "{error:#}");
    Ok(())
}

/// Rows that ran. Prints how they fared.
fn check(file: &str, path: &Path, verb: &[&str]) -> Result<usize> {
    let table: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let mut command = Command::new(sibling("mtls-daemon", "MTLS_DAEMON_BIN")?);
    command.args(verb).arg("--cases").arg(path).arg("--check");
    let output = output(command)?;
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let answers: Vec<Value> =
        stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("its output")?;
    let rows: Vec<&Value> = rows(&table).collect();
    ensure!(
        answers.len() == rows.len(),
        "{} answers to {} rows: {stderr}",
        answers.len(),
        rows.len()
    );
    let (_, opposed, why) =
        OPPOSED.iter().find(|(name, ..)| *name == file).unwrap_or(&("", &[], ""));
    let mut wrong = Vec::new();
    let mut apart: BTreeMap<String, usize> = BTreeMap::new();
    let (mut agreed, mut held) = (0, 0);
    for (row, answer) in rows.iter().zip(&answers) {
        let name = row["name"].as_str().unwrap_or_default();
        let mark = APART.iter().find(|mark| !row[**mark].is_null());
        let disagrees = stderr.contains(&format!("disagrees: {name}: "));
        match mark {
            Some(&"disputed") => match decided(file, name) {
                Some(valid) if answer["result"]["valid"] == valid => held += 1,
                Some(valid) => wrong.push(format!("{name}: decided {valid}, got {answer}")),
                None => wrong.push(format!("{name}: disputed, and not decided in this test")),
            },
            Some(mark) => {
                *apart.entry(format!("{mark}: {}", row[*mark])).or_default() += 1;
            }
            None if opposed.contains(&name) && disagrees => held += 1,
            None if opposed.contains(&name) => wrong.push(format!("{name}: no longer opposed")),
            None if disagrees => {
                let line = stderr.lines().find(|l| l.starts_with(&format!("disagrees: {name}: ")));
                wrong.push(line.unwrap_or(name).to_owned());
            }
            None => agreed += 1,
        }
    }
    println!("{file}: {} rows, {agreed} agree, {held} as decided here", rows.len());
    for name in opposed.iter() {
        println!("  opposed: {name}: {why}");
    }
    for (reason, count) in &apart {
        println!("  {count} not run: {reason}");
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n  "));
    }
    // Nothing but what was counted above made it fail.
    let expected = if opposed.is_empty() { Some(0) } else { Some(1) };
    ensure!(output.status.code() == expected, "{}: {stderr}", output.status);
    Ok(rows.len())
}

/// In the order in which the binary answers.
fn rows(table: &Value) -> impl Iterator<Item = &Value> {
    const LISTS: [&str; 4] = ["cases", "parse", "generated", "verify"];
    LISTS.iter().filter_map(|list| table[*list].as_array()).flatten()
}

fn decided(file: &str, name: &str) -> Option<bool> {
    DECIDED
        .iter()
        .find(|(of, words, _)| *of == file && name.starts_with(words))
        .map(|(.., valid)| *valid)
}
