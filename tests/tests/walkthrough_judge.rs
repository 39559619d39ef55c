//! The walkthroughs' tables against an outside judge: a file of rows that somebody else took from
//! the same documents. `MTLS_CONFORMANCE` names the folder that has it; without it, the few rows of
//! each kind beside this file.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use mtls_tests::walkthrough::steps::With;
use mtls_tests::walkthrough::{self, Check, Link, Request};
use serde_json::Value;

const FILE: &str = "walkthrough-matrices.json";

/// How the file's rows are called, and the step that each speaks of.
const STEPS: [(&str, &str); 13] = [
    ("002 default", "S2-4"),
    ("002 header", "S2-4"),
    ("002 mesh STRICT", "S2-8"),
    ("002 namespace STRICT", "S2-9"),
    ("002 workload STRICT", "S2-10"),
    ("003 PERMISSIVE", "S3-1"),
    ("003 STRICT", "S3-4"),
    ("003 AuthorizationPolicy DENY", "S3-8"),
    ("004 PERMISSIVE", "S4-2"),
    ("004 STRICT", "S4-5"),
    ("004 mTLS DISABLED", "S4-6"),
    ("004 DISABLED + DestinationRule", "S4-7"),
    ("004 sidecar migration", "S4-2"),
];

/// Our checks of a step.
fn checks(step: &str) -> Vec<Check> {
    let steps = walkthrough::all().into_iter().flat_map(|walkthrough| walkthrough.steps);
    steps.filter(|of| of.id == step).flat_map(|of| of.checks).collect()
}

/// What a row says of one request, compared with what we expect of it.
fn compare(row: &Value, ours: &Request) -> Result<()> {
    let theirs = &row["expected"];
    ensure!(theirs["http_code"] == ours.expected.code, "code {}", ours.expected.code);
    ensure!(theirs["curl_exit"] == ours.expected.exit, "exit {}", ours.expected.exit);
    let command = row["command"].as_str().context("a command")?;
    let url = format!("http://httpbin.{}:{}{} ", ours.to, ours.ports.0, ours.path);
    ensure!(command.contains(&url), "we ask for {url}");
    ensure!(row["server"]["target_port"] == ours.ports.1, "target port {}", ours.ports.1);
    match (ours.uri(), theirs["client_uri"].as_str()) {
        (Some(None), None) => Ok(()),
        (Some(Some(uri)), Some(theirs)) if uri == theirs => Ok(()),
        (None, Some(theirs)) if theirs.contains(" or absent ") => {
            ensure!(theirs.starts_with(&format!("{} ", ours.identity())), "another identity");
            Ok(())
        }
        (uri, theirs) => bail!("URI {uri:?} against {theirs:?}"),
    }
}

/// Judges one row; the error says what disagrees.
fn judge(row: &Value) -> Result<()> {
    let name = row["name"].as_str().context("a name")?;
    let called = STEPS.iter().filter(|(called, _)| name.starts_with(called));
    let (_, step) = called.max_by_key(|(called, _)| called.len()).context("an unknown step")?;
    let checks = checks(step);
    if row["expected"].get("http_code").is_some() {
        let (from, to) = (&row["client"]["namespace"], &row["server"]["namespace"]);
        let found = checks.iter().find_map(|check| match check {
            Check::Request(request) if request.from == from && request.to == to => Some(request),
            _ => None,
        });
        return compare(row, found.with_context(|| format!("{step} has no such request"))?);
    }
    if name.contains(" header ") {
        let found = checks.iter().find_map(|check| match check {
            Check::Header(request)
                if name.ends_with(&format!("sleep.{} -> httpbin.{}", request.from, request.to)) =>
            {
                Some(request)
            }
            _ => None,
        });
        let request = found.with_context(|| format!("{step} looks at no such header"))?;
        let shown = row["expected"].get("header_regex").and_then(Value::as_str);
        return match shown {
            // The test looks for By, 64 digits of Hash, an empty Subject and URI, in that order.
            Some(regex) => {
                let by = format!("By=spiffe://cluster\\.local/ns/{}/sa/httpbin;", request.to);
                let uri = format!("URI=spiffe://cluster\\.local/ns/{}/sa/sleep", request.from);
                ensure!(regex.starts_with(&by) && regex.ends_with(&uri), "another header");
                ensure!(request.expected.link == Link::Mutual, "we expect none");
                Ok(())
            }
            None => {
                ensure!(request.expected.link == Link::Clear, "we expect a header");
                Ok(())
            }
        };
    }
    let tries = checks.iter().find_map(|check| match check {
        Check::Tries { request, tries, with } => Some((request, *tries, *with)),
        _ => None,
    });
    let (request, tries, with) = tries.context("neither a request nor a header nor tries")?;
    let ends = format!("{tries} requests sleep.{} -> httpbin.{}", request.from, request.to);
    ensure!(name.ends_with(&ends) && with == With::Some, "we have {ends}, {with:?}");
    ensure!(row["expected"]["all_http_code"] == request.expected.code, "another code");
    Ok(())
}

#[test]
fn every_row_of_the_judge_is_a_row_of_ours() -> Result<()> {
    let text = match std::env::var_os("MTLS_CONFORMANCE") {
        None => include_str!("conformance/walkthrough-matrices.json").to_owned(),
        Some(folder) => {
            let path = Path::new(&folder).join(FILE);
            std::fs::read_to_string(&path).with_context(|| path.display().to_string())?
        }
    };
    let file: Value = serde_json::from_str(&text)?;
    let rows = file["cases"].as_array().context("no cases")?;
    let (mut agreed, mut skipped, mut disagree) = (0, 0, BTreeSet::new());
    for row in rows {
        if let Some(reason) = row.get("skip").or(row.get("needs")) {
            println!("{FILE}: skipped {}: {reason}", row["name"]);
            skipped += 1;
            continue;
        }
        match judge(row) {
            Ok(()) => agreed += 1,
            Err(error) => drop(disagree.insert(format!("{}: {error:#}", row["name"]))),
        }
    }
    println!("{FILE}: {} rows, {agreed} agreed, {skipped} skipped", rows.len());
    ensure!(agreed + disagree.len() > 0, "{FILE} has no row to judge");
    ensure!(disagree.is_empty(), "{}", disagree.into_iter().collect::<Vec<_>>().join("\n"));
    Ok(())
}

/// Our own rows: the judge below must not agree with everything.
#[test]
fn a_row_that_says_something_else_disagrees() -> Result<()> {
    let row = |code: u16, exit: i32, uri: Value, url: &str| {
        serde_json::json!({
            "name": "004 STRICT of ours",
            "client": {"namespace": "legacy"},
            "server": {"namespace": "full", "target_port": 80},
            "command": format!("curl {url} -s"),
            "expected": {"http_code": code, "curl_exit": exit, "client_uri": uri},
        })
    };
    let url = "http://httpbin.full:8000/headers";
    judge(&row(0, 56, Value::Null, url))?;
    for other in [
        row(200, 56, Value::Null, url),
        row(0, 0, Value::Null, url),
        row(0, 56, "spiffe://cluster.local/ns/legacy/sa/sleep".into(), url),
        row(0, 56, Value::Null, "http://httpbin.full:80/headers"),
    ] {
        ensure!(judge(&other).is_err(), "agreed with {other}");
    }
    Ok(())
}
