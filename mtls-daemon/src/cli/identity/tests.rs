//! The verbs as operators call them, on the project's own rows and, where `MTLS_CONFORMANCE` names a
//! directory, on those of other projects' tests.

use std::path::Path;

use clap::Parser;
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use super::*;
use crate::cli::{Cli, execute};

fn run(arguments: &[&str]) -> Result<(), Failed> {
    let line = ["mtls-daemon", "identity"].iter().chain(arguments);
    execute(Cli::try_parse_from(line).expect("well formed"))
}

/// The verb on these rows, in a directory of their own.
fn rows(directory: &Path, verb: &str, document: &Value) -> Result<(), Failed> {
    let path = directory.join("rows.json");
    std::fs::write(&path, document.to_string()).unwrap();
    run(&[verb, "--cases", path.to_str().unwrap(), "--check"])
}

/// Every row agrees, and every row that is turned round disagrees.
fn check(directory: &Path, verb: &str, list: &str, cases: Value) {
    let all = cases.as_array().unwrap();
    if let Err(failed) = rows(directory, verb, &json!({list: cases})) {
        panic!("{verb}: {failed}");
    }
    for row in all {
        let mut row = row.clone();
        let field = if row.get("valid").is_some() { "valid" } else { "expected" };
        row[field] = match &row[field] {
            Value::Bool(value) => json!(!value),
            Value::Array(_) | Value::Null => json!("something else"),
            _ => Value::Null,
        };
        let failed = rows(directory, verb, &json!({list: [row]})).expect_err("it disagrees");
        assert_eq!(failed.exit, Exit::Failure, "{row}");
    }
}

#[test]
fn identities_are_parsed() {
    let directory = tempfile::tempdir().unwrap();
    let row = |name: &str, input: &str, parts: Option<(&str, &str)>| match parts {
        Some((domain, path)) => {
            json!({"name": name, "input": input, "valid": true, "trust_domain": domain, "path": path})
        }
        None => json!({"name": name, "input": input, "valid": false}),
    };
    let cases = json!([
        row("id: of a workload", "spiffe://mesh/ns/a/sa/b", Some(("mesh", "/ns/a/sa/b"))),
        row("id: of a trust domain", "spiffe://mesh.test", Some(("mesh.test", ""))),
        row("id: a name alone", "mesh.test", None),
        row("id: upper case in the scheme", "Spiffe://mesh.test/a", None),
        row("id: upper case in the trust domain", "spiffe://Mesh.test/a", None),
        row("id: upper case in the path", "spiffe://mesh.test/A", Some(("mesh.test", "/A"))),
        row("id: a port", "spiffe://mesh.test:1/a", None),
        row("id: too long", &format!("spiffe://mesh.test/{}", "a".repeat(2048)), None),
        row("td: a name", "mesh.test", Some(("mesh.test", ""))),
        row("td: of an ID", "spiffe://mesh.test/a", Some(("mesh.test", "/a"))),
        row("td: of an ID that is none", "spiffe://mesh.test/a/", None),
        row("td: another scheme", "https://mesh.test", None),
        row("td: upper case", "Mesh.test", None),
        row("td: too long", &"a".repeat(256), None),
    ]);
    check(directory.path(), "parse", "cases", cases);

    run(&["parse", "spiffe://mesh.test/a"]).unwrap();
    run(&["parse", "--trust-domain", "mesh.test"]).unwrap();
    let failed = run(&["parse", "spiffe://mesh.test/a", "mesh.test"]).unwrap_err();
    assert_eq!(
        (failed.exit, failed.to_string()),
        (Exit::Failure, "\"mesh.test\" is not valid".into())
    );
}

