//! HTTP through both daemons, as applications and an operator meet it: what an application is told
//! of its client, which requests reach it in which form, and what is answered in its place.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mtls_tests::apps::BANNER;
use mtls_tests::client::{End, converse};
use mtls_tests::curl::Curl;
use mtls_tests::recorder::{Recorder, Seen};
use mtls_tests::servers::nginx_http2;
use mtls_tests::talker::Answer;
use mtls_tests::web::{self, AUTO, CLIENT, DEAD, GATEWAY, HTTP2, PORT, Web, XFCC, service};
use mtls_tests::world::serve;
use serde_json::json;

/// In no service: its server speaks first.
const BANNER_PORT: u16 = 7001;

/// Headers that claim to know the client, in the spellings that applications fold into one.
const FORGED: [&str; 3] = [
    "X-Forwarded-Client-Cert: By=x;Hash=forged;URI=spiffe://cluster.local/ns/edge/sa/admin",
    "x-forwarded-client-cert: Hash=forged",
    "X-FORWARDED-CLIENT-CERT: ,Hash=forged",
];

fn forged() -> String {
    let headers = FORGED.join("\r\n");
    format!("GET /forged HTTP/1.1\r\nHost: app\r\n{headers}\r\n\r\n")
}

fn check_header(seen: &Seen, expected: &[&str]) -> Result<()> {
    ensure!(seen.header(XFCC) == expected, "{XFCC} should be {expected:?}: {}", seen.head);
    ensure!(!seen.head.contains("forged;") && !seen.head.contains("=forged"), "{}", seen.head);
    Ok(())
}

#[test]
fn an_application_is_told_who_its_client_is_and_nothing_forged() -> Result<()> {
    let forwarder = GATEWAY.trim_start_matches("spiffe://");
    let mut town = web::start(|spec| spec.with("--trusted-forwarder", forwarder))?;
    let client = town.element("client", CLIENT)?;

    // By curl, by a service's address and by the pod's own.
    for to in [town.server(PORT), service(1), town.server(AUTO)] {
        let got = town.curl("client", to, "/", &["--header", FORGED[0], "--header", FORGED[2]])?;
        ensure!((got.exit, got.code) == (0, 200), "{to}: {got:?}");
        let app = if to.port() == AUTO { &town.auto } else { &town.app };
        check_header(&app.last()?, &[&client])?;
    }
    // On every request of one connection, forged or not, pipelined or not.
    let mark = town.app.mark();
    let mut talker = town.talker("client", town.server(PORT))?;
    for _ in 0..2 {
        ensure!(talker.get("/plain")?.code == 200);
        ensure!(talker.ask(forged())?.code == 200);
    }
    talker.send(forged().repeat(3))?;
    for _ in 0..3 {
        ensure!(talker.answer()?.code == 200);
    }
    let seen = town.app.requests(mark);
    ensure!(seen.len() == 7, "{seen:?}");
    seen.iter().try_for_each(|seen| check_header(seen, &[&client]))?;

    // In the clear nobody is known, and nobody is named.
    let mark = (town.app.mark(), town.auto.mark());
    for to in [town.server(PORT), town.server(AUTO)] {
        let mut talker = town.talker("stranger", to)?;
        for request in [forged(), forged()] {
            ensure!(talker.ask(request)?.code == 200);
        }
    }
    let mut seen = town.app.requests(mark.0);
    seen.extend(town.auto.requests(mark.1));
    ensure!(seen.len() == 4, "{seen:?}");
    seen.iter().try_for_each(|seen| check_header(seen, &[]))?;

    // An application that reads no such header is told nothing. Its bytes are relayed as they are,
    // until a policy wants its requests to be looked at: then nothing forged arrives, either.
    let quiet = town.world.pod("quiet").v4(PORT);
    for client in ["client", "stranger"] {
        ensure!(town.talker(client, quiet)?.get("/")?.code == 200);
        check_header(&town.quiet.last()?, &[])?;
        ensure!(town.talker(client, quiet)?.ask(forged())?.code == 200);
        let seen = town.quiet.last()?;
        ensure!(seen.header(XFCC).len() == FORGED.len(), "relayed as it is: {}", seen.head);
    }
    let rules = json!([{"to": [{"operation": {"paths": ["/admin"]}}]}]);
    town.policy(&json!({"action": "DENY", "rules": rules}))?;
    for client in ["client", "stranger"] {
        let mut talker = town.talker(client, quiet)?;
        ensure!(talker.ask(forged())?.code == 200);
        check_header(&town.quiet.last()?, &[]).with_context(|| format!("off, {client}"))?;
        check_denied(&talker.get("/admin")?)?;
    }
    town.without_policy()?;

    // A gateway is trusted to know who came before it.
    let gateway = town.element("gateway", GATEWAY)?;
    let before = "By=x;Hash=y;URI=spiffe://outside/a";
    let header = format!("{XFCC}: {before}");
    let got = town.curl("gateway", town.server(PORT), "/", &["--header", &header])?;
    ensure!(got.code == 200, "{got:?}");
    check_header(&town.app.last()?, &[&format!("{before},{gateway}")])
}

