//! Many requests, large ones, long ones.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::spawn_local;

use super::bench::{ELEMENT, OK, Setup, exchange, front, recorder, run, run_for};
use super::parting::ended;

#[derive(Clone)]
pub struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, task: F) {
        spawn_local(async move {
            task.await;
        });
    }
}

/// An application of a real library. `answer` sees every request.
async fn application<A, F, B>(http2: bool, answer: A) -> SocketAddr
where
    A: Fn(Request<Incoming>) -> F + Clone + 'static,
    F: Future<Output = Response<B>> + 'static,
    B: Body<Data = Bytes, Error = Infallible> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let answered = answer(request);
                async move { Ok::<_, Infallible>(answered.await) }
            });
            spawn_local(async move {
                let stream = TokioIo::new(stream);
                if http2 {
                    let server = hyper::server::conn::http2::Builder::new(Local);
                    server.serve_connection(stream, service).await.ok();
                } else {
                    let server = hyper::server::conn::http1::Builder::new();
                    server.serve_connection(stream, service).await.ok();
                }
            });
        }
    });
    address
}

/// A body of so many bytes that exist only piece by piece, with `trailers` at its end.
struct Long {
    left: u64,
    piece: Bytes,
    trailers: Option<HeaderMap>,
}

impl Long {
    fn new(left: u64) -> Self {
        Self { left, piece: Bytes::from(vec![7; 64 * 1024]), trailers: None }
    }
}

impl Body for Long {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let count = self.left.min(self.piece.len() as u64);
        self.left -= count;
        let piece = self.piece.slice(..usize::try_from(count).expect("a piece"));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

async fn length_of(mut body: Incoming) -> u64 {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame.expect("a frame").data_ref().map_or(0, |data| data.len() as u64);
    }
    length
}

/// A client of a real library.
async fn http1<B>(address: SocketAddr) -> hyper::client::conn::http1::SendRequest<B>
where
    B: Body<Data = Bytes, Error = Infallible> + 'static,
{
    let stream = TokioIo::new(TcpStream::connect(address).await.expect("connected"));
    let (sender, connection) = hyper::client::conn::http1::handshake(stream).await.expect("HTTP");
    spawn_local(connection);
    sender
}

pub async fn http2<B>(address: SocketAddr) -> hyper::client::conn::http2::SendRequest<B>
where
    B: Body<Data = Bytes, Error = Infallible> + Unpin + 'static,
{
    let stream = TokioIo::new(TcpStream::connect(address).await.expect("connected"));
    let client = hyper::client::conn::http2::handshake(Local, stream);
    let (sender, connection) = client.await.expect("HTTP/2");
    spawn_local(connection);
    sender
}

fn request<B>(path: &str, body: B) -> Request<B> {
    let request = Request::post(path).header("host", "a");
    request.body(body).expect("a request")
}

fn empty() -> Full<Bytes> {
    Full::default()
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    let pages: u64 = statm.split(' ').nth(1).expect("pages").parse().expect("a number");
    pages * 4096
}

#[test]
fn ten_thousand_pipelined_requests_are_answered_in_order() {
    run(async {
        let application = recorder(OK).await;
        let setup = Setup::default();
        let front = front(&setup, application.address).await;
        let stream = TcpStream::connect(front).await.expect("connected");
        let (mut from, mut to) = stream.into_split();
        spawn_local(async move {
            for number in 0..10_000 {
                let request = format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n");
                to.write_all(request.as_bytes()).await.expect("sent");
            }
            to.shutdown().await.expect("shut");
        });
        let mut answers = String::new();
        from.read_to_string(&mut answers).await.expect("answers");
        assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 10_000);
        assert_eq!(application.text().matches(ELEMENT).count(), 10_000);
        assert_eq!(*application.connections.borrow(), 1);
        let asked = setup.heard.asked.borrow();
        assert!(asked[9999].starts_with("GET /9999 "), "{}", asked[9999]);
        let finished = setup.heard.finished.borrow();
        assert_eq!(finished.len(), 10_000);
        assert!(finished.iter().all(|one| (one.code, one.flag) == (200, "-")), "{:?}", finished[0]);
    });
}

