//! Clients that go away in the middle, and a daemon that does.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::bench::{OK, Setup, exchange, front, raw, recorder, run};
use super::streams::http2;
use crate::policy::authz::{Connection, WorkloadAuthorization};
use crate::proxy::failure::Failure;

/// How soon an application hears that its client is gone.
pub const SOON: Duration = Duration::from_secs(10);

pub async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

/// Reads a request's head.
pub async fn head(stream: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let count = stream.read_buf(&mut head).await.expect("no reset");
        assert_ne!(count, 0, "a head");
    }
}

/// How the daemon's side ended its first connection.
pub async fn ended(setup: &Setup) -> Result<(), Failure> {
    let wait = async {
        while setup.heard.ended.borrow().is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, wait).await.expect("the connection should have ended");
    setup.heard.ended.borrow_mut().remove(0)
}

#[test]
fn an_application_hears_soon_that_its_client_has_reset() {
    run(async {
        let answers = ["", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n"];
        for begun in answers {
            let (listener, address) = listener().await;
            let setup = Setup::default();
            let front = front(&setup, address).await;
            let mut client = TcpStream::connect(front).await.expect("connected");
            // The second request stays unread behind the first.
            let two = "GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2);
            client.write_all(two.as_bytes()).await.expect("sent");
            let (mut application, _) = listener.accept().await.expect("a connection");
            head(&mut application).await;
            application.write_all(begun.as_bytes()).await.expect("said");
            if !begun.is_empty() {
                exchange(&mut client, b"", "1\r\na\r\n").await;
            }
            let mut rest = [0; 64];
            let quiet = timeout(Duration::from_millis(200), application.read(&mut rest)).await;
            assert!(quiet.is_err(), "{begun:?}: it ended with its client there: {quiet:?}");
            socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("linger");
            drop(client);
            let end = timeout(SOON, application.read(&mut rest)).await.expect("it should end");
            assert!(!matches!(end, Ok(1..)), "{begun:?}: {end:?}");
            let ended = ended(&setup).await;
            assert!(matches!(ended, Err(Failure::ClientReset(_))), "{begun:?}: {ended:?}");
        }
    });
}

#[test]
fn a_request_is_in_flight_until_its_body_has_ended() {
    run(async {
        let (listener, address) = listener().await;
        let setup = Setup::default();
        let front = front(&setup, address).await;
        let open = || {
            let nobody = IpAddr::from(Ipv4Addr::LOCALHOST);
            let connection = Connection {
                principal: None,
                source: nobody,
                remote: nobody,
                destination: address,
                sni: None,
            };
            let denied = setup.in_flight.denied(connection, |connection, _| {
                let mut verdict = WorkloadAuthorization::default().connection(connection);
                verdict.allowed = false;
                verdict
            });
            denied.is_some()
        };
        let mut client = TcpStream::connect(front).await.expect("connected");
        client
            .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
            .await
            .expect("sent");
        let (mut application, _) = listener.accept().await.expect("a connection");
        head(&mut application).await;
        application.write_all(OK.as_bytes()).await.expect("answered");
        exchange(&mut client, b"", "ok").await;
        assert!(open(), "its body still comes");
        client.write_all(b"defghij").await.expect("sent");
        let wait = async {
            while open() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, wait).await.expect("the request has ended");
    });
}

#[test]
fn what_breaks_off_in_the_middle_is_no_orderly_end() {
    run(async {
        let upload = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc";
        let chunks = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab";
        for (what, bytes, reason) in [
            ("an upload", upload, "the request's body broke off"),
            ("chunks", chunks, "the request's body broke off"),
            ("a head", "GET / HTTP/1.1\r\nHost: a\r\nX-A", "a head that breaks off"),
            ("a request line", "GET /", "a head that breaks off"),
        ] {
            // It waits for the whole request.
            let (_listener, address) = listener().await;
            let setup = Setup::default();
            let front = front(&setup, address).await;
            let answer = raw(front, bytes.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer}");
            let ended = ended(&setup).await;
            let refused = matches!(ended, Err(Failure::HttpRefused(why)) if why == reason);
            assert!(refused, "{what}: {ended:?}");
        }
    });
}

#[test]
fn an_early_hint_is_left_out_and_its_answer_arrives() {
    run(async {
        let hint = "HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n\
                    HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        let application = recorder(hint).await;
        let front = front(&Setup::default(), application.address).await;
        let answer = raw(front, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ok"), "{answer}");
    });
}

#[test]
fn a_draining_daemon_asks_http1_clients_to_go_with_their_next_answer() {
    run(async {
        let application = recorder(OK).await;
        let setup = Setup::default();
        let front = front(&setup, application.address).await;
        let mut client = TcpStream::connect(front).await.expect("connected");
        let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let answer = exchange(&mut client, request, "ok").await;
        assert!(!answer.contains("connection:"), "{answer}");
        setup.drain.0.start();
        let answer = exchange(&mut client, request, "ok").await;
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.expect("no reset");
        assert!(rest.is_empty(), "{rest:?}");
        client.shutdown().await.ok();
        assert!(ended(&setup).await.is_ok());
    });
}

#[test]
fn a_draining_daemon_tells_http2_clients_and_finishes_what_they_have_begun() {
    run(async {
        let (listener, address) = listener().await;
        let setup = Setup::default();
        let front = front(&setup, address).await;
        let mut client = http2(front).await;
        let get = || Request::get("http://svc.example/").body(Full::<Bytes>::default());
        let begun = client.send_request(get().expect("a request"));
        // The application answers only when told to.
        let (stream, _) = listener.accept().await.expect("a connection");
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let gone = std::cell::RefCell::new(Some(gone));
        let service = hyper::service::service_fn(move |_: Request<hyper::body::Incoming>| {
            let gone = gone.take();
            async move {
                if let Some(gone) = gone {
                    gone.await.ok();
                }
                Ok::<_, std::convert::Infallible>(hyper::Response::new(Full::<Bytes>::from("done")))
            }
        });
        tokio::task::spawn_local(async move {
            let server = hyper::server::conn::http2::Builder::new(super::streams::Local);
            let stream = hyper_util::rt::TokioIo::new(stream);
            server.serve_connection(stream, service).await.ok();
        });
        let begun = tokio::task::spawn_local(begun);
        sleep(Duration::from_millis(200)).await;
        setup.drain.0.start();
        let wait = async {
            // It is told, and takes no more requests.
            while client.send_request(get().expect("a request")).await.is_ok() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, wait).await.expect("the client should have been told");
        assert!(!begun.is_finished());
        go.send(()).expect("it waits");
        let answer = begun.await.expect("no panic").expect("an answer");
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(body, "done");
        let ended = ended(&setup).await;
        assert!(ended.is_ok(), "{ended:?}");
    });
}