#[test]
fn identities_are_made_and_compared() {
    let directory = tempfile::tempdir().unwrap();
    let made = |op: &str, more: Value, path: Option<&str>| {
        let mut row = json!({"name": op, "op": op, "trust_domain": "mesh.test"});
        row["valid"] = path.is_some().into();
        row["path"] = path.into();
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        if path.is_none() {
            row.as_object_mut().unwrap().remove("path");
        }
        row
    };
    let matched = |matcher: &str, argument: Value, input: &str, expected: bool| {
        json!({"name": "match", "op": "match", "matcher": matcher, "arg": argument, "input": input,
               "expected": expected})
    };
    let cases = json!([
        made("from_path", json!({"path_in": "/a/b"}), Some("/a/b")),
        made("from_path", json!({"path_in": "a"}), None),
        made("from_segments", json!({"segments": []}), Some("")),
        made("from_segments", json!({"segments": ["a", "b"]}), Some("/a/b")),
        made("from_segments", json!({"segments": ["a/b"]}), None),
        made("from_segments", json!({"segments": [""]}), None),
        made("replace_path", json!({"start": "/x", "path_in": "/a"}), Some("/a")),
        made("replace_segments", json!({"start": "/x", "segments": ["a"]}), Some("/a")),
        made("append_path", json!({"start": "/x", "path_in": ""}), Some("/x")),
        made("append_path", json!({"start": "/x", "path_in": "/a/.."}), None),
        made("append_path", json!({"start": "/x", "path_in": "y"}), None),
        made("append_segments", json!({"start": "/x", "segments": ["a"]}), Some("/x/a")),
        json!({"name": "member", "op": "member_of", "trust_domain": "mesh.test",
               "input": "spiffe://mesh.test/a", "expected": true}),
        json!({"name": "of a longer name", "op": "member_of", "trust_domain": "mesh.test",
               "input": "spiffe://mesh.tester/a", "expected": false}),
        matched("any", Value::Null, "", true),
        matched("id", json!("spiffe://mesh.test/a"), "spiffe://mesh.test/a", true),
        matched("id", json!("spiffe://mesh.test/a"), "", false),
        matched("one_of", json!(["spiffe://mesh.test/a"]), "spiffe://mesh.test/b", false),
        matched("one_of", json!([]), "", false),
        matched("member_of", json!("mesh.test"), "spiffe://mesh.test", true),
        json!({"name": "split", "op": "parse_identity", "input": "spiffe://mesh/ns/a/sa/b",
               "expected": {"trust_domain": "mesh", "namespace": "a", "service_account": "b"}}),
        json!({"name": "six", "op": "parse_identity", "input": "spiffe://mesh/ns/a/sa/b/c",
               "expected": null}),
        json!({"name": "an account of a cloud", "op": "gen_uri", "trust_domain": "me@mesh.test",
               "namespace": "a", "service_account": "b", "expected": "spiffe://me.mesh.test/ns/a/sa/b",
               "error": null}),
        json!({"name": "no account", "op": "gen_uri", "trust_domain": "mesh.test",
               "namespace": "a", "service_account": "", "expected": null}),
        json!({"name": "any order", "op": "expand_san", "trust_domains": ["old@test"],
               "san": ["spiffe://mesh.test/ns/a/sa/b", "spiffe://mesh.test/other"],
               "expected": ["spiffe://old.test/ns/a/sa/b", "spiffe://mesh.test/other",
                            "spiffe://mesh.test/ns/a/sa/b"]}),
    ]);
    check(directory.path(), "op", "cases", cases);
    let unknown = json!({"cases": [{"name": "x", "op": "fly", "valid": false}]});
    assert!(rows(directory.path(), "op", &unknown).is_err(), "no operation is not false");
}

/// A leaf, an intermediate and the leaf's key, as files of both kinds.
fn files(directory: &Path) -> (CertificateDer<'static>, CertificateDer<'static>) {
    let root = recipe::Signer::root().unwrap();
    let above = root.sign(&recipe::ca()).unwrap();
    let mut params = recipe::svid();
    params.subject_alt_names = vec![recipe::uri("spiffe://mesh.test/a").unwrap()];
    let leaf = above.sign(&params).unwrap();
    let pem = |der: &CertificateDer<'_>| {
        let text = data_encoding::BASE64.encode(der);
        let lines = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap());
        let body: Vec<&str> = lines.collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", body.join("\n"))
    };
    let write = |name: &str, bytes: &[u8]| std::fs::write(directory.join(name), bytes).unwrap();
    write("chain.pem", format!("{}{}", pem(&leaf.certificate), pem(&above.certificate)).as_bytes());
    write("chain.der", &[leaf.certificate.as_ref(), above.certificate.as_ref()].concat());
    write("root.pem", pem(&root.certificate).as_bytes());
    let document = json!({"keys": [{"use": "x509-svid", "kty": "EC",
                                    "x5c": [data_encoding::BASE64.encode(&root.certificate)]}]});
    write("root.json", document.to_string().as_bytes());
    write("key.pem", leaf.key.serialize_pem().as_bytes());
    write("key.der", leaf.key.serialized_der());
    write("other.pem", KeyPair::generate().unwrap().serialize_pem().as_bytes());
    write("empty.json", br#"{"keys": []}"#);
    (leaf.certificate, above.certificate)
}