#[test]
fn no_forged_header_arrives_on_a_disabled_port_that_nobody_declared() -> Result<()> {
    let mut town = web::start(|spec| spec)?;
    let quiet = Recorder::start(town.world.pod("quiet"), AUTO)?;
    let _banner = serve(town.world.pod("server"), "banner", BANNER_PORT)?;
    town.world.change(|mesh| {
        mesh.namespace_mode("app", "DISABLE");
    })?;
    let to = town.server(AUTO);
    for client in ["client", "stranger"] {
        let more = ["--header", FORGED[0], "--header", FORGED[2]];
        let got = town.curl(client, to, "/", &more)?;
        ensure!((got.exit, got.code) == (0, 200), "{client}: {got:?}");
        check_header(&town.auto.last()?, &[]).with_context(|| client.to_owned())?;
        let mark = town.auto.mark();
        let mut talker = town.talker(client, to)?;
        ensure!(talker.get("/first")?.code == 200);
        talker.send(forged().repeat(2))?;
        ensure!((talker.answer()?.code, talker.answer()?.code) == (200, 200), "{client}");
        let seen = town.auto.requests(mark);
        ensure!(seen.len() == 3, "{client}: {seen:?}");
        seen.iter().try_for_each(|seen| check_header(seen, &[]))?;

        // What is not HTTP is the application's as it is, also where the server speaks first.
        let pod = town.world.pod(client);
        for bytes in ["\u{1}not HTTP\n", "some words of another protocol"] {
            let talk = pod.inside(|| converse(to, bytes))?;
            ensure!(talk.worked(), "{client}: {bytes:?}: {talk:?}");
        }
        let mut silent = town.talker(client, town.server(BANNER_PORT))?;
        silent.hear(BANNER).with_context(|| client.to_owned())?;

        // An application that reads no such header: its connections are its own.
        let untouched = town.world.b().decided("inbound_untouched")?;
        ensure!(town.talker(client, town.world.pod("quiet").v4(AUTO))?.ask(forged())?.code == 200);
        ensure!(town.world.b().decided("inbound_untouched")? == untouched + 1.0, "{client}");
        ensure!(quiet.last()?.header(XFCC).len() == FORGED.len(), "relayed as it is");
    }
    Ok(())
}

