//! Runtime threads, and the accept loops on them.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use super::live::Live;
use super::{Life, Listening, Pod, Shared, inbound, outbound};
use crate::bpf::SocketMaps;

/// The runtime threads. They end when this is dropped and their connections have ended.
pub struct Workers {
    threads: Vec<mpsc::UnboundedSender<Job>>,
}

/// Listeners for one thread to serve.
struct Job {
    pod: Arc<Pod>,
    listening: Listening,
    listeners: Vec<TcpListener>,
}

/// Between two warnings about one thing.
const QUIET: Duration = Duration::from_secs(10);

/// Lets a warning pass, and then none for [`QUIET`].
#[derive(Default)]
pub struct Quiet(Cell<Option<Instant>>);

impl Quiet {
    pub fn passes(&self) -> bool {
        let passes = self.0.get().is_none_or(|last| last.elapsed() > QUIET);
        if passes {
            self.0.set(Some(Instant::now()));
        }
        passes
    }
}

/// What the connections of one thread share. Never leaves the thread.
pub struct Worker {
    pub shared: Arc<Shared>,
    pub maps: RefCell<SocketMaps>,
    pub live: Live,
    /// For what anybody can make happen as often as they like.
    pub refusals: Quiet,
}

impl Workers {
    /// Starts a thread for each of `maps`.
    pub fn start(shared: &Arc<Shared>, maps: Vec<SocketMaps>) -> io::Result<Self> {
        let mut threads = Vec::new();
        for (index, maps) in maps.into_iter().enumerate() {
            let (sender, jobs) = mpsc::unbounded_channel();
            let shared = shared.clone();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            std::thread::Builder::new().name(format!("mtls-worker-{index}")).spawn(move || {
                let maps = RefCell::new(maps);
                let (live, refusals) = (Live::default(), Quiet::default());
                let worker = Rc::new(Worker { shared, maps, live, refusals });
                let local = LocalSet::new();
                local.spawn_local(end_with_the_daemon(worker.clone()));
                local.spawn_local(follow_policy(worker.clone()));
                local.spawn_local(follow_revocations(worker.clone()));
                local.spawn_local(serve_jobs(worker, jobs));
                runtime.block_on(local);
            })?;
            threads.push(sender);
        }
        Ok(Self { threads })
    }

    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Hands out a pod's listeners of one direction, one set to each thread.
    pub fn serve(&self, pod: &Arc<Pod>, listening: Listening, listeners: Vec<Vec<TcpListener>>) {
        for (thread, listeners) in self.threads.iter().zip(listeners) {
            let job = Job { pod: pod.clone(), listening, listeners };
            if thread.send(job).is_err() {
                tracing::error!("a worker thread is gone: its share of connections is dropped");
            }
        }
    }
}

async fn end_with_the_daemon(worker: Rc<Worker>) {
    worker.shared.drain.clone().closing().await;
    worker.live.end_all();
}

/// Open connections that are in the clear are judged again whenever the policy changes.
async fn follow_policy(worker: Rc<Worker>) {
    let mut published = worker.shared.published.subscribe();
    while published.changed().await.is_ok() {
        worker.live.judge(&worker.shared.snapshot.load());
    }
}

/// What a revoked certificate opened does not stay open.
async fn follow_revocations(worker: Rc<Worker>) {
    let mut changed = worker.shared.checks.changed();
    while changed.changed().await.is_ok() {
        worker.live.judge_certificates(SystemTime::now());
    }
}

async fn end_with_the_pod(worker: Rc<Worker>, pod: Arc<Pod>) {
    pod.reached(Life::Ended).await;
    worker.live.end_pod(&pod);
}

async fn serve_jobs(worker: Rc<Worker>, mut jobs: mpsc::UnboundedReceiver<Job>) {
    while let Some(Job { pod, listening, listeners }) = jobs.recv().await {
        tokio::task::spawn_local(end_with_the_pod(worker.clone(), pod.clone()));
        for listener in listeners {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => {
                    let accepting = accept(worker.clone(), pod.clone(), listening, listener);
                    tokio::task::spawn_local(accepting);
                }
                Err(error) => tracing::error!(%error, "cannot serve a listener"),
            }
        }
    }
}

async fn accept(
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    listening: Listening,
    listener: tokio::net::TcpListener,
) {
    let name = match listening {
        Listening::Outbound => format!("outbound {}", pod.current().workload.key()),
        Listening::Inbound => format!("inbound {}", pod.current().workload.key()),
    };
    let drain = worker.shared.drain.named(&name);
    let warnings = Quiet::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = pod.reached(Life::NoNewConnections) => return,
            () = drain.draining() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let guard = drain.guard();
                let (worker, pod) = (worker.clone(), pod.clone());
                tokio::task::spawn_local(async move {
                    pod.open.fetch_add(1, Ordering::AcqRel);
                    connection(&worker, &pod, listening, stream, peer).await;
                    pod.open.fetch_sub(1, Ordering::AcqRel);
                    drop(guard);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: what is open may free some.
                if warnings.passes() {
                    tracing::warn!(%error, listener = %name, "cannot accept; clients wait");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(
    worker: &Worker,
    pod: &Arc<Pod>,
    listening: Listening,
    stream: TcpStream,
    peer: SocketAddr,
) {
    let place = worker.live.enter(pod, listening, worker.shared.timeouts.age);
    match listening {
        Listening::Outbound => outbound::serve(worker, pod, stream, peer, &place).await,
        Listening::Inbound => inbound::serve(worker, pod, stream, peer, &place).await,
    }
}
