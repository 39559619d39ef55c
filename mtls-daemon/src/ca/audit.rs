//! The audit log: one JSON line for every certificate and every refusal.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;

/// Where the lines go. A certificate whose line cannot be written is not handed out.
pub struct Audit(Mutex<Box<dyn Write + Send>>);

/// What there is to say of one request. Absent: it did not come so far.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Entry {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<SocketAddr>,
    /// How the caller proved who it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// Whom the certificate was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The same join token and the same key as before.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub retry: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    verdict: &'static str,
    #[serde(flatten)]
    entry: &'a Entry,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

impl Audit {
    pub fn to(writer: impl Write + Send + 'static) -> Self {
        Self(Mutex::new(Box::new(writer)))
    }

    pub fn stdout() -> Self {
        Self::to(io::stdout())
    }

    /// Appends; whoever rotates the file copies and truncates it.
    pub fn file(path: &Path) -> io::Result<Self> {
        Ok(Self::to(OpenOptions::new().create(true).append(true).mode(0o600).open(path)?))
    }

    pub fn issued(&self, entry: &Entry) -> io::Result<()> {
        self.write("issued", entry, None)
    }

    pub fn refused(&self, entry: &Entry, reason: &str) -> io::Result<()> {
        self.write("refused", entry, Some(reason))
    }

    fn write(&self, verdict: &'static str, entry: &Entry, reason: Option<&str>) -> io::Result<()> {
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let mut line = serde_json::to_vec(&Line { time, verdict, entry, reason })?;
        line.push(b'\n');
        let mut out = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        out.write_all(&line)?;
        out.flush()
    }
}

impl Entry {
    pub fn signed(&mut self, serial: &str, lifetime: Duration, not_after: SystemTime) {
        self.serial = Some(serial.to_owned());
        self.lifetime_seconds = Some(lifetime.as_secs());
        self.not_after = Some(humantime::format_rfc3339_seconds(not_after).to_string());
    }
}
