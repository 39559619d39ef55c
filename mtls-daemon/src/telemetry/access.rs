//! One JSON line a connection, written by a thread of its own so that no sink can slow the data path.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;

use super::FlowRecord;
use super::line::Line;
use super::requests::RequestLine;

/// Lines that wait for the sink before more are dropped: about 4 MiB.
const CAPACITY: usize = 8192;

/// Lines written before the sink is flushed although more are waiting.
const BATCH: usize = 256;

/// Where access log lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sink {
    Stdout,
    Off,
    /// Appended to, and opened anew by [`AccessLog::reopen`].
    File(PathBuf),
}

impl FromStr for Sink {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Err("expected stdout, off, or a file's path"),
            "stdout" | "-" => Ok(Self::Stdout),
            "off" => Ok(Self::Off),
            path => Ok(Self::File(path.into())),
        }
    }
}

/// The access log. Cheap to clone, shared by all threads. Lines still waiting when the process ends
/// are lost unless [`AccessLog::flush`] was called.
#[derive(Clone)]
pub struct AccessLog {
    /// None: off.
    queue: Option<Arc<Queue>>,
    node: Arc<str>,
}

impl AccessLog {
    /// Opens `sink` and starts the writer; `dropped` counts the lines that did not make it.
    ///
    /// # Errors
    /// The file cannot be opened or the thread not started; the error names the file.
    pub fn open(sink: &Sink, node: &str, dropped: Counter) -> io::Result<Self> {
        let (out, path): (Box<dyn Write + Send>, _) = match sink {
            Sink::Off => return Ok(Self { queue: None, node: node.into() }),
            // A descriptor of our own: the process' stdout flushes line by line under a lock.
            Sink::Stdout => {
                (Box::new(File::from(io::stdout().as_fd().try_clone_to_owned()?)), None)
            }
            Sink::File(path) => (Box::new(append(path)?), Some(path.clone())),
        };
        Self::start(out, path, node, dropped, CAPACITY)
    }

    pub(super) fn start(
        out: Box<dyn Write + Send>,
        path: Option<PathBuf>,
        node: &str,
        dropped: Counter,
        capacity: usize,
    ) -> io::Result<Self> {
        let (sender, lines) = sync_channel(capacity);
        let progress = Arc::new(Progress::default());
        let writer = Writer {
            out: io::BufWriter::with_capacity(64 * 1024, out),
            path,
            failing: false,
            dropped: dropped.clone(),
            progress: progress.clone(),
        };
        std::thread::Builder::new().name("access-log".into()).spawn(move || writer.run(&lines))?;
        let queue = Queue { sender, dropped, progress };
        Ok(Self { queue: Some(Arc::new(queue)), node: node.into() })
    }

    /// Hands one line to the writer, or drops and counts it when the writer is behind.
    pub fn write(&self, flow: &FlowRecord) {
        let Some(queue) = &self.queue else { return };
        queue.send(Line::of(&self.node, flow).to_json());
    }

    /// As [`AccessLog::write`], for a request; `line` is given the node's name.
    pub(super) fn write_request<'a>(&'a self, line: impl FnOnce(&'a str) -> RequestLine<'a>) {
        let Some(queue) = &self.queue else { return };
        let mut text = Vec::with_capacity(512);
        serde_json::to_writer(&mut text, &line(&self.node)).expect("strings into memory");
        text.push(b'\n');
        queue.send(text);
    }

    /// Opens the file sink anew, after it was renamed away. Other sinks: nothing.
    pub fn reopen(&self) {
        let Some(queue) = &self.queue else { return };
        queue.progress.reopen.store(true, Ordering::Release);
        // Wakes a writer that has nothing to do; one that is busy looks by itself.
        queue.send(Vec::new());
    }

    /// Waits until every line written so far has reached the sink; false if `timeout` came first.
    /// Blocks: for the end of the process.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.queue.as_ref().is_none_or(|queue| queue.flush(timeout))
    }
}

/// Opens the access log file anew at every SIGHUP, for log rotation. Never returns by itself.
///
/// # Errors
/// The signal's handler cannot be installed.
pub async fn reopen_on_hangup(access: AccessLog) -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangups = signal(SignalKind::hangup())?;
    while hangups.recv().await.is_some() {
        access.reopen();
    }
    Ok(())
}