#[test]
fn a_gibibyte_passes_both_ways_without_being_kept() {
    run_for(Duration::from_secs(300), async {
        const LENGTH: u64 = 1 << 30;
        let application = application(false, |request| async move {
            if request.uri().path() == "/down" {
                return Response::new(Long::new(LENGTH));
            }
            let length = length_of(request.into_body()).await;
            Response::builder().header("length", length).body(Long::new(0)).expect("an answer")
        })
        .await;
        let front = front(&Setup::default(), application).await;
        let before = resident();
        let mut client = http1(front).await;
        let answer = client.send_request(request("/up", Long::new(LENGTH))).await.expect("one");
        assert_eq!(answer.headers()["length"], LENGTH.to_string());
        let answer = client.send_request(request("/down", Long::new(0))).await.expect("one");
        assert_eq!(length_of(answer.into_body()).await, LENGTH);
        // Nor where the next request waits already.
        let mut stream = TcpStream::connect(front).await.expect("connected");
        let two = b"GET /down HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2);
        stream.write_all(&two).await.expect("sent");
        tokio::io::copy(&mut stream.take(LENGTH), &mut tokio::io::sink()).await.expect("read");
        let grown = resident().saturating_sub(before);
        assert!(grown < 128 << 20, "grew by {grown} bytes");
    });
}

#[test]
fn a_body_that_nobody_reads_stays_with_its_sender() {
    run(async {
        let application = application(false, |request| async move {
            // Holds on to the body, and never reads it.
            tokio::time::sleep(Duration::from_millis(700)).await;
            drop(request);
            Response::new(empty())
        })
        .await;
        let front = front(&Setup::default(), application).await;
        let mut stream = TcpStream::connect(front).await.expect("connected");
        let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("sent");
        let mut sent = 0_usize;
        let piece = vec![0; 64 * 1024];
        let sending = async {
            while let Ok(count) = stream.write(&piece).await {
                sent += count;
            }
        };
        tokio::time::timeout(Duration::from_millis(500), sending).await.ok();
        assert!(sent < 64 << 20, "{sent} bytes were taken");
    });
}

#[test]
fn trailers_arrive_in_http1_and_claim_nothing() {
    run(async {
        let application = recorder("").await;
        let front = front(&Setup::default(), application.address).await;
        let mut stream = TcpStream::connect(front).await.expect("connected");
        let request = "POST / HTTP/1.1\r\nHost: a\r\nTrailer: X-Sum, X-Forwarded-Client-Cert\r\nTransfer-Encoding: chunked\r\n\r\n\
            3;ext=\"x\"\r\nabc\r\n0\r\nX-Sum: 1\r\nX-Forwarded-Client-Cert: URI=forged\r\n\r\n";
        stream.write_all(request.as_bytes()).await.expect("sent");
        while !application.text().contains("\r\n0\r\n") || !application.text().ends_with("\r\n\r\n")
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let seen = application.text().to_ascii_lowercase();
        assert!(seen.contains("\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n"), "{seen}");
        assert!(!seen.contains("forged"), "{seen}");
    });
}

