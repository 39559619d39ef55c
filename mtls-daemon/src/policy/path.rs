//! One form for every way to write a path, so that what a policy matches is what the application is
//! sent (policy.md 4.6). Istio's `pathNormalization`, MeshConfig.

use std::borrow::Cow;

/// How far paths are normalised.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Default,
    serde::Deserialize,
    serde::Serialize,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Normalisation {
    /// As it came.
    None,
    /// RFC 3986: `.` and `..` resolved, unreserved characters unescaped; and `\` becomes `/`.
    #[default]
    Base,
    /// Then repeated slashes become one.
    MergeSlashes,
    /// `%2F` and `%5C` are unescaped before all that.
    DecodeAndMergeSlashes,
}

/// A path that has no safe form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    #[error("a control character or space in the path")]
    Control,
    #[error("an escaped NUL in the path")]
    Nul,
    #[error("a fragment in the path")]
    Fragment,
    #[error("escapes within escapes in the path")]
    Nested,
}

/// Rounds until nothing changes. One is enough but for escapes spelled with escapes (`%%32e`).
const ROUNDS: usize = 6;

/// The form of `path` to match and to forward. The query, from the first `?` on, stays as it is.
///
/// What comes out stays as it is when normalised again: an application that decodes once more than
/// this does not find a `..` that was hidden from the policy. A path without a leading slash, as
/// `*`, has no segments to resolve.
///
/// # Errors
/// The path cannot be matched safely.
pub fn normalise(path: &str, how: Normalisation) -> Result<Cow<'_, str>, BadPath> {
    let (head, query) = match path.find('?') {
        Some(mark) => path.split_at(mark),
        None => (path, ""),
    };
    if path.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err(BadPath::Control);
    }
    if path.contains('#') {
        return Err(BadPath::Fragment);
    }
    if head.contains("%00") {
        return Err(BadPath::Nul);
    }
    if how == Normalisation::None || !head.starts_with(['/', '\\']) {
        return Ok(Cow::Borrowed(path));
    }
    if is_normal(head, how) {
        return Ok(Cow::Borrowed(path));
    }
    let mut normal = head.to_owned();
    for _ in 0..ROUNDS {
        let mut next = round(&normal, how);
        if next.contains("%00") {
            return Err(BadPath::Nul);
        }
        if next == normal {
            next.push_str(query);
            return Ok(Cow::Owned(next));
        }
        normal = next;
    }
    Err(BadPath::Nested)
}

/// Whether nothing in `head` could change; most paths are like that, and cost no allocation.
fn is_normal(head: &str, how: Normalisation) -> bool {
    let merges = how >= Normalisation::MergeSlashes;
    let bytes = head.as_bytes();
    !bytes.iter().enumerate().any(|(at, byte)| match byte {
        b'%' | b'\\' => true,
        b'.' => at > 0 && bytes[at - 1] == b'/',
        b'/' => merges && at > 0 && bytes[at - 1] == b'/',
        _ => false,
    })
}

fn round(path: &str, how: Normalisation) -> String {
    let decoded = unescape(path, how == Normalisation::DecodeAndMergeSlashes);
    let resolved = remove_dots(&decoded);
    if how < Normalisation::MergeSlashes { resolved } else { merge(&resolved) }
}

/// Unreserved characters (RFC 3986 §2.3) need no escape; slashes only where asked. What is no escape
/// is kept, as Envoy does.
fn unescape(path: &str, slashes: bool) -> String {
    let bytes = path.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = match bytes[at] {
            b'%' => bytes.get(at + 1).zip(bytes.get(at + 2)).and_then(|(a, b)| hex(*a, *b)),
            _ => None,
        };
        match escaped {
            Some(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                out.push(byte);
                at += 3;
            }
            Some(b'/' | b'\\') if slashes => {
                out.push(b'/');
                at += 3;
            }
            _ => {
                out.push(if bytes[at] == b'\\' { b'/' } else { bytes[at] });
                at += 1;
            }
        }
    }
    // Only ASCII was replaced, by ASCII: still UTF-8.
    String::from_utf8(out).unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into())
}

fn hex(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

/// RFC 3986 §5.2.4. `path` begins with a slash, and so does the result.
fn remove_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            _ => kept.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in kept {
        out.push('/');
        out.push_str(segment);
    }
    if out.is_empty() { "/".to_owned() } else { out }
}

fn merge(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !out.ends_with('/') {
            out.push(character);
        }
    }
    out
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