#[test]
fn http2_is_told_and_judged_alike() -> Result<()> {
    let mut town = web::start(|spec| spec)?;
    let pod = town.world.pod("server");
    let _nginx = nginx_http2(pod, &town.world.bed.directory, HTTP2)?;
    let client = town.element("client", CLIENT)?;
    town.policy(&json!({
        "action": "DENY",
        "rules": [{"to": [{"operation": {"paths": ["/admin*"]}}]}],
    }))?;
    let to = town.server(HTTP2);
    for (from, element) in [("client", client.as_str()), ("stranger", "")] {
        let ask = |path: &str| {
            let more = ["--http2-prior-knowledge", "--path-as-is", "--header", FORGED[0]];
            town.curl(from, to, path, &more)
        };
        let got = ask("/public")?;
        ensure!((got.exit, got.code) == (0, 200), "{from}: {got:?}");
        ensure!(got.body == format!("HTTP/2.0 /public {element}"), "{from}: {got:?}");
        let got = ask("/admin/../public?q=1")?;
        ensure!(got.body == format!("HTTP/2.0 /public?q=1 {element}"), "{from}: {got:?}");
        for path in ["/admin", "/public/../admin", "/%61dmin"] {
            let got = ask(path)?;
            ensure!((got.exit, got.code) == (0, 403), "{from}, {path}: {got:?}");
            ensure!(got.body.trim_end() == "RBAC: access denied", "{from}, {path}: {got:?}");
        }
    }
    Ok(())
}

fn check_denied(answer: &Answer) -> Result<()> {
    ensure!(answer.denied(), "403 expected: {answer:?}");
    Ok(())
}

/// What only tries, and what only watches, is told of each request as well.
#[test]
fn dry_runs_and_audits_take_notes_of_requests() -> Result<()> {
    let town = web::start(|spec| spec)?;
    let generation = town.world.b().generation()?;
    let policy = |name: &str, annotations: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, \
             namespace: app{annotations}}}\nspec: {spec}\n---\n"
        )
    };
    let deletes = "rules: [{to: [{operation: {methods: [DELETE]}}]}]";
    let tries = policy(
        "tries",
        ", annotations: {istio.io/dry-run: 'true'}",
        &format!("{{action: DENY, {deletes}}}"),
    );
    let watches = policy("watches", "", &format!("{{action: AUDIT, {deletes}}}"));
    town.world.mesh.write_file("notes.yaml", &(tries + &watches))?;
    town.world.b().reloaded_after(generation)?;
    let mark = town.world.b().mark();
    let got = town.curl("client", town.server(PORT), "/quiet", &[])?;
    ensure!((got.exit, got.code) == (0, 200), "{got:?}");
    let got = town.curl("client", town.server(PORT), "/stock/7?secret", &["-X", "DELETE"])?;
    ensure!((got.exit, got.code) == (0, 200), "it decides nothing: {got:?}");
    let line = town.world.b().logged(mark, "the note", |l| l["event"] == "request_noted")?;
    ensure!(line["method"] == "DELETE" && line["path"] == "/stock/7", "{line}");
    ensure!(line["identity"] == CLIENT, "{line}");
    let (dry, audit) = (&line["dry_run"], &line["audit"]);
    ensure!(dry["policy"] == "AuthorizationPolicy app/tries" && dry["allowed"] == false, "{line}");
    ensure!(audit["policy"] == "AuthorizationPolicy app/watches" && audit["rule"] == 0, "{line}");
    Ok(())
}

