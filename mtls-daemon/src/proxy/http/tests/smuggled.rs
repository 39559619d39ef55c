//! What two readers could understand in two ways is refused, and never reaches the application.

use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::bench::{OK, Setup, front, raw, recorder, run};

/// Each alone is refused with 400, and nothing of it arrives.
const AMBIGUOUS: &[&str] = &[
    "GET / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a,b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded: 2\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\tfolded\r\n\r\n",
    "GET / HTTP/1.1\nHost: a\n\n",
    "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: \x07\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
    "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    "GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /a\0 HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /a\x7f HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "GET / http/1.1\r\nHost: a\r\n\r\n",
    "GET /\r\n\r\n",
    "G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
    "!REFUSED / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET http://u@a/ HTTP/1.1\r\nHost: u@a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\nx",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\nx",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551617\r\n\r\nx",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nx",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "CONNECT a:80 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    "CONNECT /path HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: Host\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Forwarded-Client-Cert\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, content-length\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: authorization\r\n\r\n",
];

#[test]
fn ambiguous_requests_are_refused_and_never_arrive() {
    run(async {
        let application = recorder(OK).await;
        let setup = Setup::default();
        let front = front(&setup, application.address).await;
        for request in AMBIGUOUS {
            let answer = raw(front, request.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{request:?}: {answer}");
            assert!(answer.contains("connection: close\r\n"), "{request:?}: {answer}");
            assert_eq!(application.text(), "", "{request:?}");
        }
        assert_eq!(*application.connections.borrow(), 0);
        assert!(setup.heard.asked.borrow().is_empty());
    });
}

#[test]
fn a_refused_request_is_answered_in_its_turn_and_is_the_last() {
    run(async {
        let application = recorder(OK).await;
        let front = front(&Setup::default(), application.address).await;
        let good = "GET /good HTTP/1.1\r\nHost: a\r\n\r\n";
        let stream = format!("\r\n\r\n{good}GET /bad HTTP/1.1\r\n\r\n{good}");
        let answer = raw(front, stream.as_bytes()).await;
        let (first, second) = answer.split_once("ok").expect("two answers");
        assert!(first.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(second.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
        assert!(!second.contains("200 OK"), "{answer}");
        assert_eq!(application.text().matches("GET /").count(), 1);
    });
}

#[test]
fn a_malformed_chunk_cuts_the_request_off() {
    run(async {
        let bodies = [
            "zz\r\n",
            "1;\x01\r\n",
            "1 \r\nx\r\n0\r\n\r\n",
            "1\nx\r\n0\r\n\r\n",
            "1\r\nxx\r\n0\r\n\r\n",
            "fffffffffffffffff\r\nx",
            "-1\r\n",
            "0x1\r\nx\r\n",
            "0\r\nbad trailer\r\n\r\n",
            "0\r\nX: y\n\r\n",
            "\r\n0\r\n\r\n",
            "1\r\nx\n0\r\n\r\n",
        ];
        for body in bodies {
            let application = recorder("").await;
            let front = front(&Setup::default(), application.address).await;
            let head = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
            let smuggled = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";
            let answer = raw(front, format!("{head}{body}{smuggled}").as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 400"), "{body:?}: {answer}");
            let seen = application.text();
            assert!(!seen.contains("\r\n0\r\n"), "{body:?} was completed: {seen}");
            assert!(!seen.contains("hidden"), "{body:?}: {seen}");
        }
    });
}

#[test]
fn too_large_and_too_slow_heads_are_refused_with_bounded_memory() {
    run(async {
        let application = recorder(OK).await;
        let setup = Setup { head_time: Duration::from_millis(200), ..Setup::default() };
        let front = front(&setup, application.address).await;
        let mut large = b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec();
        while large.len() < 1024 * 1024 {
            large.extend_from_slice(
                format!("X-{}: {}\r\n", large.len(), "v".repeat(20_000)).as_bytes(),
            );
        }
        let answer = raw(front, &large).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        let line = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(70_000));
        assert!(raw(front, line.as_bytes()).await.starts_with("HTTP/1.1 431 "));
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(100));
        assert!(raw(front, many.as_bytes()).await.starts_with("HTTP/1.1 431 "));

        let mut slow = TcpStream::connect(front).await.expect("connected");
        let mut answer = String::new();
        let send = async {
            for byte in b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n".iter().cycle() {
                if slow.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        };
        tokio::time::timeout(Duration::from_millis(600), send).await.ok();
        slow.read_to_string(&mut answer).await.ok();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");

        // Half a request, and then nobody: nothing arrives.
        let half = raw(front, b"GET /half HTTP/1.1\r\nHost:").await;
        assert!(half.starts_with("HTTP/1.1 400 "), "{half}");
        assert_eq!(application.text(), "");
    });
}

#[test]
fn an_idle_connection_may_be_idle() {
    run(async {
        let application = recorder(OK).await;
        let setup = Setup { head_time: Duration::from_millis(100), ..Setup::default() };
        let front = front(&setup, application.address).await;
        let mut stream = TcpStream::connect(front).await.expect("connected");
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
            super::bench::exchange(&mut stream, request, "ok").await;
        }
    });
}

/// How a careless application might read its bytes.
#[derive(Debug, Clone, Copy)]
struct Careless {
    length_first: bool,
    bare_lf: bool,
}

/// The request lines that such an application finds.
fn requests(bytes: &[u8], how: Careless) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = bytes;
    loop {
        let mut length = None;
        let mut chunked = false;
        let mut first = None;
        loop {
            let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { return found };
            let line = &rest[..end];
            if !how.bare_lf && !line.ends_with(b"\r") && !line.is_empty() {
                return found;
            }
            rest = &rest[end + 1..];
            let line = String::from_utf8_lossy(line.trim_ascii_end()).to_ascii_lowercase();
            if first.is_none() {
                if !line.is_empty() {
                    first = Some(line);
                }
                continue;
            }
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse::<usize>().ok();
            }
            chunked |= line.starts_with("transfer-encoding") && line.contains("chunked");
        }
        found.extend(first);
        if chunked && !(how.length_first && length.is_some()) {
            loop {
                let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { return found };
                let size = String::from_utf8_lossy(&rest[..end]).trim().to_owned();
                let size = size.split(';').next().unwrap_or_default().trim().to_owned();
                let Ok(size) = usize::from_str_radix(&size, 16) else { return found };
                rest = rest.get(end + 1 + size..).unwrap_or_default();
                let end = rest.iter().position(|byte| *byte == b'\n');
                rest = end.map_or(&[][..], |end| &rest[end + 1..]);
                if size == 0 {
                    break;
                }
            }
        } else {
            rest = rest.get(length.unwrap_or(0)..).unwrap_or_default();
        }
    }
}

