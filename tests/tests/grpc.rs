//! gRPC through both daemons, with a client and a server of a gRPC library: calls of every kind,
//! what policy says of them, and what a client is told when there is nobody to answer.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::stream::{self, Stream, StreamExt};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::http::uri::PathAndQuery;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mtls_tests::client;
use mtls_tests::wait::{self, patience};
use mtls_tests::web::{self, CLIENT, DEAD, HTTP2, Web};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tonic::body::Body;
use tonic::{Code, Request, Response, Status, Streaming};
use tower_service::Service;

/// In no service: nobody has declared anything.
const AUTO: u16 = 7001;
/// Nobody has declared it, and what listens breaks off.
const BROKEN: u16 = 7002;
/// How soon a change must be in force for what is open.
const SOON: Duration = Duration::from_secs(5);

type Codec = tonic_prost::ProstCodec<String, String>;
type Answers = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;
type Future<T, E> = Pin<Box<dyn std::future::Future<Output = Result<T, E>> + Send>>;

/// What the server does with one call; the method says what.
struct Method(String);

impl Service<Request<Streaming<String>>> for Method {
    type Response = Response<Answers>;
    type Error = Status;
    type Future = Future<Response<Answers>, Status>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Streaming<String>>) -> Self::Future {
        let method = self.0.clone();
        Box::pin(async move {
            let told = request.metadata().get("x-forwarded-client-cert").cloned();
            let mut messages = request.into_inner();
            let answers: Answers = match method.as_str() {
                "/test.Chat/Chat" => {
                    Box::pin(messages.map(|one| one.map(|text| format!("echo {text}"))))
                }
                "/test.Chat/List" => {
                    let text = messages.message().await?.unwrap_or_default();
                    let all = (0..100).map(move |number| Ok(format!("{text} {number}")));
                    Box::pin(stream::iter(all))
                }
                "/test.Chat/Sum" => {
                    let mut sum = String::new();
                    while let Some(text) = messages.message().await? {
                        sum += &text;
                    }
                    Box::pin(stream::iter([Ok(sum)]))
                }
                "/test.Chat/Fail" => {
                    let mut status = failure();
                    status.metadata_mut().insert("x-why", "because".parse().expect("text"));
                    return Err(status);
                }
                // Its status comes behind an answer.
                "/test.Chat/FailLate" => {
                    Box::pin(stream::iter([Ok("first".to_owned()), Err(failure())]))
                }
                _ => return Err(Status::unimplemented(method)),
            };
            let mut response = Response::new(answers);
            if let Some(told) = told {
                response.metadata_mut().insert("x-told", told);
            }
            Ok(response)
        })
    }
}

/// Words and bytes that trailers carry in a form of their own.
fn failure() -> Status {
    let details: &[u8] = b"\0\xffdetails";
    Status::with_details(Code::FailedPrecondition, "100% too late, schön", details.into())
}

