//! On the client's side: a server that ends before it says anything.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use super::bench::run;
use super::streams::http2;
use crate::proxy::failure::Failure;
use crate::proxy::http_error::{answer_for_server, refuse};
use crate::proxy::relay::{Tally, relay};

/// A server that reads once, says `says` and ends, in order or by a reset.
async fn server(says: &'static str, resets: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    spawn_local(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut piece = [0; 64 * 1024];
        let _read = stream.read(&mut piece).await.expect("something");
        stream.write_all(says.as_bytes()).await.expect("said");
        if resets {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger");
        } else {
            stream.shutdown().await.expect("shut");
            while stream.read(&mut piece).await.is_ok_and(|count| count > 0) {}
        }
    });
    address
}

/// The client's side of the data path in front of `server`; None: it cannot be reached.
async fn front(server: Option<SocketAddr>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    spawn_local(async move {
        let (mut client, _) = listener.accept().await.expect("a client");
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("linger");
        let Some(server) = server else {
            return refuse(client, &Failure::NoEndpoint("svc".to_owned())).await;
        };
        let mut upstream = TcpStream::connect(server).await.expect("connected");
        let tally = Tally::answering();
        let result = relay(&mut client, &mut upstream, server, &tally).await;
        answer_for_server(client, &result, &tally).await;
    });
    address
}

/// What a client gets that sends `bytes`; None: a reset.
async fn answered(front: SocketAddr, bytes: &[u8]) -> Option<String> {
    let mut stream = TcpStream::connect(front).await.expect("connected");
    stream.write_all(bytes).await.expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    stream.shutdown().await.ok();
    Some(String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn an_http1_client_is_told_and_others_see_what_happened() {
    run(async {
        let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let unavailable = "HTTP/1.1 503 Service Unavailable\r\n";
        let silent = answered(front(Some(server("", false).await)).await, request).await;
        let silent = silent.expect("an answer");
        assert!(silent.starts_with(unavailable) && silent.contains("no_answer"), "{silent}");
        let reset = answered(front(Some(server("", true).await)).await, request).await;
        let reset = reset.expect("an answer");
        assert!(reset.starts_with(unavailable) && reset.contains("upstream_reset"), "{reset}");
        let unreachable = answered(front(None).await, request).await.expect("an answer");
        assert!(unreachable.contains("no_endpoint"), "{unreachable}");

        let said = answered(front(Some(server("HTTP/1.1 2", false).await)).await, request).await;
        assert_eq!(said.as_deref(), Some("HTTP/1.1 2"), "an answer that was begun is its own");
        let opaque =
            answered(front(Some(server("", false).await)).await, b"*1\r\n$4\r\nPING").await;
        assert_eq!(opaque.as_deref(), Some(""), "nothing is said in a protocol that is not known");
        assert_eq!(answered(front(Some(server("", true).await)).await, b"PING\r\n").await, None);
    });
}

#[test]
fn an_http2_client_is_told_in_its_own_words() {
    run(async {
        for server in [Some(server("", false).await), Some(server("", true).await), None] {
            let mut client = http2(front(server).await).await;
            let request = Request::get("http://svc.example/").body(Full::<Bytes>::default());
            let answer = client.send_request(request.expect("a request")).await.expect("an answer");
            assert_eq!(answer.status(), 503);
            let body = answer.into_body().collect().await.expect("a body").to_bytes();
            assert!(body.starts_with(b"upstream failure ("), "{body:?}");
        }
    });
}