#[test]
fn requests_are_judged_one_by_one_in_one_form() -> Result<()> {
    let mut town = web::start(|spec| spec.with("--path-normalization", "merge-slashes"))?;
    let rules = json!([{"to": [{"operation": {"methods": ["GET"], "paths": ["/public*"]}}]}]);
    let public = json!({"action": "ALLOW", "rules": rules});
    town.policy(&public)?;
    for (client, port) in [("client", PORT), ("stranger", PORT), ("client", AUTO)] {
        let place = format!("{client} to {port}");
        let app = if port == PORT { &town.app } else { &town.auto };
        let mut talker = town.talker(client, town.server(port))?;
        // One connection: the application sees what is allowed, in the form that was judged.
        let mark = app.mark();
        let allowed = [
            ("/public/a", "/public/a"),
            ("/admin/../public/b?x=../1", "/public/b?x=../1"),
            ("//public//c", "/public/c"),
            ("/public/%2e/d", "/public/d"),
            ("/admin/%2e%2E/public", "/public"),
            ("/%70ublic/%7Ee", "/public/~e"),
            ("/admin\\..\\public/f", "/public/f"),
        ];
        let denied =
            ["/admin", "/", "/public/../admin", "/public/%2e%2e/admin", "//admin", "/PUBLIC"];
        for (path, _) in allowed {
            let answer = talker.get(path).with_context(|| format!("{place}: {path}"))?;
            ensure!(answer.code == 200, "{place}: {path}: {answer:?}");
            check_denied(&talker.get(denied[0])?)?;
        }
        for path in denied {
            let answer = talker.get(path).with_context(|| format!("{place}: {path}"))?;
            check_denied(&answer).with_context(|| format!("{place}: {path}"))?;
        }
        check_denied(
            &talker.ask("POST /public HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")?,
        )?;
        ensure!(talker.get("/public/last")?.code == 200, "{place}: what was denied is no end");
        let lines: Vec<String> =
            app.requests(mark).iter().map(|seen| seen.line().to_owned()).collect();
        let paths = allowed.iter().map(|(_, seen)| *seen).chain(["/public/last"]);
        let expected: Vec<String> = paths.map(|path| format!("GET {path} HTTP/1.1")).collect();
        ensure!(lines == expected, "{place}: {lines:?}");
    }
    let mark = town.world.b().mark();
    let got =
        town.curl("client", town.server(PORT), "/admin/../admin/x?secret", &["--path-as-is"])?;
    ensure!((got.exit, got.code) == (0, 403), "{got:?}");
    let line = town.world.b().logged(mark, "the denial", |l| l["path"] == "/admin/x")?;
    ensure!(line["identity"] == CLIENT && line["event"] == "request_denied", "{line}");
    ensure!(line["policy"] == "AuthorizationPolicy app/list", "{line}");

    // A policy that comes while the connection is open is the next request's.
    let mut talker = town.talker("client", town.server(PORT))?;
    let mut tunnel = town.talker("client", town.server(PORT))?;
    ensure!(talker.get("/public")?.code == 200);
    let upgrade =
        "GET /public/ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    ensure!(tunnel.ask(upgrade)?.code == 101);
    tunnel.echo("through the tunnel")?;
    town.policy(&json!({"action": "DENY", "rules": [{}]}))?;
    check_denied(&talker.get("/public")?)?;
    let (rest, end) = tunnel.rest()?;
    ensure!(
        rest.is_empty() && end != End::Silent,
        "a tunnel outlives its policy: {end:?} {rest:?}"
    );
    town.without_policy()?;
    ensure!(talker.get("/admin")?.code == 200, "nothing denies it now");

    // A port that nobody declared, whose bytes say what is spoken.
    town.policy(&public)?;
    let to = town.server(AUTO);
    let heard = (town.auto.connections(), town.auto.bytes());
    for start in ["\r\n", "\r\n\r\n", "\n"] {
        let mut talker = town.talker("client", to)?;
        talker.send(format!("{start}GET /admin HTTP/1.1\r\nHost: app\r\n\r\n"))?;
        let answer = talker.answer().with_context(|| format!("{start:?}"))?;
        ensure!(answer.denied() || answer.code == 400, "{start:?}: {answer:?}");
    }
    for client in ["client", "stranger"] {
        let mut talker = town.talker(client, to)?;
        for piece in ["GE", "T /adm", "in HTTP/1.", "1\r\nHost: app\r\n\r\n"] {
            talker.send(piece)?;
            // What is tested is that time passes here.
            std::thread::sleep(Duration::from_millis(300));
        }
        check_denied(&talker.answer()?).with_context(|| client.to_owned())?;
    }
    ensure!((town.auto.connections(), town.auto.bytes()) == heard, "the application heard of it");
    // What is not HTTP is one connection, which an ALLOW rule about HTTP does not allow; others do.
    let talk = |town: &Web| {
        let (from, to) = (town.world.pod("client"), town.server(AUTO));
        from.inside(|| converse(to, "\u{1}not HTTP\n"))
    };
    ensure!(!talk(&town)?.worked(), "no request, no path");
    ensure!((town.auto.connections(), town.auto.bytes()) == heard, "the application heard of it");
    let rules = json!([{"from": [{"source": {"namespaces": ["web"]}}]}]);
    town.policy(&json!({"action": "ALLOW", "rules": rules}))?;
    ensure!(talk(&town)?.worked(), "allowed, whatever it speaks");
    ensure!(town.talker("client", to)?.get("/admin")?.code == 200);
    Ok(())
}