/// Serves on `port` of the application's pod until the runtime ends.
fn serve(town: &Web, runtime: &Runtime, port: u16) -> Result<()> {
    let listener = town.world.pod("server").inside(|| {
        let listener = std::net::TcpListener::bind(("0.0.0.0", port))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    })?;
    runtime.handle.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(|request: hyper::Request<Incoming>| async {
                let method = Method(request.uri().path().to_owned());
                let mut grpc = tonic::server::Grpc::new(Codec::default());
                Ok::<_, std::convert::Infallible>(grpc.streaming(method, request).await)
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    Ok(())
}

/// One connection, as the library's client wants it.
#[derive(Clone)]
struct Channel(SendRequest<Body>);

impl Service<hyper::Request<Body>> for Channel {
    type Response = hyper::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Future<Self::Response, Self::Error>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: hyper::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// A client on one connection.
#[derive(Clone)]
struct Caller(tonic::client::Grpc<Channel>);

impl Caller {
    fn connect(town: &Web, runtime: &Runtime, from: &str, to: SocketAddr) -> Result<Self> {
        let stream = town.world.pod(from).inside(|| client::connect(to))?;
        stream.set_read_timeout(None)?;
        stream.set_nonblocking(true)?;
        runtime.block_on(async {
            let stream = TokioIo::new(tokio::net::TcpStream::from_std(stream)?);
            let exec = TokioExecutor::new();
            let (sender, connection) = hyper::client::conn::http2::handshake(exec, stream).await?;
            tokio::spawn(connection);
            let origin = format!("http://{to}").parse()?;
            Ok(Self(tonic::client::Grpc::with_origin(Channel(sender), origin)))
        })
    }

    async fn ready(&mut self) -> Result<(), Status> {
        self.0.ready().await.map_err(|error| Status::unknown(format!("{error:?}")))
    }

    async fn unary(
        &mut self,
        method: &'static str,
        text: &str,
    ) -> Result<Response<String>, Status> {
        self.ready().await?;
        let path = PathAndQuery::from_static(method);
        self.0.unary(Request::new(text.to_owned()), path, Codec::default()).await
    }

    async fn list(&mut self, method: &'static str) -> Result<Streaming<String>, Status> {
        self.ready().await?;
        let path = PathAndQuery::from_static(method);
        let request = Request::new("item".to_owned());
        let answer = self.0.server_streaming(request, path, Codec::default()).await?;
        Ok(answer.into_inner())
    }

    async fn sum(&mut self, texts: Vec<String>) -> Result<String, Status> {
        self.ready().await?;
        let path = PathAndQuery::from_static("/test.Chat/Sum");
        let request = Request::new(stream::iter(texts));
        let answer = self.0.client_streaming(request, path, Codec::default()).await?;
        Ok(answer.into_inner())
    }

    async fn chat(&mut self) -> Result<Chat, Status> {
        self.ready().await?;
        let path = PathAndQuery::from_static("/test.Chat/Chat");
        let (say, mut said) = mpsc::channel(1);
        let said = stream::poll_fn(move |cx| said.poll_recv(cx));
        let answer = self.0.streaming(Request::new(said), path, Codec::default()).await?;
        Ok(Chat { say, hear: answer.into_inner() })
    }
}

/// A call that goes on both ways.
struct Chat {
    say: mpsc::Sender<String>,
    hear: Streaming<String>,
}

impl Chat {
    async fn turn(&mut self, text: &str) -> Result<()> {
        self.say.send(text.to_owned()).await?;
        let heard = self.hear.message().await?;
        ensure!(heard.as_deref() == Some(&format!("echo {text}")), "{text}: {heard:?}");
        Ok(())
    }
}

/// A runtime that runs on a thread of its own, until it is dropped.
struct Runtime {
    handle: tokio::runtime::Handle,
    _stop: oneshot::Sender<()>,
}

impl Runtime {
    fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        std::thread::spawn(move || runtime.block_on(stopped));
        Ok(Self { handle, _stop: stop })
    }

    fn block_on<F: std::future::Future>(&self, work: F) -> F::Output {
        self.handle.block_on(work)
    }
}

fn check_denied(status: Option<Status>) -> Result<()> {
    let status = status.context("it was allowed")?;
    let said = (status.code(), status.message());
    ensure!(said == (Code::PermissionDenied, "RBAC: access denied"), "{status:?}");
    Ok(())
}

/// Within the time that a test may take.
async fn soon<T>(what: &str, work: impl std::future::Future<Output = T>) -> Result<T> {
    let limit = patience(Duration::from_secs(15));
    tokio::time::timeout(limit, work).await.with_context(|| format!("{what}: no end of it"))
}

#[test]
fn calls_of_every_kind_pass_as_they_are() -> Result<()> {
    let town = web::start(|spec| spec)?;
    let runtime = Runtime::start()?;
    for port in [HTTP2, AUTO] {
        serve(&town, &runtime, port)?;
    }
    let element = town.element("client", CLIENT)?;
    for (from, port) in [("client", HTTP2), ("client", AUTO), ("stranger", HTTP2)] {
        let place = format!("{from} to {port}");
        let mut caller = Caller::connect(&town, &runtime, from, town.server(port))?;
        let work = async {
            let answer = caller.unary("/test.Chat/Sum", "one").await?;
            ensure!(answer.get_ref() == "one", "{answer:?}");
            // What the server was told of its client, and says back in its own metadata.
            let told = answer.metadata().get("x-told").map(|told| told.to_str()).transpose()?;
            ensure!(told == (from == "client").then_some(element.as_str()), "{told:?}");
            let sum = caller.sum((0..100).map(|number| format!("{number},")).collect()).await?;
            ensure!(sum.len() == 290 && sum.ends_with("98,99,"), "{sum}");
            let mut list = caller.list("/test.Chat/List").await?;
            for number in 0..100 {
                let item = list.message().await?;
                ensure!(item == Some(format!("item {number}")), "{item:?}");
            }
            ensure!(list.message().await?.is_none());
            let mut chats = Vec::new();
            // Calls share the connection, and wait for nobody.
            for _ in 0..10 {
                chats.push(caller.chat().await?);
            }
            for number in 0..10 {
                for chat in &mut chats {
                    chat.turn(&format!("turn {number}")).await?;
                }
            }
            for Chat { say, mut hear } in chats {
                drop(say);
                ensure!(hear.message().await?.is_none());
            }
            // A status of the server's own, without an answer and behind one.
            let early = caller.unary("/test.Chat/Fail", "").await.err().context("a failure")?;
            let why = early.metadata().get("x-why").map(|why| why.as_bytes().to_vec());
            ensure!(why.as_deref() == Some(b"because"), "{early:?}");
            let mut late = caller.list("/test.Chat/FailLate").await?;
            ensure!(late.message().await?.as_deref() == Some("first"));
            let late = late.message().await.err().context("a failure")?;
            let expected = failure();
            for status in [early, late] {
                let said = (status.code(), status.message(), status.details());
                let expected = (expected.code(), expected.message(), expected.details());
                ensure!(said == expected, "{status:?}");
            }
            // More than the windows of both connections hold.
            let long = "x".repeat(3 << 20);
            ensure!(caller.unary("/test.Chat/Sum", &long).await?.into_inner() == long);
            anyhow::Ok(())
        };
        runtime.block_on(soon(&place, work)).and_then(|result| result).context(place)?;
    }
    let counted = town.world.b().metric("istio_requests_total", &["request_protocol=\"grpc\""])?;
    ensure!(counted >= 3.0 * 16.0, "{counted} calls are counted as gRPC");
    // Each failed once in its headers alone and once behind an answer.
    counts(&town, Code::FailedPrecondition, 6.0)
}

/// The outcome that is gRPC's own: its HTTP status is 200.
fn counts(town: &Web, code: Code, calls: f64) -> Result<()> {
    let status = format!("grpc_response_status=\"{}\"", i32::from(code));
    let labels = ["response_code=\"200\"", &status];
    wait::until(patience(SOON), "the calls to be counted", || {
        match town.world.b().metric("istio_requests_total", &labels) {
            Ok(counted) if counted == calls => Ok(()),
            other => Err(format!("{status}: {other:?}")),
        }
    })
}

#[test]
fn calls_are_denied_in_their_own_words_and_end_when_policy_says_so() -> Result<()> {
    let mut town = web::start(|spec| spec)?;
    let runtime = Runtime::start()?;
    serve(&town, &runtime, HTTP2)?;
    let deny = |paths: &[&str]| {
        let operation = json!({"operation": {"paths": paths}});
        json!({"action": "DENY", "rules": [{"to": [operation]}]})
    };
    town.policy(&deny(&["/test.Chat/Sum", "/test.Chat/List"]))?;
    for from in ["client", "stranger"] {
        let mut caller = Caller::connect(&town, &runtime, from, town.server(HTTP2))?;
        let mark = town.world.b().mark();
        let work = async {
            check_denied(caller.unary("/test.Chat/Sum", "a").await.err())?;
            check_denied(caller.list("/test.Chat/List").await.err())?;
            check_denied(caller.sum(vec!["a".to_owned(); 3]).await.err())?;
            // Denial is no end of the connection.
            caller.chat().await?.turn("allowed").await
        };
        runtime.block_on(soon(from, work))?.context(from)?;
        let line = town.world.b().logged(mark, "the denial", |l| l["event"] == "request_denied")?;
        ensure!(line["path"] == "/test.Chat/Sum" && line["method"] == "POST", "{line}");
    }
    counts(&town, Code::PermissionDenied, 6.0)?;

    // Streams that are open when a policy comes: the denied one's ends, another goes on.
    let caller = |from| Caller::connect(&town, &runtime, from, town.server(HTTP2));
    let (mut denied, mut allowed) = (caller("client")?, caller("stranger")?);
    let (mut denied, mut allowed) = runtime.block_on(async {
        let mut chats = (denied.chat().await?, allowed.chat().await?);
        chats.0.turn("before").await?;
        chats.1.turn("before").await?;
        anyhow::Ok(chats)
    })?;
    let mark = town.world.b().mark();
    let mut spec = deny(&["/test.Chat/*"]);
    spec["rules"][0]["from"] = json!([{"source": {"namespaces": ["web"]}}]);
    let since = Instant::now();
    town.policy(&spec)?;
    let end = runtime.block_on(soon("the denied stream", denied.hear.message()))?;
    ensure!(end.is_err(), "a stream that was cut looks complete: {end:?}");
    ensure!(since.elapsed() < patience(SOON), "it took {:?}", since.elapsed());
    let line = town.world.b().logged(mark, "its end", |line| line["direction"] == "inbound")?;
    ensure!(line["outcome"] == "authorization_denied", "{line}");
    runtime.block_on(soon("the other", allowed.turn("after")))??;
    let mut again = Caller::connect(&town, &runtime, "client", town.server(HTTP2))?;
    check_denied(runtime.block_on(soon("a new call", again.chat()))?.err())
}

#[test]
fn a_server_that_does_not_answer_is_unavailable() -> Result<()> {
    let town = web::start(|spec| spec)?;
    let runtime = Runtime::start()?;
    // Reads the client's greeting, and breaks off.
    let broken = town
        .world
        .pod("server")
        .inside(|| std::net::TcpListener::bind(("0.0.0.0", BROKEN)).context("a port"))?;
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = broken.accept() {
            std::io::Read::read(&mut stream, &mut [0; 1024]).ok();
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).ok();
        }
    });
    let quiet = town.world.pod("quiet").v4(DEAD);
    for (from, to, reason) in [
        ("client", town.server(DEAD), "upstream_connect_failed"),
        ("stranger", town.server(DEAD), "upstream_connect_failed"),
        ("client", town.server(BROKEN), "upstream_reset"),
        ("stranger", town.server(BROKEN), "upstream_reset"),
        // Where the server's side relays bytes, the client's answers.
        ("client", quiet, "upstream failure ("),
    ] {
        let place = format!("{from} to {to}");
        let mut caller = Caller::connect(&town, &runtime, from, to)?;
        let answer = runtime.block_on(soon(&place, caller.unary("/test.Chat/Sum", "a")))?;
        let status = answer.err().with_context(|| format!("{place}: an answer"))?;
        ensure!(status.code() == Code::Unavailable, "{place}: {status:?}");
        ensure!(status.message().contains(reason), "{place}: {status:?}");
    }
    Ok(())
}

