//! Connections that become another protocol, only where both sides said so.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use super::bench::{OK, Setup, exchange, front, raw, recorder, run};

const UPGRADE: &str =
    "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
const NEXT: &str = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";

/// An application that answers the first head with `answer` and echoes what follows.
async fn echo(answer: &'static str) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            spawn_local(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut head).await.expect("read") == 0 {
                        return;
                    }
                }
                stream.write_all(answer.as_bytes()).await.expect("answered");
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await.ok();
                to.shutdown().await.ok();
            });
        }
    });
    address
}

#[test]
fn bytes_are_tunnelled_after_the_switch_that_was_asked_for() {
    run(async {
        let setup = Setup::default();
        let front = front(&setup, echo(SWITCHED).await).await;
        let mut stream = TcpStream::connect(front).await.expect("connected");
        let answer = exchange(&mut stream, UPGRADE.as_bytes(), "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(answer.to_ascii_lowercase().contains("upgrade: websocket\r\n"), "{answer}");
        for bytes in [&b"\x81\x05hello"[..], b"GET / HTTP/1.1\r\n\r\n", &[0; 100_000]] {
            stream.write_all(bytes).await.expect("sent");
            let mut back = vec![0; bytes.len()];
            stream.read_exact(&mut back).await.expect("echoed");
            assert_eq!(back, bytes);
        }
        // Half-closed, and still answered.
        stream.write_all(b"last").await.expect("sent");
        stream.shutdown().await.expect("shut");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("an orderly end");
        assert_eq!(rest, b"last");
        assert_eq!(setup.heard.asked.borrow().len(), 1);
    });
}

#[test]
fn connect_is_tunnelled_once_it_is_granted() {
    run(async {
        let front = front(&Setup::default(), echo("HTTP/1.1 200 OK\r\n\r\n").await).await;
        let mut stream = TcpStream::connect(front).await.expect("connected");
        let answer =
            exchange(&mut stream, b"CONNECT b:80 HTTP/1.1\r\nHost: b:80\r\n\r\n", "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert_eq!(exchange(&mut stream, b"ping", "ping").await, "ping");
    });
}

#[test]
fn without_the_switch_what_follows_is_a_request_like_any_other() {
    run(async {
        let application = recorder(OK).await;
        let setup = Setup::default();
        setup.denied.borrow_mut().push("/next");
        let front = front(&setup, application.address).await;
        let answer = raw(front, format!("{UPGRADE}{NEXT}").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
        assert!(!application.text().contains("/next"), "{}", application.text());
        assert!(application.text().to_ascii_lowercase().contains("upgrade: websocket\r\n"));
    });
}

#[test]
fn a_switch_that_was_not_asked_for_is_no_answer() {
    run(async {
        const OTHER: &str =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n";
        for (request, answer) in [(NEXT, SWITCHED), (UPGRADE, OTHER)] {
            let application = recorder(answer).await;
            let setup = Setup::default();
            let front = front(&setup, application.address).await;
            let answer = raw(front, format!("{request}smuggled bytes").as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 502 "), "{request}: {answer}");
            assert!(!application.text().contains("smuggled"), "{}", application.text());
        }
    });
}
