//! The log line that says that the daemon is ready.
//!
//! A program of its own: `tracing` remembers for each line whether anybody listens, for the whole
//! process, and tests on other threads that log the same line without a listener would decide that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use mtls_daemon::admin::Readiness;

#[test]
fn the_log_says_so_once_and_not_before_the_checks_agree() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false);
    tracing::subscriber::with_default(subscriber.finish(), || {
        let (readiness, start) = Readiness::starting();
        let missing = Arc::new(AtomicBool::new(true));
        let asked = missing.clone();
        let says = move || asked.load(Ordering::Relaxed).then(|| "an SVID".to_owned());
        readiness.check(Box::new(move || says().into_iter().collect()));
        let set = |now| missing.store(now, Ordering::Relaxed);
        start.met();
        assert_eq!(log.announcements(), 0);
        set(false);
        assert!(readiness.is_ready());
        assert_eq!(log.announcements(), 1);
        set(true);
        assert!(!readiness.is_ready());
        set(false);
        assert!(readiness.is_ready());
        let drain = readiness.condition("shutting down");
        drain.met();
        assert_eq!(log.announcements(), 1);
    });
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn announcements(&self) -> usize {
        let log = self.0.lock().expect("not poisoned");
        let lines = std::str::from_utf8(&log).expect("text").lines();
        lines.filter(|line| line.contains("ready")).count()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
