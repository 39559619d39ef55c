//! SMTP, whose server speaks first: the distribution's `aiosmtpd`, and curl, which also sends mail.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::bed::Pod;
use crate::process::{Process, output};
use crate::wait::until;

/// The port that everybody knows.
pub const PORT: u16 = 25;
/// What the server's greeting holds.
pub const GREETING: &str = "Python SMTP";

/// Starts a server in `pod`, on IPv4. It prints the messages that it takes.
///
/// # Errors
/// When it is not installed, or does not listen; the text holds its own words.
pub fn serve(pod: &Pod) -> Result<Process> {
    // The distribution's own interpreter: another on the PATH lacks the distribution's packages.
    let mut command = pod.place.command("/usr/bin/python3")?;
    command.args(["-u", "-m", "aiosmtpd", "--nosetuid", "--listen", &format!("0.0.0.0:{PORT}")]);
    command.args(["--class", "aiosmtpd.handlers.Debugging", "stdout"]);
    let mut server = Process::start(format!("aiosmtpd in {}", pod.name), command)?;
    until(Duration::from_secs(20), "the SMTP server to listen", || {
        if let Ok(Some(status)) = server.exited() {
            return Ok(Err(anyhow::anyhow!("python3 -m aiosmtpd ended: {status}")));
        }
        match pod.inside(crate::client::listening_ports) {
            Ok(ports) if ports.contains(&PORT) => Ok(Ok(())),
            other => Err(format!("listening: {other:?}")),
        }
    })
    .and_then(|listening| listening)
    .with_context(|| format!("{:?} (is python3-aiosmtpd installed?)", server.stderr.all()))?;
    Ok(server)
}

/// What curl made of one message.
#[derive(Debug)]
pub struct Sent {
    /// curl's exit code; 0: the server took the message.
    pub exit: i32,
    pub said: String,
}

/// Sends a message that holds `canary` from `pod`; it is written below `directory` first.
///
/// # Errors
/// When curl is not installed. Its failures are results.
pub fn send(pod: &Pod, directory: &Path, to: SocketAddr, canary: &str) -> Result<Sent> {
    let message = directory.join(format!("{canary}.eml"));
    fs::write(
        &message,
        format!("From: a@shop\r\nTo: b@shop\r\nSubject: hello\r\n\r\n{canary}\r\n"),
    )?;
    let mut command = pod.place.command("curl")?;
    command.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "15"]);
    command.args(["--mail-from", "a@shop", "--mail-rcpt", "b@shop", "--upload-file"]);
    command.arg(&message).arg(format!("smtp://{to}"));
    let output = output(command)?;
    Ok(Sent {
        exit: output.status.code().with_context(|| format!("curl: {}", output.status))?,
        said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
