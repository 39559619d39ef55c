use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::*;
use status::{
    ConfigStatus, ConnectionsStatus, KernelStatus, RevocationStatus, SvidStatus, timestamp,
};

const LONG: Duration = Duration::from_secs(30);

fn status() -> Status {
    Status {
        node: "node-1".into(),
        pid: 42,
        version: "0.1.0".into(),
        started: timestamp(SystemTime::UNIX_EPOCH),
        ready: true,
        awaited: Vec::new(),
        config: ConfigStatus {
            dir: "/etc/mtls-daemon/config.d".into(),
            generation: 3,
            loaded_at: timestamp(SystemTime::UNIX_EPOCH),
            last_error: None,
            refused: Vec::new(),
            warnings: Vec::new(),
        },
        workloads: Vec::new(),
        policies: Vec::new(),
        svids: vec![SvidStatus {
            identity: "spiffe://cluster.local/ns/full/sa/server".into(),
            source: "embedded".into(),
            serial: Some("01ab".into()),
            issuer: Some("O=cluster.local".into()),
            not_before: None,
            not_after: Some(timestamp(SystemTime::UNIX_EPOCH + LONG)),
            next_renewal: Some(timestamp(SystemTime::UNIX_EPOCH + LONG / 2)),
            last_error: None,
        }],
        trust: crate::admin::status::TrustStatus::default(),
        federation: Vec::new(),
        revocation: RevocationStatus::default(),
        kernel: KernelStatus {
            programs: BTreeMap::new(),
            instructions: BTreeMap::new(),
            without: Vec::new(),
            full: Vec::new(),
            decisions: BTreeMap::from([("redirected".into(), 7)]),
        },
        connections: ConnectionsStatus { open_inbound: 1, open_outbound: 2 },
    }
}

/// A serving daemon's admin side; `start` is what its readiness still waits for.
struct Daemon {
    dir: tempfile::TempDir,
    http: SocketAddr,
    start: Condition,
    task: tokio::task::JoinHandle<()>,
}

impl Daemon {
    async fn serving() -> Self {
        Self::serving_with(|_| {}, status).await
    }

    async fn serving_with(
        scrape: impl Fn(&Metrics) + Send + Sync + 'static,
        status: impl Fn() -> Status + Send + Sync + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let any = "127.0.0.1:0".parse().expect("an address");
        let admin = Admin::bind(&dir.path().join("admin.sock"), Some(any)).await.expect("bound");
        let http = admin.http_address().expect("a port");
        let (readiness, start) = Readiness::starting();
        let metrics = Arc::new(Metrics::new("node-1"));
        metrics.on_scrape(Box::new(scrape));
        let state = State { readiness, metrics, status: Box::new(status) };
        let task = tokio::spawn(admin.serve(Arc::new(state)));
        Self { dir, http, start, task }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("admin.sock")
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let stream = TcpStream::connect(self.http).await.expect("connected");
        ask(stream, "GET", path).await
    }

    async fn get_by_socket(&self, path: &str) -> (u16, String) {
        let stream = UnixStream::connect(self.socket()).await.expect("connected");
        ask(stream, "GET", path).await
    }
}

/// Status code and body of the answer.
async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    method: &str,
    path: &str,
) -> (u16, String) {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    // The server closes after its answer.
    tokio::time::timeout(LONG, stream.read_to_string(&mut answer)).await.expect("in time").ok();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let code = head.split(' ').nth(1).expect("a status line").parse().expect("a code");
    (code, body.to_owned())
}

#[tokio::test]
async fn readiness_names_what_is_awaited_until_it_is_met() {
    let daemon = Daemon::serving().await;
    let (code, body) = daemon.get("/healthz/ready").await;
    assert_eq!((code, body.as_str()), (503, "not ready: the start of the daemon\n"));
    assert_eq!(daemon.get("/healthz/live").await.0, 200);
    let Daemon { dir: _dir, http, start, task: _task } = daemon;
    start.met();
    let stream = TcpStream::connect(http).await.expect("connected");
    assert_eq!(ask(stream, "GET", "/healthz/ready").await, (200, "ready\n".into()));
}

#[tokio::test]
async fn metrics_are_served_as_openmetrics_text() {
    let daemon = Daemon::serving().await;
    let (code, body) = daemon.get("/metrics").await;
    assert_eq!(code, 200);
    assert!(body.contains("mtls_open_connections{direction=\"inbound\"} 0"), "{body}");
    assert!(body.ends_with("# EOF\n"), "{body}");
}

