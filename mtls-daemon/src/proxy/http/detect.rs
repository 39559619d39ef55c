//! Whether a client that has sent these bytes in the clear speaks HTTP (policy.md 3.5).

/// How every HTTP/2 connection begins.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A request line longer than this is none.
const LONGEST_LINE: usize = 8 * 1024;
const LONGEST_METHOD: usize = 32;

/// What first bytes say about the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    Other,
    /// More bytes decide.
    Unfinished,
}

/// What `bytes`, the first of a connection, are. Empty lines before a request count as HTTP: who put
/// one there must not escape a policy by it. So does every request line whose version is HTTP/1, also
/// a malformed one: it is refused rather than relayed.
pub fn spoken(bytes: &[u8]) -> Spoken {
    let common = bytes.len().min(PREFACE.len());
    if common > 0 && bytes[..common] == PREFACE[..common] {
        return if common == PREFACE.len() { Spoken::Http2 } else { Spoken::Unfinished };
    }
    let Some(start) = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')) else {
        return if bytes.len() > LONGEST_LINE { Spoken::Other } else { Spoken::Unfinished };
    };
    let bytes = &bytes[start..];
    let method =
        bytes.iter().take_while(|b| b.is_ascii_alphanumeric() || b"-_".contains(b)).count();
    match bytes.get(method) {
        _ if method > LONGEST_METHOD => return Spoken::Other,
        None => return Spoken::Unfinished,
        Some(b' ' | b'\t') if method > 0 => {}
        Some(_) => return Spoken::Other,
    }
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() > LONGEST_LINE { Spoken::Other } else { Spoken::Unfinished };
    };
    let line = bytes[..end].trim_ascii_end();
    let version = line.rsplit(|byte| matches!(byte, b' ' | b'\t')).next().unwrap_or_default();
    if version.starts_with(b"HTTP/1.") { Spoken::Http1 } else { Spoken::Other }
}

/// Whether `bytes` begin an HTTP request; None: more bytes decide.
pub fn is_http(bytes: &[u8]) -> Option<bool> {
    match spoken(bytes) {
        Spoken::Http1 | Spoken::Http2 => Some(true),
        Spoken::Other => Some(false),
        Spoken::Unfinished => None,
    }
}

#[cfg(test)]
#[path = "detect_tests.rs"]
mod tests;
