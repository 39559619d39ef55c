//! Tells a TLS ClientHello from everything else, and reads its two fields that policy needs.
//!
//! Reads no further than it must and decides at the first byte that no ClientHello can have. What
//! it lets pass is parsed again by the TLS library before anything depends on it.

/// Istio's mesh protocols (policy.md 3.3): a TLS client that offers one of them means this daemon.
const MESH_ALPN: [&[u8]; 5] =
    [b"istio", b"istio-peer-exchange", b"istio-http/1.0", b"istio-http/1.1", b"istio-h2"];

/// Whether a protocol name is one of the mesh's own.
pub fn is_mesh(alpn: &[u8]) -> bool {
    MESH_ALPN.contains(&alpn)
}

/// Everything that is read while looking for a ClientHello stays below this.
pub const MAX_HELLO: usize = 64 * 1024;

const RECORD_HEADER: usize = 5;
/// A plaintext record's longest content (RFC 8446 §5.1).
const MAX_RECORD: usize = 1 << 14;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;

/// What the bytes seen so far are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Could still become a ClientHello.
    Incomplete,
    NotTls,
    Hello(Hello),
}

/// What a ClientHello asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hello {
    pub alpn: Alpn,
    pub sni: Option<String>,
}

/// What the offered application protocols say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Alpn {
    /// One of Istio's mesh protocols is among them.
    pub mesh: bool,
    /// The client says that it speaks HTTP inside: the first of `istio-http/*` and `istio-h2`.
    pub http: Option<Http>,
    /// What the server answers: the plain name of `http`, if the client offers that as well
    /// (policy.md 3.7).
    pub answer: Option<Http>,
}

/// A version of HTTP, as ALPN tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Http {
    One,
    Two,
}

impl Http {
    /// Its registered protocol name.
    pub fn name(self) -> &'static [u8] {
        match self {
            Self::One => b"http/1.1",
            Self::Two => b"h2",
        }
    }
}

/// Looks at a growing prefix of a connection. Work is proportional to the new bytes only, so a
/// client that sends them one at a time costs no more than any other.
#[derive(Debug, Default)]
pub struct Scan {
    /// Where the first record begins that is not complete yet.
    next: usize,
    /// The handshake message, taken out of the records before `next`.
    message: Vec<u8>,
}

impl Scan {
    /// `bytes`: the connection's bytes from the very first on; the same as last time, or more.
    pub fn look(&mut self, bytes: &[u8]) -> Seen {
        loop {
            let rest = &bytes[self.next.min(bytes.len())..];
            let Some(content) = record(rest) else { return Seen::NotTls };
            let (content, complete) = content;
            if !self.may_begin(content) {
                return Seen::NotTls;
            }
            if !complete {
                return if bytes.len() > MAX_HELLO { Seen::NotTls } else { Seen::Incomplete };
            }
            self.next += RECORD_HEADER + content.len();
            self.message.extend_from_slice(content);
            if let Some(length) = message_length(&self.message)
                && let Some(body) = self.message.get(4..4 + length)
            {
                return parse(body).map_or(Seen::NotTls, Seen::Hello);
            }
        }
    }

    /// The message's first bytes, `more` included, are those of a ClientHello of a sane length.
    fn may_begin(&self, more: &[u8]) -> bool {
        let mut first = self.message.iter().chain(more).copied();
        if first.next().is_some_and(|kind| kind != CLIENT_HELLO) {
            return false;
        }
        // Three bytes of length: the uppermost says "64 KiB and more".
        first.next().is_none_or(|high| high == 0)
    }
}

/// A handshake record's content as far as it is there, and whether it all is. None: no such record.
fn record(bytes: &[u8]) -> Option<(&[u8], bool)> {
    let header = &bytes[..bytes.len().min(RECORD_HEADER)];
    if header.first().is_some_and(|kind| *kind != HANDSHAKE)
        || header.get(1).is_some_and(|major| *major != 3)
        || header.get(2).is_some_and(|minor| *minor > 4)
    {
        return None;
    }
    if header.len() < RECORD_HEADER {
        return Some((&[], false));
    }
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if length == 0 || length > MAX_RECORD {
        return None;
    }
    let content = &bytes[RECORD_HEADER..];
    match content.get(..length) {
        Some(whole) => Some((whole, true)),
        None => Some((content, false)),
    }
}

fn message_length(message: &[u8]) -> Option<usize> {
    let [_, a, b, c] = *message.first_chunk::<4>()?;
    Some(u32::from_be_bytes([0, a, b, c]) as usize)
}

/// The body of a ClientHello (RFC 8446 §4.1.2). None: it is not one.
fn parse(body: &[u8]) -> Option<Hello> {
    let mut rest = Reader(body);
    let legacy_version = rest.take(2)?;
    let _random = rest.take(32)?;
    let session = rest.vector8()?;
    let suites = rest.vector16()?;
    let compression = rest.vector8()?;
    let plausible = legacy_version[0] == 3
        && session.len() <= 32
        && !suites.is_empty()
        && suites.len().is_multiple_of(2)
        && !compression.is_empty();
    if !plausible {
        return None;
    }
    let mut hello = Hello::default();
    // Before TLS 1.3 a hello may end here.
    if rest.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = Reader(rest.vector16()?);
    if !rest.0.is_empty() {
        return None;
    }
    while !extensions.0.is_empty() {
        let kind = extensions.number16()?;
        let value = extensions.vector16()?;
        match kind {
            EXTENSION_ALPN => hello.alpn = alpn(value)?,
            EXTENSION_SERVER_NAME => hello.sni = server_name(value)?,
            _ => {}
        }
    }
    Some(hello)
}

fn alpn(value: &[u8]) -> Option<Alpn> {
    let mut names = Reader(value);
    let offered = names.vector16()?;
    let mut found = Alpn::default();
    let mut names = Reader(offered);
    while !names.0.is_empty() {
        let name = names.vector8()?;
        found.mesh |= is_mesh(name);
        found.http = found.http.or(match name {
            b"istio-h2" => Some(Http::Two),
            b"istio-http/1.0" | b"istio-http/1.1" => Some(Http::One),
            _ => None,
        });
    }
    let offers = |wanted: &Http| {
        let mut names = Reader(offered);
        std::iter::from_fn(|| names.vector8()).any(|name| name == wanted.name())
    };
    found.answer = found.http.filter(offers);
    Some(found)
}

/// The first host name, if it is text.
fn server_name(value: &[u8]) -> Option<Option<String>> {
    let mut names = Reader(value);
    let mut names = Reader(names.vector16()?);
    while !names.0.is_empty() {
        let kind = names.take(1)?[0];
        let name = names.vector16()?;
        if kind == 0 {
            let text = std::str::from_utf8(name).ok();
            return Some(text.filter(|text| text.is_ascii()).map(str::to_owned));
        }
    }
    Some(None)
}

/// Takes pieces off the front of a slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (piece, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(piece)
    }

    fn number16(&mut self) -> Option<u16> {
        self.take(2).map(|two| u16::from_be_bytes([two[0], two[1]]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.number16()?;
        self.take(usize::from(length))
    }
}

#[cfg(test)]
#[path = "hello_tests.rs"]
mod tests;
