//! The kernel programs' own log lines (rare events), in the daemon's log.

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;

/// Follows the programs' log until the runtime ends. A kernel that cannot have it loses log lines,
/// nothing else.
pub fn follow(ebpf: &mut Ebpf) {
    let logger = match EbpfLogger::init(ebpf).map(AsyncFd::new) {
        Ok(Ok(logger)) => logger,
        Ok(Err(error)) => return tracing::warn!(%error, "kernel programs' log lines are not read"),
        Err(error) => return tracing::warn!(%error, "kernel programs' log lines are not read"),
    };
    let mut logger = logger;
    tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
}