#[test]
fn a_client_waits_with_its_body_for_the_applications_word() {
    run(async {
        const EXPECTS: &[u8] =
            b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
        // The application says so: the client is told, and the body arrives.
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let front1 = front(&Setup::default(), listener.local_addr().expect("an address")).await;
        let mut client = TcpStream::connect(front1).await.expect("connected");
        client.write_all(EXPECTS).await.expect("sent");
        let (mut application, _) = listener.accept().await.expect("a connection");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            application.read_buf(&mut head).await.expect("a head");
        }
        let early = client.read_u8();
        let early = tokio::time::timeout(Duration::from_millis(100), early).await;
        assert!(early.is_err(), "the client was told before the application said so");
        application.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.expect("said");
        let told = exchange(&mut client, b"", "\r\n\r\n").await;
        assert!(told.starts_with("HTTP/1.1 100 Continue\r\n"), "{told}");
        client.write_all(b"body").await.expect("sent");
        let mut body = [0; 4];
        application.read_exact(&mut body).await.expect("the body");
        application.write_all(OK.as_bytes()).await.expect("answered");
        assert!(exchange(&mut client, b"", "ok").await.starts_with("HTTP/1.1 200"));

        // It refuses: the client is not asked for its body.
        let refusing = "HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\n\r\nno";
        let application = recorder(refusing).await;
        let front2 = front(&Setup::default(), application.address).await;
        let mut client = TcpStream::connect(front2).await.expect("connected");
        let answer = exchange(&mut client, EXPECTS, "no").await;
        assert!(answer.starts_with("HTTP/1.1 417 "), "{answer}");
    });
}

#[test]
fn a_client_that_has_said_all_is_still_answered() {
    run(async {
        let application = application(false, |request| async move {
            let length = length_of(request.into_body()).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            Response::new(Full::new(Bytes::from(format!("{length} bytes"))))
        })
        .await;
        let front = front(&Setup::default(), application).await;
        let request = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
        let answer = super::bench::raw(front, request.as_bytes()).await;
        assert!(answer.ends_with("3 bytes"), "{answer}");
    });
}

#[test]
fn head_and_empty_answers_keep_their_length() {
    run(async {
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n";
        let application = recorder(answer).await;
        let front = front(&Setup::default(), application.address).await;
        let head = "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";
        let answers = super::bench::raw(front, head.repeat(2).as_bytes()).await;
        assert_eq!(answers.matches("content-length: 1234\r\n\r\n").count(), 2, "{answers}");
    });
}

/// A header is a byte or two there, and a hundred in memory for as long as its answer takes.
#[test]
fn an_http2_request_has_no_more_headers_than_another() {
    run(async {
        let answer = |_: Request<Incoming>| async { Response::new(Full::new(Bytes::new())) };
        let front = front(&Setup::default(), application(true, answer).await).await;
        let mut client = http2(front).await;
        for (headers, status) in [(100, 200), (101, 431), (1, 200)] {
            let mut request = Request::get("http://svc.example/");
            for number in 0..headers {
                request = request.header(format!("x-{number}"), "");
            }
            let request = request.body(empty()).expect("a request");
            let answer = client.send_request(request).await.expect("an answer");
            assert_eq!(answer.status(), status, "{headers} headers");
        }
    });
}

#[test]
fn http2_streams_share_a_connection_and_each_has_the_header() {
    run(async {
        let answer = |request: Request<Incoming>| async move {
            let header = &request.headers()["x-forwarded-client-cert"];
            let text = format!(
                "{} {} {:?}",
                request.uri(),
                header.to_str().expect("text"),
                request.version()
            );
            Response::new(Full::new(Bytes::from(text)))
        };
        let application = application(true, answer).await;
        let setup = Setup::default();
        setup.denied.borrow_mut().push("/denied");
        let front = front(&setup, application).await;
        let client = http2(front).await;
        let forged = |path: &str| {
            let request = Request::get(format!("http://svc.example{path}"));
            let request = request.header("x-forwarded-client-cert", "URI=forged");
            request.body(empty()).expect("a request")
        };
        let asked = (0..100).map(|number| {
            let mut client = client.clone();
            let request = forged(&format!("/a/../{number}"));
            async move { client.send_request(request).await.expect("an answer") }
        });
        for (number, answer) in futures_util::future::join_all(asked).await.into_iter().enumerate()
        {
            let body = answer.into_body().collect().await.expect("a body").to_bytes();
            let expected = format!("http://svc.example/{number} {ELEMENT} HTTP/2.0");
            assert_eq!(body, expected.as_bytes());
        }
        let denied = client.clone().send_request(forged("/denied")).await.expect("an answer");
        assert_eq!(denied.status(), 403);
        let body = denied.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(body, "RBAC: access denied");
        let mut grpc = forged("/denied");
        grpc.headers_mut().insert("content-type", "application/grpc+proto".parse().expect("one"));
        let denied = client.clone().send_request(grpc).await.expect("an answer");
        assert_eq!(
            (denied.status(), &denied.headers()["grpc-status"]),
            (hyper::StatusCode::OK, &"7".parse().expect("one"))
        );
        assert_eq!(denied.headers()["grpc-message"], "RBAC: access denied");
        assert!(denied.body().is_end_stream(), "trailers only");
        let mut host = forged("/0");
        host.headers_mut().insert("host", "other".parse().expect("one"));
        assert_eq!(client.clone().send_request(host).await.expect("an answer").status(), 400);
    });
}

