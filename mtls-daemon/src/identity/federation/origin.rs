//! Where a bundle comes from, and what it may look like.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hyper::http::Uri;
use tokio::time::sleep;

use super::Federation;
use crate::identity::encoding;
use crate::identity::{Bundle, SpiffeBundle, TrustDomain};

/// Larger than any bundle.
pub(super) const LARGEST: usize = 4 * 1024 * 1024;
/// How often a file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a file must have stood still.
const SETTLE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A SPIFFE bundle document, or PEM.
    File(PathBuf),
    /// SPIFFE's `https_web` profile.
    Web(Endpoint),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Web(endpoint) => endpoint.fmt(f),
        }
    }
}

/// `https://HOST[:PORT]/PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(Uri);

impl Endpoint {
    pub fn host(&self) -> &str {
        self.0.host().unwrap_or_default()
    }

    pub fn port(&self) -> u16 {
        self.0.port_u16().unwrap_or(443)
    }

    /// Path and query, as a request has them.
    pub(super) fn target(&self) -> &str {
        self.0.path_and_query().map_or("/", |it| it.as_str())
    }

    pub(super) fn authority(&self) -> &str {
        self.0.authority().map_or("", |it| it.as_str())
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|error| format!("{text:?} is no URL: {error}"))?;
        if uri.scheme_str() != Some("https") {
            return Err(format!("{text:?} does not begin with https://"));
        }
        let authority = uri.authority().map_or("", |it| it.as_str());
        if uri.host().is_none_or(str::is_empty) || authority.contains('@') {
            return Err(format!("{text:?} has to name a host, and no user"));
        }
        Ok(Self(uri))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

pub(super) fn parse(domain: &TrustDomain, document: &[u8]) -> Result<SpiffeBundle, String> {
    if encoding::is_pem(document) {
        let bundle = Bundle::from_pem(domain.clone(), document).map_err(|it| it.to_string())?;
        return Ok(SpiffeBundle { bundle, sequence: None, refresh_hint: None, jwt_authorities: 0 });
    }
    SpiffeBundle::parse(domain.clone(), document).map_err(|error| error.to_string())
}

/// None: it is not there.
pub(super) fn read_file(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let read = || -> io::Result<Option<Vec<u8>>> {
        let meta = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        // A FIFO would be waited on for ever.
        if !meta.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        let mut bytes = Vec::new();
        File::open(path)?.take(LARGEST as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > LARGEST {
            return Err(io::Error::other(format!("it is larger than {LARGEST} bytes")));
        }
        Ok(Some(bytes))
    };
    read().map_err(|error| format!("cannot read {}: {error}", path.display()))
}

type Stamp = Option<(u64, u64, u64, (i64, i64), (i64, i64))>;

fn stamp(path: &Path) -> Stamp {
    let meta = fs::metadata(path).ok()?;
    let times = ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
    Some((meta.dev(), meta.ino(), meta.size(), times.0, times.1))
}

impl Federation {
    /// Never ends.
    pub(super) async fn follow_file(&self, domain: &TrustDomain, path: PathBuf) {
        // It was read before; nothing is known about the time since.
        let mut handled: Option<Stamp> = None;
        loop {
            let now = stamp(&path);
            if handled == Some(now) {
                self.keep_again(domain);
                sleep(LOOK).await;
                continue;
            }
            // A file that went for a moment is being replaced, and trust that ends is not had back.
            sleep(if now.is_none() { LOOK } else { SETTLE }).await;
            if stamp(&path) != now {
                continue;
            }
            let file = path.clone();
            let read = tokio::task::spawn_blocking(move || read_file(&file)).await;
            let read = read.unwrap_or_else(|error| Err(error.to_string()));
            if stamp(&path) == now {
                handled = Some(now);
                self.took(domain, read);
            }
        }
    }
}