#[tokio::test]
async fn status_is_for_the_socket_alone() {
    let daemon = Daemon::serving().await;
    let (code, body) = daemon.get_by_socket("/status").await;
    assert_eq!(code, 200);
    assert_eq!(serde_json::from_str::<Status>(&body).expect("a status"), status());
    assert_eq!(daemon.get("/status").await.0, 404);
    let mode = std::fs::metadata(daemon.socket()).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn anything_but_a_known_get_is_refused_with_what_there_is() {
    let daemon = Daemon::serving().await;
    let (code, body) = daemon.get("/").await;
    assert_eq!(code, 404);
    assert!(body.contains("/metrics /healthz/ready"), "{body}");
    let stream = TcpStream::connect(daemon.http).await.expect("connected");
    assert_eq!(ask(stream, "POST", "/metrics").await.0, 405);
}

#[tokio::test]
async fn a_head_without_end_is_refused() {
    let daemon = Daemon::serving().await;
    let mut stream = TcpStream::connect(daemon.http).await.expect("connected");
    let head = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n", "x".repeat(64 * 1024));
    // The server may close before it has read all of it.
    stream.write_all(head.as_bytes()).await.ok();
    let mut answer = Vec::new();
    tokio::time::timeout(LONG, stream.read_to_end(&mut answer)).await.expect("closed").ok();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn idle_connections_cannot_shut_the_socket_out() {
    let daemon = Daemon::serving().await;
    let mut idle = Vec::new();
    for _ in 0..=http::MAX_CONNECTIONS {
        idle.push(TcpStream::connect(daemon.http).await.expect("connected"));
    }
    let answered = tokio::time::timeout(LONG, daemon.get_by_socket("/status")).await;
    assert_eq!(answered.expect("in time").0, 200);
}

#[tokio::test]
async fn a_living_daemons_socket_is_kept_and_a_dead_ones_replaced() {
    let daemon = Daemon::serving().await;
    let error = Admin::bind(&daemon.socket(), None).await.err().expect("it answers");
    assert!(matches!(&error, AdminError::Busy(path) if *path == daemon.socket()), "{error}");
    assert_eq!(daemon.get_by_socket("/status").await.0, 200, "the first one is untouched");

    let stale = daemon.dir.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).expect("bound"));
    assert!(stale.exists(), "as after a SIGKILL");
    let admin = Admin::bind(&stale, None).await.expect("nobody answers");
    drop(admin);
    assert!(!stale.exists(), "the file goes away with its daemon");
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_not_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("admin.sock");
    std::fs::write(&path, "precious").expect("written");
    let error = Admin::bind(&path, None).await.err().expect("it is a file");
    assert!(matches!(error, AdminError::Foreign(_)), "{error}");
    assert_eq!(std::fs::read_to_string(&path).expect("still there"), "precious");
}

#[tokio::test]
async fn a_taken_port_is_named_with_the_flag() {
    let daemon = Daemon::serving().await;
    let path = daemon.dir.path().join("other.sock");
    let error = Admin::bind(&path, Some(daemon.http)).await.err().expect("taken").to_string();
    assert!(error.contains(&daemon.http.to_string()), "{error}");
    assert!(error.contains("--http-address"), "{error}");
    daemon.task.abort();
}

#[tokio::test]
async fn an_answer_that_has_to_wait_holds_up_nobody_else() {
    let busy = Arc::new(AtomicBool::new(true));
    let wait = |busy: &AtomicBool| {
        let begun = Instant::now();
        while busy.load(Ordering::SeqCst) && begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let (scraped, asked) = (busy.clone(), busy.clone());
    let daemon = Daemon::serving_with(
        move |_| wait(&scraped),
        move || {
            wait(&asked);
            status()
        },
    )
    .await;
    let slow = async { tokio::join!(daemon.get("/metrics"), daemon.get_by_socket("/status")) };
    tokio::pin!(slow);
    let live = async {
        // Both questions are asked by then, and neither can be answered.
        tokio::time::sleep(Duration::from_millis(50)).await;
        daemon.get("/healthz/live").await
    };
    tokio::select! {
        biased;
        _ = &mut slow => panic!("answered without waiting"),
        live = live => assert_eq!(live.0, 200),
    }
    busy.store(false, Ordering::SeqCst);
    let (metrics, status) = tokio::time::timeout(LONG, slow).await.expect("in time");
    assert_eq!((metrics.0, status.0), (200, 200));
}

#[tokio::test]
async fn an_answer_that_panics_is_an_error_and_the_daemon_lives() {
    let daemon = Daemon::serving_with(|_| {}, || panic!("a bug")).await;
    assert_eq!(daemon.get_by_socket("/status").await.0, 500);
    assert_eq!(daemon.get("/healthz/live").await.0, 200);
}

#[test]
fn the_status_of_a_daemon_that_tells_no_renewals_is_read() {
    let mut json = serde_json::to_value(status()).expect("JSON");
    let svid = json["svids"][0].as_object_mut().expect("an SVID");
    assert_eq!(svid.remove("next_renewal"), Some("1970-01-01T00:00:15Z".into()));
    let read: Status = serde_json::from_value(json).expect("a status");
    assert_eq!(read.svids[0].next_renewal, None);
}
