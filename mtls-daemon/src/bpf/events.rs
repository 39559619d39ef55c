//! The kernel programs' own log lines (rare events), in the daemon's log.

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;

/// Follows the programs' log until the runtime ends. A kernel that cannot have it loses log lines,
/// nothing else.
pub fn follow(ebpf: &mut Ebpf) {
    let lost = "kernel programs' log lines are not read";
    let logger = match EbpfLogger::init(ebpf) {
        Ok(logger) => logger,
        Err(error) => return tracing::warn!(%error, "{lost}"),
    };
    // SAFETY: the logger owns its descriptor and keeps it open as long as it lives; `AsyncFd` owns
    // the logger and only ever lends it.
    let mut logger = match unsafe { AsyncFd::register(logger) } {
        Ok(logger) => logger,
        Err(error) => return tracing::warn!(%error, "{lost}"),
    };
    tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
}
