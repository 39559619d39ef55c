//! Connections that become another protocol, only where both sides said so.

use std::io::ErrorKind;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::bench::{OK, Setup, exchange, front, raw, recorder, run};
use super::parting::{SOON, ended, head, listener};
use crate::proxy::failure::Failure;

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
        assert!(ended(&setup).await.is_ok());
    });
}

/// A client and an application with a tunnel between them.
async fn tunnel(setup: &Setup) -> (TcpStream, TcpStream) {
    let (listener, address) = listener().await;
    let front = front(setup, address).await;
    let mut client = TcpStream::connect(front).await.expect("connected");
    client.write_all(UPGRADE.as_bytes()).await.expect("sent");
    let (mut application, _) = listener.accept().await.expect("a connection");
    head(&mut application).await;
    application.write_all(SWITCHED.as_bytes()).await.expect("answered");
    assert!(exchange(&mut client, b"", "\r\n\r\n").await.starts_with("HTTP/1.1 101 "));
    client.write_all(b"hello").await.expect("sent");
    let mut hello = [0; 5];
    application.read_exact(&mut hello).await.expect("tunnelled");
    (client, application)
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger");
}

/// How `stream` ends.
async fn end(stream: &mut TcpStream) -> Result<(), ErrorKind> {
    let mut rest = Vec::new();
    let end = timeout(SOON, stream.read_to_end(&mut rest)).await.expect("it should end");
    end.map(drop).map_err(|error| error.kind())
}

#[test]
fn who_cuts_a_tunnel_is_known_and_the_other_side_is_reset() {
    run(async {
        let setup = Setup::default();
        let (client, mut application) = tunnel(&setup).await;
        reset(client);
        assert_eq!(end(&mut application).await, Err(ErrorKind::ConnectionReset));
        let outcome = ended(&setup).await;
        assert!(matches!(outcome, Err(Failure::ClientReset(_))), "{outcome:?}");

        let setup = Setup::default();
        let (mut client, application) = tunnel(&setup).await;
        reset(application);
        assert_eq!(end(&mut client).await, Err(ErrorKind::ConnectionReset));
        let outcome = ended(&setup).await;
        assert!(matches!(outcome, Err(Failure::UpstreamReset(_))), "{outcome:?}");
    });
}

#[test]
fn an_application_that_reads_nothing_hears_that_its_tunnel_was_cut() {
    run(async {
        let setup = Setup::default();
        let (mut client, mut application) = tunnel(&setup).await;
        // More than anybody in between keeps: then nobody reads the client either.
        let fill = async {
            loop {
                client.write_all(&[0; 65536]).await.expect("taken");
            }
        };
        timeout(Duration::from_secs(1), fill).await.expect_err("it should not all be taken");
        reset(client);
        let outcome = ended(&setup).await;
        assert!(matches!(outcome, Err(Failure::ClientReset(_))), "{outcome:?}");
        assert_eq!(end(&mut application).await, Err(ErrorKind::ConnectionReset));
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
            let failed = setup.heard.failed.borrow();
            assert!(failed.len() == 1 && failed[0].ends_with(" bad_answer"), "{failed:?}");
        }
    });
}