fn fragments() -> impl Strategy<Value = Vec<u8>> {
    const PIECES: &[&str] = &[
        "GET /open HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /forbidden HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /open HTTP/1.1\r\nHost: a\r\n",
        "POST /open HTTP/1.0\r\nHost: a\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: 0\r\n",
        "Content-Length: 44\r\n",
        "content-length : 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "transfer-encoding: Chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding\t: chunked\r\n",
        "Expect: 100-continue\r\n",
        "Connection: upgrade\r\nUpgrade: x\r\n",
        "Connection: Transfer-Encoding\r\n",
        "Trailer: X\r\n",
        "\r\n",
        "\n",
        "\r",
        " ",
        "\t",
        "\0",
        "0\r\n\r\n",
        "5\r\n",
        "hello",
        "\r\n0\r\n\r\n",
        "2c\r\n",
        "X: y\r\n",
        ";ext\r\n",
        "GET ",
        "/open",
        " HTTP/1.1\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    prop::collection::vec(
        prop_oneof![
            20 => prop::sample::select(PIECES).prop_map(|piece| piece.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..8),
        ],
        1..14,
    )
    .prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]
    #[test]
    fn no_bytes_make_an_application_see_a_request_that_was_not_allowed(bytes in fragments()) {
        run(async {
            // Answers nothing that would end a body early: what arrives is what is looked at.
            let application = recorder(OK).await;
            let setup = Setup::default();
            setup.denied.borrow_mut().push("/forbidden");
            let front = front(&setup, application.address).await;
            let mut stream = TcpStream::connect(front).await.expect("connected");
            stream.write_all(&bytes).await.expect("sent");
            stream.shutdown().await.ok();
            let mut answer = Vec::new();
            let read = stream.read_to_end(&mut answer);
            tokio::time::timeout(Duration::from_millis(300), read).await.ok();
            let seen = application.seen.borrow().clone();
            let asked = setup.heard.asked.borrow().clone();
            for (length_first, bare_lf) in [(false, false), (true, false), (false, true), (true, true)] {
                let found = requests(&seen, Careless { length_first, bare_lf });
                assert!(found.len() <= asked.len(), "{found:?} of {asked:?}");
                assert!(!found.iter().any(|line| line.contains("forbidden")), "{found:?}");
            }
        });
    }
}

#[test]
fn a_malformed_request_is_answered_for_itself_and_not_for_the_one_before() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let nobody = listener.local_addr().expect("an address");
        drop(listener);
        let front = front(&Setup::default(), nobody).await;
        let both = "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n\r\n";
        let answer = raw(front, both.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("HTTP/1.1 400 "), "{answer}");
    });
}
