//! Waiting is for a condition with a deadline, never for a length of time.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(10);

/// How long something may take here that may take `limit` on a machine of its own: in a guest of `cargo
/// xtask vm` instructions are mostly emulated, many times slower. What a test measures is not waiting.
pub fn patience(limit: Duration) -> Duration {
    static FACTOR: LazyLock<u32> =
        LazyLock::new(|| if std::env::var_os("MTLS_VM_KERNEL").is_some() { 5 } else { 1 });
    limit * *FACTOR
}

/// Waits until `probe` has an answer; its last refusal is the error's text.
///
/// # Errors
/// When `limit` passes first, with [`patience`].
pub fn until<T>(
    limit: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<T, String>,
) -> Result<T> {
    let limit = patience(limit);
    let deadline = Instant::now() + limit;
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(reason) if Instant::now() >= deadline => {
                bail!("waited {limit:?} for {what}: {reason}")
            }
            Err(_) => std::thread::sleep(STEP),
        }
    }
}

/// [`until`] for a plain yes or no.
///
/// # Errors
/// When `limit` passes first.
pub fn eventually(limit: Duration, what: &str, mut probe: impl FnMut() -> bool) -> Result<()> {
    until(limit, what, || if probe() { Ok(()) } else { Err("it never became true".into()) })
}