#[test]
fn a_daemon_that_stops_lets_calls_finish_and_sends_clients_away() -> Result<()> {
    let mut town = web::start(|spec| spec.with("--drain", "30s"))?;
    let runtime = Runtime::start()?;
    serve(&town, &runtime, HTTP2)?;
    // In the clear, so that nothing but the server's own daemon is between them.
    let mut callers = [
        Caller::connect(&town, &runtime, "client", town.server(HTTP2))?,
        Caller::connect(&town, &runtime, "stranger", town.server(HTTP2))?,
    ];
    let mut chats = runtime.block_on(async {
        let mut chats = [callers[0].chat().await?, callers[1].chat().await?];
        for chat in &mut chats {
            chat.turn("before").await?;
        }
        anyhow::Ok(chats)
    })?;
    let mark = town.world.b().mark();
    town.world.daemons[1].process.signal(Signal::SIGTERM)?;
    for (chat, caller) in chats.iter_mut().zip(&mut callers) {
        // A connection with GOAWAY takes no more calls.
        wait::eventually(patience(SOON), "that the client is told to go", || {
            let another = soon("another call", caller.unary("/test.Chat/Sum", ""));
            runtime.block_on(another).is_ok_and(|answer| answer.is_err())
        })?;
        runtime.block_on(soon("the call", chat.turn("while it stops")))??;
    }
    for Chat { say, mut hear } in chats {
        drop(say);
        let end = runtime.block_on(soon("its end", hear.message()))?;
        ensure!(end.as_ref().is_ok_and(Option::is_none), "it is complete: {end:?}");
    }
    let status = town.world.daemons[1].process.wait(patience(Duration::from_secs(10)))?;
    ensure!(status.success(), "{status}");
    for _ in 0..2 {
        let line = town.world.b().logged(mark, "its end", |line| line["direction"] == "inbound")?;
        ensure!(line["outcome"] == "ok", "{line}");
    }
    Ok(())
}
