//! A request's head, byte by byte: everything that two parsers could read in two ways is refused
//! (RFC 9112 §2.2, §3.2, §5, §6.3, §11). What passes here means the same to the daemon, to its HTTP
//! library and to every application.

use hyper::Uri;

use super::refusal::Refusal;

/// Envoy's own limits.
pub const MAX_HEAD: usize = 60 * 1024;
pub const MAX_HEADERS: usize = 100;
/// A method longer than this is none.
const MAX_METHOD: usize = 32;

/// How long a request's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    Chunked,
}

/// What of a head decides how the bytes after it are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub framing: Framing,
    /// It asks for another protocol (an upgrade, or CONNECT): the answer decides what follows.
    pub switches: bool,
}

/// Where the head at the start of `bytes` ends; None: not yet. `scanned` says how far an earlier
/// call has looked, so that a head that comes byte by byte is read once.
///
/// # Errors
/// A line that does not end in CR LF, or a head that is too long.
pub fn end(bytes: &[u8], scanned: &mut usize) -> Result<Option<usize>, Refusal> {
    while let Some(offset) = bytes[*scanned..].iter().position(|byte| *byte == b'\n') {
        let at = *scanned + offset;
        if at == 0 || bytes[at - 1] != b'\r' {
            return Err(Refusal::bad("a line that ends in a bare LF"));
        }
        *scanned = at + 1;
        if at >= 3 && bytes[at - 3..=at] == *b"\r\n\r\n" {
            return if at < MAX_HEAD { Ok(Some(at + 1)) } else { Err(Refusal::TOO_LARGE) };
        }
    }
    *scanned = bytes.len();
    if bytes.len() > MAX_HEAD { Err(Refusal::TOO_LARGE) } else { Ok(None) }
}

/// Judges a whole head, from its method to its empty line.
///
/// # Errors
/// What is ambiguous or malformed about it.
pub fn check(head: &[u8]) -> Result<Head, Refusal> {
    let mut lines = Lines(head);
    let line = lines.next().ok_or(Refusal::bad("an empty request"))?;
    let request = request_line(line)?;
    let mut fields = Fields::default();
    for line in lines {
        if line.is_empty() {
            return fields.judge(&request);
        }
        let (name, value) = field(line)?;
        fields.add(name, value)?;
    }
    Err(Refusal::bad("a head without an end"))
}

/// Lines without their CR LF.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = self.0.windows(2).position(|pair| pair == b"\r\n")?;
        let line = &self.0[..end];
        self.0 = &self.0[end + 2..];
        Some(line)
    }
}

struct RequestLine {
    /// HTTP/1.1, not 1.0.
    current: bool,
    connect: bool,
    /// The authority of an absolute-form target.
    authority: Option<String>,
}

fn request_line(line: &[u8]) -> Result<RequestLine, Refusal> {
    const MALFORMED: Refusal = Refusal::bad("a malformed request line");
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(MALFORMED);
    };
    if method.is_empty() || method.len() > MAX_METHOD || !method.iter().all(|b| is_token(*b)) {
        return Err(MALFORMED);
    }
    // The guard's own mark, see `Guard`: nobody else may use it.
    if method[0] == super::guard::MARK {
        return Err(MALFORMED);
    }
    let current = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ => return Err(Refusal::bad("a version that is neither HTTP/1.0 nor HTTP/1.1")),
    };
    if target.iter().any(|byte| *byte <= b' ' || *byte == 0x7f || *byte == b'#') {
        return Err(Refusal::bad("a control character or fragment in the request target"));
    }
    let uri = Uri::try_from(target).map_err(|_| Refusal::bad("a malformed request target"))?;
    let connect = method == b"CONNECT";
    let authority = match (connect, target[0]) {
        (true, _) if uri.authority().is_some() && uri.scheme().is_none() => None,
        (true, _) => return Err(Refusal::bad("CONNECT to what is no host and port")),
        (false, b'/') => None,
        (false, b'*') if target == b"*" && method == b"OPTIONS" => None,
        (false, _) => match (uri.scheme_str(), uri.authority()) {
            (Some("http" | "https"), Some(authority)) => Some(authority.as_str().to_owned()),
            _ => return Err(Refusal::bad("a request target that is neither a path nor a URL")),
        },
    };
    Ok(RequestLine { current, connect, authority })
}

/// Splits and judges one field line.
pub(super) fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Refusal::bad("a folded header line"));
    }
    let colon = line.iter().position(|byte| *byte == b':');
    let (name, value) = match colon {
        Some(colon) => (&line[..colon], &line[colon + 1..]),
        None => return Err(Refusal::bad("a header line without a colon")),
    };
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
        return Err(Refusal::bad("a malformed header name, or a space before its colon"));
    }
    if value.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
        return Err(Refusal::bad("a control character in a header"));
    }
    Ok((name, value.trim_ascii()))
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The fields that framing, routing and protocol depend on.
#[derive(Default)]
struct Fields {
    count: usize,
    length: Option<u64>,
    chunked: bool,
    host: Option<Vec<u8>>,
    upgrades: bool,
}

impl Fields {
    fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), Refusal> {
        self.count += 1;
        if self.count > MAX_HEADERS {
            return Err(Refusal::TOO_LARGE);
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            // Also when they agree: a list is read differently by different parsers.
            if self.length.is_some() {
                return Err(Refusal::bad("more than one Content-Length"));
            }
            let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let number = str::from_utf8(value).ok().filter(|_| digits && value.len() <= 18);
            let length = number.and_then(|number| number.parse().ok());
            self.length = Some(length.ok_or(Refusal::bad("a malformed Content-Length"))?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Refusal::bad("a Transfer-Encoding that is not exactly `chunked`"));
            }
            self.chunked = true;
        } else if name.eq_ignore_ascii_case(b"host") {
            if self.host.is_some() {
                return Err(Refusal::bad("more than one Host"));
            }
            if !value.iter().all(|byte| is_authority(*byte)) {
                return Err(Refusal::bad("a malformed Host"));
            }
            self.host = Some(value.to_vec());
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            self.upgrades = true;
        }
        Ok(())
    }

    fn judge(self, request: &RequestLine) -> Result<Head, Refusal> {
        if self.chunked && self.length.is_some() {
            return Err(Refusal::bad("both Content-Length and Transfer-Encoding"));
        }
        if self.chunked && !request.current {
            return Err(Refusal::bad("Transfer-Encoding in HTTP/1.0"));
        }
        if request.connect && (self.chunked || self.length.is_some_and(|length| length > 0)) {
            return Err(Refusal::bad("CONNECT with a body"));
        }
        if self.host.is_none() && request.current {
            return Err(Refusal::bad("HTTP/1.1 without a Host"));
        }
        if let (Some(authority), Some(host)) = (&request.authority, &self.host)
            && !host.eq_ignore_ascii_case(authority.as_bytes())
        {
            return Err(Refusal::bad("a Host that differs from the request target's"));
        }
        let framing =
            if self.chunked { Framing::Chunked } else { Framing::Length(self.length.unwrap_or(0)) };
        let switches = request.connect || (self.upgrades && request.current);
        Ok(Head { framing, switches })
    }
}

/// Characters of a host and port (RFC 3986 §3.2), without the user information that would hide one.
fn is_authority(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(&byte)
}

#[cfg(test)]
#[path = "head_tests.rs"]
mod tests;
