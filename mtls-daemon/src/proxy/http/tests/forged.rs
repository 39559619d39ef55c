//! What the application is told of its client is what the daemon knows of it.

use tokio::net::TcpStream;

use super::bench::{CLIENT, ELEMENT, OK, Setup, exchange, front, raw, recorder, run};
use crate::policy::Normalisation;

const FORGED: &str = "By=x;Hash=0;URI=spiffe://td/ns/admin/sa/admin";

/// What arrives of a request with two forged headers.
async fn arrived(setup: Setup) -> String {
    let application = recorder(OK).await;
    let front = front(&setup, application.address).await;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX-FORWARDED-client-cert: {FORGED}\r\nx-forwarded-client-cert: {FORGED}\r\nX_Forwarded_Client-Cert: {FORGED}\r\n\r\n"
    );
    let answer = raw(front, request.as_bytes()).await;
    assert!(answer.contains("200 OK"), "{answer}");
    // As CGI's descendants read names.
    let seen = application.text().to_ascii_lowercase().replace("_client", "-client");
    let seen = seen.replace("x_forwarded", "x-forwarded");
    let lines = seen.lines().filter(|line| line.starts_with("x-forwarded-client-cert"));
    lines
        .map(|line| line.split_once(": ").expect("a value").1.to_owned())
        .collect::<Vec<_>>()
        .join("|")
}

#[test]
fn rule_5_3a_a_forged_header_never_arrives() {
    run(async {
        let element = ELEMENT.to_ascii_lowercase();
        let forged = FORGED.to_ascii_lowercase();
        assert_eq!(arrived(Setup::default()).await, element);
        let plain = Setup { mtls: false, ..Setup::default() };
        assert_eq!(arrived(plain.clone()).await, "");
        let off = Setup { forward: false, ..Setup::default() };
        assert_eq!(arrived(off.clone()).await, "");
        for pattern in [CLIENT, "*", "td/ns/a/*", "*/sa/client"] {
            let trusted_forwarders = vec![pattern.to_owned()];
            let trusted =
                Setup { trusted_forwarders: trusted_forwarders.clone(), ..Setup::default() };
            assert_eq!(arrived(trusted).await, format!("{forged},{forged},{element}"));
            let plain = Setup { trusted_forwarders, ..plain.clone() };
            assert_eq!(arrived(plain).await, "");
        }
        let other = vec!["td/ns/a/sa/clien".to_owned(), "td/ns/b/*".to_owned()];
        let others = Setup { trusted_forwarders: other, ..Setup::default() };
        assert_eq!(arrived(others).await, element);
    });
}

#[test]
fn rule_5_4_every_request_of_a_connection_has_it() {
    run(async {
        let application = recorder(OK).await;
        let front = front(&Setup::default(), application.address).await;
        let mut stream = TcpStream::connect(front).await.expect("connected");
        for _ in 0..3 {
            exchange(&mut stream, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "ok").await;
        }
        assert_eq!(application.text().matches(ELEMENT).count(), 3);
        assert_eq!(*application.connections.borrow(), 1);
    });
}

#[test]
fn the_path_that_is_judged_is_the_path_that_arrives() {
    run(async {
        let application = recorder(OK).await;
        let setup = Setup { normalisation: Normalisation::MergeSlashes, ..Setup::default() };
        setup.denied.borrow_mut().push("/private");
        let front = front(&setup, application.address).await;
        for path in [
            "/private",
            "/public/../private",
            "/public/%2e%2e/private",
            "//private",
            "/%70rivate",
            "\\private",
            "http://a/private",
        ] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            let answer = raw(front, request.as_bytes()).await;
            if !path.starts_with('\\') {
                assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{path}: {answer}");
                assert!(answer.ends_with("\r\n\r\nRBAC: access denied"), "{path}: {answer}");
                assert!(answer.contains("content-type: text/plain\r\n"), "{path}: {answer}");
            }
            assert_eq!(application.text(), "", "{path}");
        }
        let denied = setup.heard.denied.borrow().first().cloned().expect("one");
        assert_eq!(
            denied,
            "GET /private AuthorizationPolicy b/test rule 0: a rule of a DENY policy matches"
        );
        raw(front, b"GET /x/..//y?q=/../%2e HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(
            application.text().starts_with("GET /y?q=/../%2e HTTP/1.1\r\n"),
            "{}",
            application.text()
        );
    });
}