#[test]
fn what_two_readers_could_read_differently_reaches_no_application() -> Result<()> {
    let town = web::start(|spec| spec)?;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n";
    let posts = [
        ("a length and chunks", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"),
        ("chunks and a length", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n"),
        ("two lengths", "Content-Length: 0\r\nContent-Length: 40\r\n"),
        ("two lengths in one", "Content-Length: 0, 40\r\n"),
        ("a signed length", "Content-Length: +40\r\n"),
        ("a folded header", "X-A: 1\r\n Content-Length: 40\r\n"),
        ("a space before the colon", "Content-Length : 40\r\n"),
        ("two hosts", "Host: other\r\n"),
        ("chunks that are not last", "Transfer-Encoding: chunked, identity\r\n"),
        ("a disguised coding", "Transfer-Encoding: xchunked\r\n"),
        ("a bare line feed", "X-A: 1\nX-B: 2\r\n"),
    ];
    for (client, to) in [
        ("client", town.server(PORT)),
        ("stranger", town.server(PORT)),
        ("client", town.server(AUTO)),
    ] {
        let app = if to.port() == PORT { &town.app } else { &town.auto };
        for (what, headers) in posts {
            // Where nobody declared HTTP, a connection alone says nothing: for a client that is silent
            // for long enough the application is reached, for it may be the one to speak.
            let heard = || (if to.port() == PORT { app.connections() } else { 0 }, app.bytes());
            let before = heard();
            let mut talker = town.talker(client, to)?;
            talker.send(format!(
                "POST / HTTP/1.1\r\nHost: app\r\n{headers}\r\n0\r\n\r\n{smuggled}"
            ))?;
            let place = || format!("{what}, {client} to {to}");
            let answer = talker.answer().with_context(place)?;
            ensure!(answer.code == 400, "{}: {answer:?}", place());
            let (rest, end) = talker.rest()?;
            ensure!(rest.is_empty() && end != End::Silent, "{}: then {rest:?}, {end:?}", place());
            ensure!(heard() == before, "{}: it was heard of", place());
        }
    }
    // By a real client.
    let heard = town.app.bytes();
    let more = ["--header", "Content-Length: 3", "--header", "Transfer-Encoding: chunked"];
    let more = [&more[..], &["--data", "abc"]].concat();
    let got = town.curl("client", town.server(PORT), "/", &more)?;
    ensure!((got.code, town.app.bytes()) == (400, heard), "{got:?}");
    Ok(())
}

#[test]
fn upgrades_trailers_and_uploads_pass_and_a_silent_server_is_503() -> Result<()> {
    let town = web::start(|spec| spec)?;
    for client in ["client", "stranger"] {
        let to = town.server(PORT);
        let mut talker = town.talker(client, to)?;
        let upgrade =
            "GET /ws HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        // Bytes that come along with the request are the tunnel's.
        let answer = talker.ask(format!("{upgrade}early "))?;
        ensure!(answer.code == 101, "{client}: {answer:?}");
        ensure!(answer.head.to_ascii_lowercase().contains("upgrade: websocket"), "{answer:?}");
        talker.send("and late\n")?;
        talker.hear("early and late\n").with_context(|| client.to_owned())?;
        talker.end()?;
        let (rest, end) = talker.rest()?;
        ensure!((rest.as_str(), end) == ("", End::Clean), "{client}: {rest:?} {end:?}");

        let mut talker = town.talker(client, to)?;
        let answer = talker.ask("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n")?;
        ensure!(answer.code == 200, "{client}: {answer:?}");
        talker.echo("\0through\0")?;
        let mark = town.world.b().mark();
        talker.reset()?;
        let line = town.world.b().logged(mark, "the tunnel", |l| l["direction"] == "inbound")?;
        ensure!(line["outcome"] == "client_reset", "{client}: {line}");

        let mut talker = town.talker(client, to)?;
        let answer = talker.ask(
            "POST /trailers HTTP/1.1\r\nHost: app\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\
             Trailer: X-Digest\r\n\r\n5\r\nhello\r\n6;x=y\r\n there\r\n0\r\nX-Digest: 7\r\n\
             X-Forwarded-Client-Cert: Hash=forged\r\n\r\n",
        )?;
        ensure!((answer.code, answer.body.as_str()) == (200, "11\n"), "{client}: {answer:?}");
        ensure!(answer.trailers.len() == 1, "{client}: {answer:?}");
        ensure!(answer.trailers[0].eq_ignore_ascii_case("x-sum: 42"), "{client}: {answer:?}");
        let trailers = town.app.last()?.trailers.join("\n").to_ascii_lowercase();
        ensure!(trailers == "x-digest: 7", "{client}: {trailers:?}");
    }

    // 100-continue, and more than anybody should keep.
    const LENGTH: u64 = 100 << 20;
    let file = town.world.bed.directory.join("upload");
    std::fs::File::create(&file)?.set_len(LENGTH)?;
    let file = file.to_string_lossy().into_owned();
    let before = (town.world.a().resident()?, town.world.b().resident()?);
    let mut most = before;
    let got = std::thread::scope(|scope| -> Result<Curl> {
        let upload = scope.spawn(|| {
            let more = ["--header", "Expect: 100-continue", "--upload-file", &file];
            town.curl("client", town.server(PORT), "/upload", &more)
        });
        while !upload.is_finished() {
            most.0 = most.0.max(town.world.a().resident()?);
            most.1 = most.1.max(town.world.b().resident()?);
            std::thread::sleep(Duration::from_millis(10));
        }
        upload.join().expect("no panic")
    })?;
    ensure!((got.code, got.body.trim()) == (200, LENGTH.to_string().as_str()), "{got:?}");
    ensure!(town.app.last()?.header("expect") == ["100-continue"], "it was not asked");
    let grown = (most.0 - before.0, most.1 - before.1);
    ensure!(grown.0 < 32 << 10 && grown.1 < 32 << 10, "KiB grown by the upload: {grown:?}");

    // An application that is not there, or breaks off before its first byte.
    for (count, client) in ["client", "stranger"].into_iter().enumerate() {
        for (port, path, outcome) in
            [(DEAD, "/", "upstream_connect_failed"), (PORT, "/reset", "upstream_reset")]
        {
            let daemon = town.world.b();
            let mark = daemon.mark();
            let got = town.curl(client, town.server(port), &format!("{path}?secret"), &[])?;
            ensure!((got.exit, got.code) == (0, 503), "{client}: {got:?}");
            ensure!(got.body.contains(outcome), "{client}: {got:?}");
            let line = daemon.logged(mark, outcome, |line| line["event"] == "request_failed")?;
            ensure!(line["outcome"] == outcome && line["fault"] == "server", "{line}");
            ensure!(line["method"] == "GET" && line["path"] == path, "{line}");
            let said = line["detail"].as_str().context("a detail")?;
            ensure!(got.body.contains(said) && line["workload"] == "app/server", "{line}");
            let reason = format!("reason=\"{outcome}\"");
            let failed = daemon.metric("mtls_connections_failed_total", &[&reason])?;
            ensure!(failed == (count + 1) as f64, "{client}: {outcome}: {failed}");
        }
    }
    // And where bytes are relayed as they are, the client's side answers.
    let quiet = town.world.pod("quiet").v4(DEAD);
    let got = town.curl("client", quiet, "/", &[])?;
    ensure!((got.exit, got.code) == (0, 503), "{got:?}");
    let got = town.curl("client", town.world.pod("quiet").v4(PORT), "/reset", &[])?;
    ensure!((got.exit, got.code) == (0, 503), "{got:?}");
    Ok(())
}
