//! `mtls-daemon policy`: would this connection be allowed, by which policy and rule? For an operator's
//! CI: without a daemon, without root, with exit codes. What is expected here is what docs/policy.md
//! says, rule by rule, and docs/policy-cli.md about the form.
#![forbid(unsafe_code)]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use mtls_tests::process::{output, sibling};
use serde_json::{Value, json};
use tempfile::TempDir;

const WEB: &str = "cluster.local/ns/shop/sa/web";
const OPS: &str = "cluster.local/ns/shop/sa/ops";

/// The cart is for one principal, and one of its ports for another.
const CART: &str = r#"apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: cart, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
  - from: [{source: {principals: [cluster.local/ns/shop/sa/ops]}}]
    to: [{operation: {ports: ["9090"]}}]
"#;
const BY_CART: Option<&str> = Some("AuthorizationPolicy shop/cart");

const STRICT: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

const NO_DEBUGGING: &str = r#"apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-debugging, namespace: shop}
spec:
  action: DENY
  rules:
  - from: [{source: {namespaces: [jobs]}}]
  - to: [{operation: {ports: ["6060"]}}]
"#;

const ALLOWED: &str = "a rule of an ALLOW policy matches";
const NOT_ALLOWED: &str = "no rule of the ALLOW policies matches";

fn policy(words: &[&str]) -> Result<Command> {
    let mut command = Command::new(sibling("mtls-daemon", "MTLS_DAEMON_BIN")?);
    command.arg("policy").args(words);
    Ok(command)
}

fn directory(files: &[(&str, &str)]) -> Result<TempDir> {
    let place = tempfile::tempdir()?;
    for (name, text) in files {
        fs::write(place.path().join(name), text)?;
    }
    Ok(place)
}

/// `policy eval` of a directory, with these lines on stdin.
fn eval(directory: &Path, more: &[&str], lines: &str) -> Result<Output> {
    let mut command = policy(&["eval", "--config"])?;
    command.arg(directory).args(more);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("running mtls-daemon")?;
    child.stdin.take().context("stdin is piped")?.write_all(lines.as_bytes())?;
    Ok(child.wait_with_output()?)
}