#[test]
fn svids_are_read_from_files() {
    let directory = tempfile::tempdir().unwrap();
    files(directory.path());
    let row = |name: &str, more: Value, valid: bool| {
        let mut row = json!({"name": name, "format": "der", "certs": "chain.der", "valid": valid});
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        if valid {
            row["spiffe_id"] = "spiffe://mesh.test/a".into();
        }
        row
    };
    let pem = json!({"format": "pem", "certs": "chain.pem", "key": "key.pem", "num_certs": 2});
    let cases = json!([
        row("PEM with its key", pem, true),
        row("DER with its key", json!({"key": "key.der", "num_certs": 2}), true),
        row("without a key", json!({}), true),
        row("an empty key", json!({"key": null}), false),
        row(
            "another key",
            json!({"format": "pem", "certs": "chain.pem", "key": "other.pem"}),
            false
        ),
        row("a key for certificates", json!({"format": "pem", "certs": "key.pem"}), false),
        row("none", json!({"certs": null}), false),
        row("18", json!({"mutation": "concatenate the file with itself 9 times"}), false),
        row("more", json!({"mutation": "append bytes 00 01"}), false),
        row(
            "the leaf's KeyUsage",
            json!({"mutation": "fill the OCTET STRING of extension 2.5.29.15 with FF"}),
            false
        ),
        row(
            "the signer's BasicConstraints",
            json!({"mutation": "as above, in the 2nd certificate only"}),
            false
        ),
        row(
            "the signer's KeyUsage",
            json!({"mutation": "as above, in the 2nd certificate only"}),
            false
        ),
    ]);
    check(directory.path(), "check-svid", "parse", cases);
    let unknown = row("x", json!({"mutation": "eat it"}), false);
    assert!(rows(directory.path(), "check-svid", &json!({"cases": [unknown]})).is_err());
}

#[test]
fn svids_are_made_from_recipes() {
    let directory = tempfile::tempdir().unwrap();
    let uri = "spiffe://mesh.test/a";
    let row = |name: &str, recipe: Value, valid: bool| json!({"name": name, "recipe": recipe, "valid": valid});
    let cases = json!([
        row(
            "sound",
            json!({"uri_sans": [uri], "ca": false, "key_usage": ["digitalSignature"]}),
            true
        ),
        row("with a DNS name", json!({"uri_sans": [uri], "dns_sans": ["a.test"]}), true),
        row(
            "both purposes",
            json!({"uri_sans": [uri], "ext_key_usage": ["serverAuth", "clientAuth"]}),
            true
        ),
        row("one purpose", json!({"uri_sans": [uri], "ext_key_usage": ["serverAuth"]}), false),
        row(
            "any purpose",
            json!({"uri_sans": [uri], "ext_key_usage": ["anyExtendedKeyUsage"]}),
            false
        ),
        row("no path", json!({"uri_sans": ["spiffe://mesh.test"]}), false),
        row("two of one", json!({"uri_sans": [uri, uri]}), false),
        row("a CA", json!({"uri_sans": [uri], "ca": true}), false),
        row("no key usage", json!({"uri_sans": [uri], "key_usage": []}), false),
        row(
            "a signer's key usage",
            json!({"uri_sans": [uri], "key_usage": ["digitalSignature", "keyCertSign"]}),
            false
        ),
    ]);
    check(directory.path(), "check-svid", "generated", cases);
}

#[test]
fn svids_are_verified_in_made_up_worlds() {
    let directory = tempfile::tempdir().unwrap();
    let uri = "spiffe://one.test/a";
    let row = |name: &str, setup: Value, valid: bool| {
        let mut all = json!({"leaf_uri": uri, "leaf_signed_by": "ca1",
                             "bundles": {"one.test": ["ca1"]}});
        all.as_object_mut().unwrap().extend(setup.as_object().unwrap().clone());
        json!({"name": name, "setup": all, "valid": valid})
    };
    let chain = |above: &str| json!({"chain": ["leaf", above]});
    let cases = json!([
        row("sound", json!({}), true),
        row("two roots of one name", json!({"bundles": {"one.test": ["ca2", "ca1"]}}), true),
        row(
            "another root of its name",
            json!({"bundles": {"one.test": ["ca2 (explained)"]}}),
            false
        ),
        row("no roots", json!({"bundles": {"one.test": []}}), false),
        row("no bundle", json!({"bundles": {}}), false),
        row(
            "its root is another domain's",
            json!({"bundles": {"one.test": ["ca2"], "two.test": ["ca1"]}}),
            false
        ),
        row("it names another domain", json!({"leaf_uri": "spiffe://two.test/a"}), false),
        row(
            "both domains are known",
            json!({"leaf_uri": "spiffe://two.test/a",
             "bundles": {"one.test": ["ca2"], "two.test": ["ca1"]}}),
            true
        ),
        row("a CA between", chain("int spiffe://one.test/b (CA)"), true),
        row("no CA between", chain("int spiffe://one.test/b"), false),
        row("no certificate", json!({"chain": []}), false),
        row("a CA's leaf", json!({"leaf_ca": true}), false),
        row("a signer's leaf", json!({"extra_key_usage": "cRLSign"}), false),
        row("it is one of these", json!({"accepted": ["spiffe://one.test/b", uri]}), true),
        row("it is none of these", json!({"accepted": ["spiffe://one.test/b"]}), false),
        row("nobody is accepted", json!({"accepted": []}), false),
        row("at its end", json!({"verify_at": "NotAfter"}), true),
        row("after its end", json!({"verify_at": "NotAfter+1s"}), false),
        row("before its time", json!({"verify_at": "NotBefore-1s"}), false),
    ]);
    check(directory.path(), "check-svid", "verify", cases);
    let unknown = row("x", json!({"clouds": true}), false);
    assert!(rows(directory.path(), "check-svid", &json!({"verify": [unknown]})).is_err());
}