struct Queue {
    /// An empty line only wakes the writer.
    sender: SyncSender<Vec<u8>>,
    dropped: Counter,
    progress: Arc<Progress>,
}

/// What the writer and the others tell each other beside the lines.
#[derive(Default)]
struct Progress {
    sent: AtomicU64,
    done: Mutex<u64>,
    changed: Condvar,
    reopen: AtomicBool,
}

impl Queue {
    fn send(&self, line: Vec<u8>) {
        // Counted first: a writer that is faster than this thread must not be ahead of `sent`.
        self.progress.sent.fetch_add(1, Ordering::AcqRel);
        if let Err(refused) = self.sender.try_send(line) {
            self.progress.sent.fetch_sub(1, Ordering::AcqRel);
            let (std::sync::mpsc::TrySendError::Full(line)
            | std::sync::mpsc::TrySendError::Disconnected(line)) = refused;
            if !line.is_empty() {
                self.dropped.inc();
            }
        }
    }

    fn flush(&self, timeout: Duration) -> bool {
        let wanted = self.progress.sent.load(Ordering::Acquire);
        let deadline = Instant::now() + timeout;
        let mut done = self.progress.done.lock().unwrap_or_else(PoisonError::into_inner);
        while *done < wanted {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            done = self
                .progress
                .changed
                .wait_timeout(done, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}

/// The thread that owns the sink.
struct Writer {
    out: io::BufWriter<Box<dyn Write + Send>>,
    path: Option<PathBuf>,
    failing: bool,
    dropped: Counter,
    progress: Arc<Progress>,
}

impl Writer {
    /// Ends when the last [`AccessLog`] is gone.
    fn run(mut self, lines: &Receiver<Vec<u8>>) {
        while let Ok(first) = lines.recv() {
            if self.progress.reopen.swap(false, Ordering::AcqRel) {
                self.reopen();
            }
            let batch: Vec<_> =
                std::iter::once(first).chain(lines.try_iter().take(BATCH - 1)).collect();
            let result = self.write(&batch);
            self.judge(result, &batch);
            *self.progress.done.lock().unwrap_or_else(PoisonError::into_inner) +=
                batch.len() as u64;
            self.progress.changed.notify_all();
        }
    }

    fn write(&mut self, batch: &[Vec<u8>]) -> io::Result<()> {
        batch.iter().try_for_each(|line| self.out.write_all(line))?;
        self.out.flush()
    }

    /// Logs the first failure of a row of them, and the recovery.
    fn judge(&mut self, result: io::Result<()>, batch: &[Vec<u8>]) {
        match result {
            Ok(()) if self.failing => {
                tracing::info!("the access log is written again");
                self.failing = false;
            }
            Ok(()) => {}
            Err(error) => {
                // Which of them reached the sink is unknown: all count as lost.
                self.dropped.inc_by(batch.iter().filter(|line| !line.is_empty()).count() as u64);
                if !self.failing {
                    tracing::error!(
                        %error,
                        "access log lines are lost until its sink can be written again"
                    );
                    self.failing = true;
                }
                self.discard_buffered();
            }
        }
    }

    /// What a failed write left in the buffer is counted as lost, and would come out twice.
    fn discard_buffered(&mut self) {
        let empty = io::BufWriter::with_capacity(0, Box::new(io::sink()) as Box<dyn Write + Send>);
        let (out, _lost) = std::mem::replace(&mut self.out, empty).into_parts();
        self.out = io::BufWriter::with_capacity(64 * 1024, out);
    }

    fn reopen(&mut self) {
        let Some(path) = &self.path else { return };
        match append(path) {
            Ok(file) => {
                self.out = io::BufWriter::with_capacity(64 * 1024, Box::new(file));
                tracing::info!(path = %path.display(), "the access log file was opened anew");
            }
            Err(error) => tracing::error!(%error, "the access log keeps the file it has"),
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path).map_err(|error| {
        io::Error::new(error.kind(), format!("the access log file {}: {error}", path.display()))
    })
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;
