//! Whether a client that has sent these bytes in the clear speaks HTTP (policy.md 3.5).

/// How every HTTP/2 connection begins.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A request line longer than this would be refused.
const LONGEST_LINE: usize = super::head::MAX_HEAD;

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

/// What `bytes`, the first of a connection, are. More counts as HTTP than is HTTP: whatever a lenient
/// application might take for a request must come before those who judge requests, which refuse what
/// is malformed, and must not slip past them as another protocol. So empty lines and spaces may come
/// first, the method may be anything visible, and the words after it decide.
pub fn spoken(bytes: &[u8]) -> Spoken {
    let common = bytes.len().min(PREFACE.len());
    if common > 0 && bytes[..common] == PREFACE[..common] {
        return if common == PREFACE.len() { Spoken::Http2 } else { Spoken::Unfinished };
    }
    let begins = bytes.iter().position(|byte| *byte != b'\n' && !is_space(*byte));
    let Some(begins) = begins else {
        return if bytes.len() > LONGEST_LINE { Spoken::Other } else { Spoken::Unfinished };
    };
    let bytes = &bytes[begins..];
    if let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
        let words = bytes[..end].split(|byte| is_space(*byte)).filter(|word| !word.is_empty());
        return if is_request(words) { Spoken::Http1 } else { Spoken::Other };
    }
    let method = bytes.iter().take_while(|byte| byte.is_ascii_graphic()).count();
    match bytes.get(method) {
        Some(next) if !is_space(*next) => Spoken::Other,
        _ if bytes.len() <= LONGEST_LINE => Spoken::Unfinished,
        None => Spoken::Other,
        // No protocol of lines has such lines but HTTP, whose targets look like this.
        Some(_) => match bytes[method..].trim_ascii_start() {
            [b'/' | b'*', ..] => Spoken::Http1,
            [a, b, c, d, ..] if [*a, *b, *c, *d].eq_ignore_ascii_case(b"http") => Spoken::Http1,
            _ => Spoken::Other,
        },
    }
}

/// Whatever some application's language takes for a space within a line.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | 0x0b | 0x0c | 0x1c..=0x1f | 0x85 | 0xa0)
}

/// Whether some server takes these words for a request's first line.
fn is_request<'w>(mut words: impl Iterator<Item = &'w [u8]> + Clone) -> bool {
    let (Some(method), Some(target)) = (words.next(), words.clone().next()) else { return false };
    if words.clone().any(|word| is_version(word, b"HTTP/")) {
        return true;
    }
    // Node's parser reads these two under another name as well.
    if matches!(method, b"GET" | b"POST") && words.clone().any(|word| is_version(word, b"RTSP/")) {
        return true;
    }
    // HTTP/0.9 had no version, and some servers read headers behind it all the same.
    let path = matches!(target, [b'/' | b'*', ..]) || is_version(target, b"http:");
    words.count() == 1 && path && USUAL.iter().any(|usual| usual.eq_ignore_ascii_case(method))
}

fn is_version(word: &[u8], name: &[u8; 5]) -> bool {
    word.len() > 5 && word[..5].eq_ignore_ascii_case(name)
}

/// The methods of RFC 9110, of RFC 5789 and of WebDAV, and what HTTP/2 begins with.
const USUAL: [&[u8]; 17] = [
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"CONNECT",
    b"OPTIONS",
    b"TRACE",
    b"PATCH",
    b"PRI",
    b"PROPFIND",
    b"PROPPATCH",
    b"MKCOL",
    b"COPY",
    b"MOVE",
    b"LOCK",
    b"UNLOCK",
];

/// Whether bytes that are not a request yet are worth waiting for: they begin one as clients write
/// it. Other protocols' clients may send a word and wait for an answer to it.
pub fn begins_usually(bytes: &[u8]) -> bool {
    let Some(start) = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')) else {
        return false;
    };
    let bytes = &bytes[start..];
    match bytes.iter().position(|byte| matches!(byte, b' ' | b'\t')) {
        Some(end) => USUAL.contains(&&bytes[..end]),
        None => USUAL.iter().any(|method| method.starts_with(bytes)),
    }
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