/// A verb with a file of rows.
fn cases(verb: &str, table: &Value, more: &[&str]) -> Result<Output> {
    let text = table.to_string();
    let place = directory(&[("cases.json", text.as_str())])?;
    let mut command = policy(&[verb, "--cases"])?;
    command.arg(place.path().join("cases.json")).args(more);
    output(command)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The answers of a run that must end with `code`.
fn answers(run: &Output, code: i32) -> Result<Vec<Value>> {
    let (out, err) = (text(&run.stdout), text(&run.stderr));
    ensure!(run.status.code() == Some(code), "{}: {out}{err}", run.status);
    let read = |line: &str| serde_json::from_str::<Value>(line).with_context(|| out.clone());
    out.lines().map(read).collect()
}

/// The run must end with `code` and say all of `words` on stderr.
fn says(run: &Output, code: i32, words: &[&str]) -> Result<()> {
    let err = text(&run.stderr);
    ensure!(run.status.code() == Some(code), "{}: {err}", run.status);
    for word in words {
        ensure!(err.contains(word), "{word:?} is not in: {err}");
    }
    Ok(())
}

/// A connection to the cart; the principal is None in the clear.
fn to_cart(name: &str, principal: Option<&str>, port: u16) -> Value {
    json!({
        "name": name,
        "connection": {
            "src": {"principal": principal, "ip": "10.0.0.9"},
            "dst": {"namespace": "shop", "labels": {"app": "cart"}, "ip": "10.0.0.1", "port": port},
        },
    })
}

/// A request to the cart, of the web.
fn get(path: &str) -> Value {
    let mut row = to_cart(path, Some(WEB), 8080);
    row["enforcement"] = "http".into();
    row["connection"]["http"] = json!({"method": "GET", "path": path, "host": "cart.shop"});
    row
}

fn lines(rows: &[Value]) -> String {
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    lines.join("\n") + "\n"
}

/// The line that answers a row.
fn line(name: &str, result: &str, policy: Option<&str>, rule: Option<u32>, reason: &str) -> Value {
    json!({"name": name, "result": result, "policy": policy, "rule": rule, "reason": reason})
}

/// policy.md 4.1, 4.4 to 4.6: who is in a rule, and at which of the workload's ports.
#[test]
fn a_verdict_names_its_policy_and_rule() -> Result<()> {
    let place = directory(&[("cart.yaml", CART)])?;
    let mut elsewhere = to_cart("not selected", None, 8080);
    elsewhere["connection"]["dst"]["labels"]["app"] = "till".into();
    let asked = [
        to_cart("the web", Some(WEB), 8080),
        to_cart("ops, at their port", Some(OPS), 9090),
        to_cart("ops, at another", Some(OPS), 8080),
        to_cart("its name in another namespace", Some("cluster.local/ns/jobs/sa/web"), 8080),
        to_cart("its name in another trust domain", Some("example.org/ns/shop/sa/web"), 8080),
        to_cart("in the clear", None, 8080),
        elsewhere,
    ];
    let run = eval(place.path(), &[], &lines(&asked))?;
    // A denial is an answer.
    let expected = [
        line("the web", "allow", BY_CART, Some(0), ALLOWED),
        line("ops, at their port", "allow", BY_CART, Some(1), ALLOWED),
        line("ops, at another", "deny", BY_CART, None, NOT_ALLOWED),
        line("its name in another namespace", "deny", BY_CART, None, NOT_ALLOWED),
        line("its name in another trust domain", "deny", BY_CART, None, NOT_ALLOWED),
        line("in the clear", "deny", BY_CART, None, NOT_ALLOWED),
        line("not selected", "allow", None, None, "no ALLOW policy selects the workload"),
    ];
    assert_eq!(answers(&run, 0)?, expected);
    Ok(())
}

/// policy.md 1.8 and 4.1: STRICT before everything else, DENY before ALLOW.
#[test]
fn what_refuses_first_is_what_is_named() -> Result<()> {
    let files = [("cart.yaml", CART), ("deny.yaml", NO_DEBUGGING), ("strict.yaml", STRICT)];
    let place = directory(&files)?;
    let asked = [
        to_cart("in the clear", None, 8080),
        to_cart("debugging", Some(WEB), 6060),
        to_cart("a job", Some("cluster.local/ns/jobs/sa/x"), 8080),
        to_cart("the web", Some(WEB), 8080),
    ];
    let run = eval(place.path(), &[], &lines(&asked))?;
    let strict = Some("PeerAuthentication shop/default");
    let deny = Some("AuthorizationPolicy shop/no-debugging");
    let denied = "a rule of a DENY policy matches";
    let expected = [
        line("in the clear", "deny", strict, None, "STRICT refuses plaintext"),
        line("debugging", "deny", deny, Some(1), denied),
        line("a job", "deny", deny, Some(0), denied),
        line("the web", "allow", BY_CART, Some(0), ALLOWED),
    ];
    assert_eq!(answers(&run, 0)?, expected);
    Ok(())
}

/// policy.md 4.6 and 4.8: paths in one form; without HTTP such a rule allows nothing.
#[test]
fn requests_are_judged_by_their_normal_path() -> Result<()> {
    let policy = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: cart, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  rules:
  - to: [{operation: {methods: [GET], paths: [/cart/*]}}]
";
    let place = directory(&[("cart.yaml", policy)])?;
    let nested = "/cart/%%%%%%333332e";
    let mut bytes = get("/cart/1");
    bytes["enforcement"] = "tcp".into();
    bytes["name"] = "bytes".into();
    let asked = [
        get("/cart/1?all"),
        get("/a/../cart/1"),
        get("/cart/%2e%2e/admin"),
        get("/cart/%%32e%%32e/admin"),
        get(nested),
        bytes,
    ];
    let run = eval(place.path(), &[], &lines(&asked))?;
    let expected = [
        line("/cart/1?all", "allow", BY_CART, Some(0), ALLOWED),
        line("/a/../cart/1", "allow", BY_CART, Some(0), ALLOWED),
        line("/cart/%2e%2e/admin", "deny", BY_CART, None, NOT_ALLOWED),
        line("/cart/%%32e%%32e/admin", "deny", BY_CART, None, NOT_ALLOWED),
        line(nested, "deny", None, None, "400: escapes within escapes in the path"),
        line("bytes", "deny", BY_CART, None, NOT_ALLOWED),
    ];
    assert_eq!(answers(&run, 0)?, expected);
    Ok(())
}

/// policy.md 4.7: `cluster.local` stands for the mesh's own trust domain and its aliases.
#[test]
fn eval_knows_the_trust_domain_by_its_flags() -> Result<()> {
    let place = directory(&[("cart.yaml", CART)])?;
    let flags = ["--trust-domain", "prod.example", "--alias", "old.example"];
    let asked = ["prod.example", "old.example", "new.example"]
        .map(|domain| to_cart(domain, Some(&format!("{domain}/ns/shop/sa/web")), 8080));
    let run = eval(place.path(), &flags, &lines(&asked))?;
    let expected = [
        line("prod.example", "allow", BY_CART, Some(0), ALLOWED),
        line("old.example", "allow", BY_CART, Some(0), ALLOWED),
        line("new.example", "deny", BY_CART, None, NOT_ALLOWED),
    ];
    assert_eq!(answers(&run, 0)?, expected);
    Ok(())
}

/// policy.md 4.1: what was refused is denied, not left out.
#[test]
fn a_policy_that_is_wrong_allows_nothing() -> Result<()> {
    let wrong = CART.replace("ALLOW", "PERHAPS");
    let place = directory(&[("cart.yaml", wrong.as_str())])?;
    let run = eval(place.path(), &[], &lines(&[to_cart("the web", Some(WEB), 8080)]))?;
    let refused = "the policy was refused, so what it selects is denied";
    assert_eq!(answers(&run, 64)?, [line("the web", "deny", BY_CART, None, refused)]);
    let instead = "1 objects refused; the answers are those of what is in force instead";
    says(&run, 64, &["cart.yaml:6: ", "[E_FIELD_VALUE]", "[E_REFUSED]", instead])?;

    // `check` says what is in force in its place, `lint` only what is wrong.
    let mut lint = policy(&["lint"])?;
    lint.arg(place.path());
    let run = output(lint)?;
    let found = text(&run.stdout);
    ensure!(run.status.code() == Some(65), "{}: {found}", run.status);
    ensure!(found.contains("cart.yaml:6: ") && found.contains("[E_FIELD_VALUE]"), "{found}");
    ensure!(!found.contains("E_REFUSED"), "{found}");
    let mut check = Command::new(sibling("mtls-daemon", "MTLS_DAEMON_BIN")?);
    check.arg("check").arg(place.path());
    says(&output(check)?, 64, &["cart.yaml:6: ", "[E_FIELD_VALUE]", "[E_REFUSED]"])
}

#[test]
fn check_exits_with_1_and_names_what_disagrees() -> Result<()> {
    let objects = json!([{
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "cart", "namespace": "shop"},
        "spec": {"rules": [{"from": [{"source": {"principals": [WEB]}}]}]},
    }]);
    let row = |name: &str, principal: &str, expected: &str| {
        let mut row = to_cart(name, Some(principal), 8080);
        row["expected"] = expected.into();
        row
    };
    let right = [row("the web may", WEB, "allow"), row("ops may not", OPS, "deny")];
    let run = cases("eval", &json!({"objects": objects, "cases": right}), &["--check"])?;
    let expected = [
        line("the web may", "allow", BY_CART, Some(0), ALLOWED),
        line("ops may not", "deny", BY_CART, None, NOT_ALLOWED),
    ];
    assert_eq!(answers(&run, 0)?, expected);
    says(&run, 0, &["2 rows, 2 agree, 0 disagree"])?;

    let mut some_day = row("ops will", OPS, "allow");
    some_day["skip"] = true.into();
    let rows = [row("the web may", WEB, "allow"), row("ops may", OPS, "allow"), some_day];
    let table = json!({"objects": objects, "cases": rows});
    let run = cases("eval", &table, &["--check"])?;
    let disagrees = r#"disagrees: ops may: expected "allow", got "deny""#;
    says(&run, 1, &[disagrees, "3 rows, 1 agree, 1 disagree, 1 skip"])?;
    // Every row is answered all the same.
    assert_eq!(answers(&run, 1)?.len(), 3);
    // A row that expects nothing has to be answered; one alone is held to nothing.
    let mut silent = to_cart("a question", Some(WEB), 8080);
    let rows = |silent: &Value| json!([row("the web may", WEB, "allow"), silent]);
    let run = cases("eval", &json!({"objects": objects, "cases": rows(&silent)}), &["--check"])?;
    says(&run, 0, &["2 rows, 1 agree, 0 disagree", "1 expect nothing"])?;
    silent["expect"] = "deny".into();
    let run = cases("eval", &json!({"objects": objects, "cases": [silent]}), &["--check"])?;
    says(&run, 64, &["no row of", "expects anything"])?;
    assert_eq!(answers(&run, 64)?.len(), 1);
    silent["connection"]["dst"]["port"] = Value::Null;
    let run = cases("eval", &json!({"objects": objects, "cases": rows(&silent)}), &["--check"])?;
    says(&run, 1, &["disagrees: a question: expected an answer, got an error", "1 disagree"])?;
    silent["needs"] = "a port".into();
    let run = cases("eval", &json!({"objects": objects, "cases": rows(&silent)}), &["--check"])?;
    says(&run, 0, &["2 rows, 1 agree, 0 disagree", "1 needs"])?;
    // Nobody asked whether that is what was expected.
    assert_eq!(answers(&cases("eval", &table, &[])?, 0)?.len(), 3);
    Ok(())
}

#[test]
fn a_line_that_is_no_connection_is_named_and_the_others_are_answered() -> Result<()> {
    let place = directory(&[("cart.yaml", CART)])?;
    let mut unnamed = to_cart("", Some(WEB), 8080);
    unnamed.as_object_mut().context("an object")?.remove("name");
    let mut without_port = to_cart("no port", Some(WEB), 8080);
    without_port["connection"]["dst"]["port"] = Value::Null;
    let asked = format!("{unnamed}\n\nnot JSON\n{without_port}\n{unnamed}\n");
    let run = eval(place.path(), &[], &asked)?;
    says(&run, 1, &["2 lines of stdin are no connections"])?;
    let answered = answers(&run, 1)?;
    assert_eq!(answered.len(), 4, "the empty line is no row: {answered:?}");
    assert_eq!(answered[0], line("line 1", "allow", BY_CART, Some(0), ALLOWED));
    for (answer, name, word) in
        [(&answered[1], "line 3", "not JSON"), (&answered[2], "no port", "connection.dst.port")]
    {
        assert_eq!((&answer["name"], &answer["result"]), (&json!(name), &Value::Null), "{answer}");
        ensure!(answer["error"].as_str().is_some_and(|error| error.contains(word)), "{answer}");
    }
    assert_eq!(answered[3], line("line 5", "allow", BY_CART, Some(0), ALLOWED));
    Ok(())
}

#[test]
fn what_cannot_be_read_is_64_with_its_place_and_what_is_missing_is_usage() -> Result<()> {
    let place = directory(&[("cart.yaml", CART), ("more.yaml", "kind: X\nspec: [\n")])?;
    says(&eval(place.path(), &[], "")?, 64, &["more.yaml:2: ", "[E_YAML_SYNTAX]"])?;
    let misspelt = CART.replace("kind: Auth", "kind: Aut");
    let place = directory(&[("cart.yaml", misspelt.as_str())])?;
    says(&eval(place.path(), &[], "")?, 64, &["cart.yaml:1: ", "[E_OBJECT_KIND]"])?;
    says(&eval(&place.path().join("nowhere"), &[], "")?, 64, &["nowhere", "[E_FILE_READ]"])?;

    let place = directory(&[("half.json", "{\"cases\": [")])?;
    for (file, word) in [("half.json", "is not JSON"), ("none.json", "cannot read")] {
        let mut command = policy(&["eval", "--cases"])?;
        command.arg(place.path().join(file));
        says(&output(command)?, 64, &[file, word])?;
    }
    says(&cases("eval", &json!({"cases": []}), &[])?, 64, &["no rows in cases"])?;
    for (flag, value) in
        [("--config", "."), ("--root-namespace", "a"), ("--trust-domain", "a"), ("--alias", "a")]
    {
        // The file says them itself.
        says(&cases("eval", &json!({"cases": []}), &[flag, value])?, 2, &[flag])?;
    }
    says(&output(policy(&["eval"])?)?, 2, &["--config"])?;
    says(&output(policy(&["eval", "--check"])?)?, 2, &["--cases"])?;
    says(&output(policy(&["status"])?)?, 1, &["--cases FILE is missing"])
}

/// policy.md 4.8.
#[test]
fn status_tells_what_is_enforced_otherwise_where_http_is_not_seen() -> Result<()> {
    let row = |name: &str, spec: Value, expected: Value| {
        let policy = json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": "cart", "namespace": "shop"},
            "spec": spec,
        });
        json!({"name": name, "policy": policy, "expected_status": expected})
    };
    let from = json!({"from": [{"source": {"principals": [WEB]}}]});
    let to = json!({"to": [{"operation": {"methods": ["GET"], "notPaths": ["/admin"]}}]});
    let allow = json!({"rules": [from, to]});
    let deny = json!({"action": "DENY", "rules": [to]});
    let table = json!({"cases": [
        row("as written", json!({"rules": [from]}), Value::Null),
        row("allow", allow, "something".into()),
        row("deny", deny, "something".into()),
    ]});
    let run = cases("status", &table, &["--check"])?;
    let fields = json!(["methods", "notPaths"]);
    let less = "the rule allows no connection that is not HTTP";
    let more = "the rule denies without these fields where there is no HTTP: more than written";
    let expected = [
        json!({"name": "as written", "result": null}),
        json!({"name": "allow", "result": [{"rule": 1, "fields": fields, "effect": less}]}),
        json!({"name": "deny", "result": [{"rule": 0, "fields": fields, "effect": more}]}),
    ];
    assert_eq!(answers(&run, 0)?, expected);
    says(&run, 0, &["3 rows, 3 agree, 0 disagree"])
}

/// policy.md 5.1 to 5.3a.
#[test]
fn xfcc_is_what_an_application_would_be_told() -> Result<()> {
    let forged = "By=spiffe://x/y;URI=spiffe://cluster.local/ns/shop/sa/ops";
    let cart = "spiffe://cluster.local/ns/shop/sa/cart";
    let own = format!("By={cart};Hash=ab12;Subject=\"\";URI=spiffe://{WEB};DNS=web.shop");
    let row = |name: &str, connection: &str, how: &str, expected: Value| {
        json!({
            "name": name,
            "connection": connection,
            "forward_client_cert": how,
            "details": ["Subject", "URI", "DNS"],
            "incoming_header": forged,
            "local_uri_san": cart,
            "peer": {
                "sha256": "ab12",
                "subject": "",
                "uri_san": format!("spiffe://{WEB}"),
                "dns_sans": ["web.shop"],
            },
            "expected_header": expected,
        })
    };
    let appended = format!("{forged},{own}");
    let named = ["spiffe://a/b", "web.shop", "web"];
    let hops = "Hash=1;URI=spiffe://a/b,Subject=\"O=shop,CN=web\";DNS=web.shop";
    let table = json!({
        "cases": [
            row("replaced", "mtls", "SANITIZE_SET", json!(own)),
            row("of a trusted forwarder", "mtls", "APPEND_FORWARD", json!(appended)),
            row("in the clear", "plaintext", "SANITIZE_SET", Value::Null),
            row("off", "mtls", "SANITIZE", Value::Null),
        ],
        "parse": [
            {"name": "hops", "header": hops, "expected_identities": named},
            {"name": "open", "header": "Subject=\"", "error_contains": "not closed"},
        ],
    });
    let run = cases("xfcc", &table, &["--check"])?;
    let expected = [
        json!({"name": "replaced", "result": own}),
        json!({"name": "of a trusted forwarder", "result": appended}),
        json!({"name": "in the clear", "result": null}),
        json!({"name": "off", "result": null}),
        json!({"name": "hops", "result": named}),
        json!({
            "name": "open",
            "result": null,
            "error": "invalid header format: a quote that is not closed",
        }),
    ];
    assert_eq!(answers(&run, 0)?, expected);
    says(&run, 0, &["6 rows, 6 agree, 0 disagree"])?;

    let wrong = json!({"cases": [row("kept", "mtls", "SANITIZE_SET", json!(forged))]});
    says(&cases("xfcc", &wrong, &["--check"])?, 1, &["disagrees: kept: "])
}
