//! Real curl, as a process of a pod.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::bed::Pod;
use crate::process::output;
use crate::wait::patience;

/// What curl made of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Curl {
    /// curl's exit code: 0, 56 for a reset, 52 for an empty answer, 28 for a timeout.
    pub exit: i32,
    /// The HTTP status code; 0 (curl prints 000) when there was none.
    pub code: u16,
    pub body: String,
    /// curl's own words.
    pub said: String,
}

impl Curl {
    /// The echoed request, when the server was ours.
    ///
    /// # Errors
    /// When the body is not its JSON.
    pub fn echo(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("{self:?}"))
    }
}

/// `curl http://<host>:<port of to><path>` from `pod`, connected to the address `to`, with a header
/// `X-Canary` to look for on the wire.
///
/// # Errors
/// When curl is not installed. Its failures are results.
pub fn curl(pod: &Pod, host: &str, to: SocketAddr, path: &str, canary: &str) -> Result<Curl> {
    get(pod, host, to.port(), to, path, canary)
}

/// The same for a URL with another port than that of `to`.
///
/// # Errors
/// As [`curl`].
pub fn get(
    pod: &Pod,
    host: &str,
    port: u16,
    to: SocketAddr,
    path: &str,
    canary: &str,
) -> Result<Curl> {
    // `to` has brackets where it is IPv6.
    run(
        pod,
        &[
            "--connect-to",
            &format!("{host}:{port}:{to}"),
            "--header",
            &format!("X-Canary: {canary}"),
            &format!("http://{host}:{port}{path}"),
        ],
    )
}

/// curl from `pod` with these arguments, which name one URL.
///
/// # Errors
/// As [`curl`].
pub fn run(pod: &Pod, arguments: &[&str]) -> Result<Curl> {
    let mut command = pod.place.command("curl")?;
    command.args(["--silent", "--show-error", "--noproxy", "*", "--max-time"]);
    command.arg(patience(Duration::from_secs(15)).as_secs().to_string());
    command.args(["--write-out", "\n%{http_code}"]).args(arguments);
    let output = output(command)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let exit = output.status.code().with_context(|| format!("curl: {}", output.status))?;
    let (body, code) =
        text.rsplit_once('\n').with_context(|| format!("curl exit {exit} said: {said}"))?;
    let code = code.parse().with_context(|| format!("a status code: {code}"))?;
    Ok(Curl { exit, code, body: body.to_owned(), said })
}
