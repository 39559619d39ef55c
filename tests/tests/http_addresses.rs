//! Whose address a request comes from: what X-Forwarded-For means, and that all of HTTP is the same
//! over IPv6.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use mtls_tests::Capture;
use mtls_tests::servers::nginx_http2;
use mtls_tests::web::{self, AUTO, CLIENT, DEAD, HTTP2, PORT, Web, XFCC, service_v6};
use serde_json::{Value, json};

/// Lines of X-Forwarded-For, and whether who they name may pass.
type Case<'a> = (&'a [&'a str], bool);

fn check(town: &Web, from: &str, cases: &[Case<'_>]) -> Result<()> {
    let mut talker = town.talker(from, town.server(PORT))?;
    for (lines, allowed) in cases {
        let headers: String =
            lines.iter().map(|line| format!("X-Forwarded-For: {line}\r\n")).collect();
        let answer = talker.ask(format!("GET / HTTP/1.1\r\nHost: app\r\n{headers}\r\n"))?;
        let place = || format!("{from} with {lines:?}: {answer:?}");
        ensure!(if *allowed { answer.code == 200 } else { answer.denied() }, "{}", place());
        if *allowed {
            // The application gets the header as it came, and makes of it what it likes.
            ensure!(town.app.last()?.header("x-forwarded-for") == *lines, "{}", place());
        }
    }
    Ok(())
}

fn allow(blocks: &[&str]) -> Value {
    let source = json!({"remoteIpBlocks": blocks});
    json!({"action": "ALLOW", "rules": [{"from": [{"source": source}]}]})
}

#[test]
fn x_forwarded_for_means_what_the_number_of_trusted_proxies_says() -> Result<()> {
    const FAR: &str = "192.0.2.7";
    const PROXY: &str = "203.0.113.9";
    const BOTH: &str = "192.0.2.7, 203.0.113.9";
    const MORE: &str = "198.51.100.1, 192.0.2.7,203.0.113.9";
    let tables: [(Option<&str>, Vec<Case<'_>>); 3] = [
        // Anybody can write it: it means nothing.
        (None, vec![(&[], false), (&[FAR], false), (&[BOTH], false), (&[MORE], false)]),
        // The nearest proxy wrote the last one.
        (
            Some("1"),
            vec![
                (&[], false),
                (&[FAR], true),
                (&[BOTH], false),
                (&[PROXY, FAR], true),
                (&[FAR, PROXY], false),
                (&["2001:db8::7"], true),
                (&["nobody"], false),
                (&["192.0.2.7:80"], false),
            ],
        ),
        (
            Some("2"),
            vec![
                (&[], false),
                (&[FAR], false),
                (&[BOTH], true),
                (&[FAR, PROXY], true),
                (&[MORE], true),
                (&[PROXY, FAR], false),
                (&["2001:db8::7", PROXY], true),
            ],
        ),
    ];
    for (proxies, cases) in tables {
        let mut town = web::start(|spec| match proxies {
            Some(number) => spec.with("--num-trusted-proxies", number),
            None => spec,
        })?;
        town.policy(&allow(&["192.0.2.0/24", "2001:db8::/32"]))?;
        for from in ["client", "stranger"] {
            check(&town, from, &cases).with_context(|| format!("{proxies:?} proxies"))?;
        }
        // The connection's own source is another field, which no header changes.
        let own = town.world.pod("client").v4(0).ip().to_string();
        let source = json!({"ipBlocks": [own]});
        town.policy(&json!({"action": "ALLOW", "rules": [{"from": [{"source": source}]}]}))?;
        check(&town, "client", &[(&[], true), (&[BOTH], true)])?;
        check(&town, "stranger", &[(&[], false), (&[&own], false), (&[&own, &own], false)])?;
        // A condition says the same as the field.
        let when = json!([{"key": "remote.ip", "values": [FAR]}]);
        town.policy(&json!({"action": "DENY", "rules": [{"when": when}]}))?;
        let named: &[&str] = if proxies == Some("2") { &[BOTH] } else { &[FAR] };
        check(&town, "client", &[(&[], true), (named, proxies.is_none())])?;
        // Without a header it is the source; with none trusted it always is.
        town.policy(&allow(&[&own]))?;
        check(&town, "client", &[(&[], true), (named, proxies.is_none())])?;
    }
    Ok(())
}

#[test]
fn http_is_the_same_over_ipv6() -> Result<()> {
    let mut town = web::start(|spec| spec)?;
    let _nginx = nginx_http2(town.world.pod("server"), &town.world.bed.directory, HTTP2)?;
    let client = town.element("client", CLIENT)?;
    let server = |port| town.world.pod("server").v6(port);
    let (own, auto, http2, dead) = (server(PORT), server(AUTO), server(HTTP2), server(DEAD));
    let source = town.world.pod("client").v6(0).ip().to_string();
    let forged = format!("{XFCC}: Hash=forged");
    let capture = Capture::start(town.world.node(0))?;
    let mark = town.world.b().mark();
    for to in [own, service_v6(1), auto] {
        let more = ["--header", &forged, "--header", "X-Canary: canary-ipv6"];
        let got = town.curl("client", to, "/", &more)?;
        ensure!((got.exit, got.code) == (0, 200), "{to}: {got:?}");
        let seen = if to == auto { town.auto.last()? } else { town.app.last()? };
        ensure!(seen.header(XFCC) == [client.as_str()], "{to}: {}", seen.head);
        ensure!(seen.header("host") == [to.to_string()], "{to}: {}", seen.head);
    }
    ensure!(!capture.saw("canary-ipv6")?, "it crossed in the clear");
    let line = town.world.b().logged(mark, "the flow", |line| line["direction"] == "inbound")?;
    ensure!(line["security"] == "mutual_tls" && line["outcome"] == "ok", "{line}");
    let address = line["source"]["address"].as_str().unwrap_or_default();
    ensure!(address.parse::<SocketAddr>().is_ok_and(|it| it.ip().to_string() == source), "{line}");
    let got = town.curl("stranger", own, "/", &["--header", &forged])?;
    ensure!((got.exit, got.code) == (0, 200), "{got:?}");
    ensure!(town.app.last()?.header(XFCC).is_empty(), "nobody is known in the clear");

    // Paths, and addresses of either field.
    let paths = json!({"operation": {"paths": ["/admin*"]}});
    let from = json!({"source": {"ipBlocks": ["fd00:244:1::/64"]}});
    let rule = json!({"from": [from], "to": [paths]});
    town.policy(&json!({"action": "DENY", "rules": [rule]}))?;
    for client in ["client", "stranger"] {
        for (to, more) in [
            (own, &[][..]),
            (auto, &[]),
            (service_v6(1), &[]),
            (http2, &["--http2-prior-knowledge"]),
        ] {
            // A service's address exists for who is enrolled.
            if client == "stranger" && to == service_v6(1) {
                continue;
            }
            let place = format!("{client} to {to}");
            let got = town.curl(client, to, "/public", more)?;
            ensure!((got.exit, got.code) == (0, 200), "{place}: {got:?}");
            let got =
                town.curl(client, to, "/public/../admin/x", &[more, &["--path-as-is"]].concat())?;
            ensure!((got.exit, got.code) == (0, 403), "{place}: {got:?}");
            ensure!(got.body == "RBAC: access denied", "{place}: {got:?}");
        }
        // By its other address it is nobody whom the rule means.
        let got = town.curl(client, town.server(PORT), "/admin", &[])?;
        ensure!((got.exit, got.code) == (0, 200), "{client} over IPv4: {got:?}");
        let got = town.curl(client, dead, "/", &[])?;
        ensure!((got.exit, got.code) == (0, 503), "{client}: {got:?}");
    }
    let got = town.curl("client", http2, "/", &["--http2-prior-knowledge", "--header", &forged])?;
    ensure!(got.body == format!("HTTP/2.0 / {client}"), "{got:?}");
    town.policy(&allow(&[&format!("{source}/128")]))?;
    let got = town.curl("client", own, "/", &[])?;
    ensure!(got.code == 200, "{got:?}");
    let got =
        town.curl("stranger", own, "/", &["--header", &format!("X-Forwarded-For: {source}")])?;
    ensure!(got.code == 403, "{got:?}");
    Ok(())
}