#[test]
fn a_call_streams_both_ways_and_ends_with_trailers() {
    run(async {
        // Answers each message when it comes, and ends as a gRPC server does.
        let application = application(true, move |request: Request<Incoming>| {
            let (sender, messages) = mpsc::channel::<Frame<Bytes>>(1);
            spawn_local(async move {
                let mut body = request.into_body();
                while let Some(Ok(frame)) = body.frame().await {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        let echo = Bytes::from([b"echo ", &data[..]].concat());
                        sender.send(Frame::data(echo)).await.expect("sent");
                    }
                }
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().expect("one"));
                sender.send(Frame::trailers(trailers)).await.expect("sent");
            });
            async move { Response::new(Channel(messages)) }
        })
        .await;
        let front = front(&Setup::default(), application).await;
        let mut client = http2(front).await;
        let (sender, messages) = mpsc::channel(1);
        let call = Request::post("http://svc.example/pkg.Service/Chat")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Channel(messages))
            .expect("a request");
        let mut answer = client.send_request(call).await.expect("an answer").into_body();
        for text in ["one", "two", "three"] {
            sender.send(Frame::data(Bytes::from(text))).await.expect("sent");
            let frame = answer.frame().await.expect("one").expect("a frame");
            assert_eq!(frame.into_data().expect("data"), format!("echo {text}"));
        }
        drop(sender);
        let frame = answer.frame().await.expect("one").expect("a frame");
        assert_eq!(frame.into_trailers().expect("trailers")["grpc-status"], "0");
    });
}

struct Channel(mpsc::Receiver<Frame<Bytes>>);

impl Body for Channel {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

#[test]
fn connect_in_a_stream_is_a_tunnel_of_its_own() {
    run(async {
        let granted = |mut request: Request<Incoming>| async move {
            spawn_local(async move {
                let stream = hyper::upgrade::on(&mut request).await.expect("switched");
                let (mut from, mut to) = tokio::io::split(TokioIo::new(stream));
                tokio::io::copy(&mut from, &mut to).await.ok();
                to.shutdown().await.ok();
            });
            Response::new(empty())
        };
        let setup = Setup::default();
        let front = front(&setup, application(true, granted).await).await;
        let mut client = http2(front).await;
        let asked = Request::connect("db:5432").body(empty()).expect("a request");
        let answer = client.send_request(asked).await.expect("an answer");
        assert_eq!(answer.status(), 200);
        let stream = hyper::upgrade::on(answer).await.expect("switched");
        let mut stream = TokioIo::new(stream);
        stream.write_all(b"through").await.expect("sent");
        let mut back = [0; 7];
        stream.read_exact(&mut back).await.expect("echoed");
        assert_eq!(&back, b"through");
        stream.shutdown().await.expect("shut");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("an orderly end");
        drop((stream, client));
        assert!(ended(&setup).await.is_ok());
    });
}