#[test]
fn a_policy_that_changes_applies_to_open_connections() {
    run(async {
        let application = recorder(OK).await;
        let setup = Setup::default();
        let front = front(&setup, application.address).await;
        let mut stream = TcpStream::connect(front).await.expect("connected");
        let request = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n";
        exchange(&mut stream, request, "ok").await;
        setup.denied.borrow_mut().push("/x");
        exchange(&mut stream, request, "RBAC: access denied").await;
        setup.denied.borrow_mut().clear();
        exchange(&mut stream, request, "ok").await;
        assert_eq!(application.text().matches("GET /x").count(), 2);
    });
}

#[test]
fn the_connections_own_headers_stay_with_it() {
    run(async {
        let application = recorder(OK).await;
        let front = front(&Setup::default(), application.address).await;
        let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, X-Own, keep-alive\r\nX-Own: 1\r\nKeep-Alive: 5\r\nTE: gzip, trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nX-Forwarded-For: 1.2.3.4\r\nAccept: */*\r\n\r\n";
        let answer = raw(front, request.as_bytes()).await;
        assert!(answer.ends_with("ok"), "{answer}");
        let seen = application.text();
        for gone in ["Connection", "connection", "Upgrade", "HTTP2", "X-Own", "Keep-Alive", "gzip"]
        {
            assert!(!seen.contains(gone), "{gone} in {seen}");
        }
        for kept in
            ["TE: trailers\r\n", "X-Forwarded-For: 1.2.3.4\r\n", "Accept: */*\r\n", "Host: a\r\n"]
        {
            assert!(seen.contains(kept), "{kept} in {seen}");
        }
    });
}

#[test]
fn rule_4_6_addresses_are_forwarded_only_by_trusted_proxies() {
    run(async {
        let check_of = async |forwarded: &[u8], trusted_proxies, expected: &str| {
            let setup = Setup { trusted_proxies, ..Setup::default() };
            let application = recorder(OK).await;
            let front = front(&setup, application.address).await;
            let head = b"GET / HTTP/1.1\r\nHost: a\r\n";
            raw(front, &[head, forwarded, b"\r\n"].concat()).await;
            assert_eq!(*setup.heard.asked.borrow(), [format!("GET / a {expected}")]);
        };
        let two: &[u8] = b"X-Forwarded-For: 6.6.6.6, 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\n";
        let check =
            async |trusted_proxies, expected| check_of(two, trusted_proxies, expected).await;
        check(0, "127.0.0.1").await;
        check(1, "2.2.2.2").await;
        check(2, "1.1.1.1").await;
        check(4, "127.0.0.1").await;
        // A value that is no text keeps its place: the client cannot move what stands before it.
        let odd: &[u8] =
            b"X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: \xe9\r\nX-Forwarded-For: 2.2.2.2\r\n";
        check_of(odd, 1, "2.2.2.2").await;
        check_of(odd, 2, "127.0.0.1").await;
        check_of(odd, 3, "6.6.6.6").await;
    });
}

#[test]
fn http_1_0_is_served() {
    run(async {
        let application = recorder(OK).await;
        let setup = Setup::default();
        let front = front(&setup, application.address).await;
        let answer = raw(front, b"GET /old HTTP/1.0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("ok"), "{answer}");
        let seen = application.text().to_ascii_lowercase();
        assert!(seen.starts_with("get /old http/1.1\r\n"), "{seen}");
        assert!(seen.contains(&format!("host: {}\r\n", application.address)), "{seen}");
    });
}

#[test]
fn an_application_that_cannot_be_reached_is_503() {
    run(async {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = gone.local_addr().expect("an address");
        drop(gone);
        let setup = Setup::default();
        let front = front(&setup, address).await;
        let answer = raw(front, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
        assert!(answer.contains("upstream_connect_failed"), "{answer}");
        let finished = setup.heard.finished.borrow()[0];
        assert_eq!((finished.code, finished.flag), (503, "UF"));
        assert_eq!(*setup.heard.failed.borrow(), ["GET / a upstream_connect_failed"]);
    });
}

#[test]
fn an_application_that_hangs_up_is_reached_again() {
    run(async {
        let closing = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
        let application = recorder(closing).await;
        let front = front(&Setup::default(), application.address).await;
        let mut stream = TcpStream::connect(front).await.expect("connected");
        for count in 1..4 {
            let answer = exchange(&mut stream, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "ok").await;
            assert!(!answer.contains("connection: close"), "{answer}");
            assert_eq!(*application.connections.borrow(), count);
        }
    });
}