#[test]
fn an_operator_checks_files() {
    let directory = tempfile::tempdir().unwrap();
    let (_, _) = files(directory.path());
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let svid = |arguments: &[&str]| {
        let (certs, key) = (path("chain.pem"), path("key.pem"));
        let line = ["check-svid", "--certs", &certs, "--key", &key];
        run(&[&line, arguments].concat()).map_err(|failed| failed.exit)
    };
    assert_eq!(svid(&[]), Ok(()));
    for bundle in ["root.pem", "root.json"] {
        let bundle = path(bundle);
        let known = ["--bundle", &bundle, "--trust-domain", "mesh.test"];
        assert_eq!(svid(&known), Ok(()));
        let accept = |id| [&known[..], &["--accept", id]].concat();
        assert_eq!(svid(&accept("spiffe://mesh.test/a")), Ok(()));
        assert_eq!(svid(&accept("spiffe://mesh.test/b")), Err(Exit::Failure));
        let late = [&known[..], &["--at", "2001-01-01T00:00:00Z"]].concat();
        assert_eq!(svid(&late), Err(Exit::Failure));
        let other = ["--bundle", &bundle, "--trust-domain", "other.test"];
        assert_eq!(svid(&other), Err(Exit::Failure));
        run(&["check-bundle", &bundle, "--trust-domain", "mesh.test"]).unwrap();
    }
    let empty = path("empty.json");
    assert_eq!(svid(&["--bundle", &empty, "--trust-domain", "mesh.test"]), Err(Exit::Failure));
    run(&["check-bundle", &empty, "--trust-domain", "mesh.test"]).expect("it trusts nothing");
    let missing = path("missing");
    assert_eq!(
        svid(&["--bundle", &missing, "--trust-domain", "mesh.test"]),
        Err(Exit::Config),
        "not a verdict"
    );
    let failed = run(&["check-bundle", &path("key.pem"), "--trust-domain", "mesh.test"]);
    assert_eq!(failed.unwrap_err().exit, Exit::Failure);
}

#[test]
fn bundles_are_read() {
    let directory = tempfile::tempdir().unwrap();
    files(directory.path());
    let cases = json!([
        {"name": "PEM", "kind": "pem-bundle", "file": "root.pem", "valid": true, "x509_authorities": 1},
        {"name": "a document", "kind": "spiffe-bundle-jwks", "file": "root.json", "valid": true,
         "x509_authorities": 1, "jwt_authorities": 0},
        {"name": "numbers", "text": "{\"keys\": [], \"spiffe_sequence\": 3, \"spiffe_refresh_hint\": 9}",
         "valid": true, "x509_authorities": 0, "spiffe_sequence": 3, "spiffe_refresh_hint": 9},
        {"name": "no PEM", "kind": "pem-bundle", "file": "root.json", "valid": false},
        {"name": "no keys", "text": "{}", "valid": false},
        {"name": "nothing", "kind": "spiffe-bundle-jwks", "text": "", "valid": false},
    ]);
    check(directory.path(), "check-bundle", "cases", cases);
}

/// Rows marked `disputed` are decided in docs/identity.md and asserted above, by rows of our own.
#[test]
fn other_implementations_cases_agree() {
    let Some(folder) = std::env::var_os("MTLS_CONFORMANCE") else {
        eprintln!("MTLS_CONFORMANCE is not set: only the project's own rows run");
        return;
    };
    for (verb, file) in [
        ("parse", "spiffe-id"),
        ("parse", "spiffe-trustdomain"),
        ("op", "istio-identity"),
        ("op", "spiffe-ops"),
        ("check-svid", "x509svid"),
        ("check-bundle", "spiffe-bundle"),
    ] {
        let path = Path::new(&folder).join(file).with_extension("json");
        let result = run(&[verb, "--cases", path.to_str().expect("UTF-8"), "--check"]);
        result.unwrap_or_else(|failed| panic!("{failed}"));
    }
}
