//! X-Forwarded-Client-Cert: what an application is told of its mTLS client (policy.md 5).

use std::fmt::Write;

use serde::Deserialize;

/// The header, as HTTP/2 and this daemon spell it.
pub const HEADER: &str = "x-forwarded-client-cert";

/// What becomes of the header. The names are Envoy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Forward {
    /// Removed.
    Sanitize,
    /// Kept as the client sent it, where the client is authenticated.
    ForwardOnly,
    /// The client's own element is added to what it sent.
    AppendForward,
    /// The client's own element, and nothing that it sent.
    SanitizeSet,
    /// Kept as the client sent it, whoever that is. Never used by the data path.
    AlwaysForwardOnly,
}

/// What is known of an authenticated client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Client {
    /// SHA-256 of its certificate, lower-case hex.
    pub hash: String,
    /// RFC 2253's form; empty for SVIDs as Istio issues them. None: left out.
    pub subject: Option<String>,
    /// None: left out.
    pub uri: Option<String>,
    /// URL-encoded PEM. None: left out.
    pub certificate: Option<String>,
    pub dns_names: Vec<String>,
}

/// What the application gets for `received`. `client` is None where it is not authenticated, and
/// `own_uri` the URI SAN that the daemon showed it. None: no header.
pub fn forwarded(
    how: Forward,
    client: Option<&Client>,
    own_uri: Option<&str>,
    received: Option<&str>,
) -> Option<String> {
    match (how, client) {
        (Forward::AlwaysForwardOnly, _) | (Forward::ForwardOnly, Some(_)) => {
            received.map(str::to_owned)
        }
        (Forward::Sanitize | Forward::ForwardOnly, _) | (_, None) => None,
        (Forward::SanitizeSet, Some(client)) => Some(element(client, own_uri)),
        (Forward::AppendForward, Some(client)) => Some(match received {
            Some(received) if !received.is_empty() => {
                format!("{received},{}", element(client, own_uri))
            }
            _ => element(client, own_uri),
        }),
    }
}

/// One client's element.
pub fn element(client: &Client, own_uri: Option<&str>) -> String {
    let mut out = String::with_capacity(256);
    let mut pair = |key: &str, value: &str, quoted: bool| {
        let separator = if out.is_empty() { "" } else { ";" };
        let value = escaped(value);
        let quote = if quoted || value.contains([',', ';', '=', '"', ' ']) { "\"" } else { "" };
        write!(out, "{separator}{key}={quote}{value}{quote}")
            .expect("writing to a String does not fail");
    };
    if let Some(own) = own_uri.filter(|own| !own.is_empty()) {
        pair("By", own, false);
    }
    pair("Hash", &client.hash, false);
    if let Some(subject) = &client.subject {
        pair("Subject", subject, true);
    }
    if let Some(uri) = &client.uri {
        pair("URI", uri, false);
    }
    if let Some(certificate) = &client.certificate {
        pair("Cert", certificate, true);
    }
    for name in &client.dns_names {
        pair("DNS", name, false);
    }
    out
}

/// `value` such that no quote in it ends it and no byte of it leaves the header: a certificate's
/// names are the issuer's words, and may be anything. Escapes that are there already stay.
pub fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut after_backslash = false;
    for character in value.chars() {
        match character {
            '"' if !after_backslash => out.push_str("\\\""),
            ' '..='~' => out.push(character),
            _ => {
                // Not twice: a hexadecimal escape begins with a backslash of its own.
                if after_backslash {
                    out.pop();
                }
                let mut bytes = [0; 4];
                for byte in character.encode_utf8(&mut bytes).bytes() {
                    write!(out, "\\{byte:02X}").expect("writing to a String does not fail");
                }
            }
        }
        after_backslash = character == '\\' && !after_backslash;
    }
    if after_backslash {
        out.push('\\');
    }
    out
}

/// A header that is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    #[error("the request does not have Xfcc header")]
    Missing,
    #[error("invalid header format: {0}")]
    Format(&'static str),
}

/// One hop, as a header tells it. Quoted values are without their quotes, escapes as they are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Element {
    pub by: Vec<String>,
    pub hash: Option<String>,
    pub certificate: Option<String>,
    pub chain: Option<String>,
    pub subject: Option<String>,
    pub uris: Vec<String>,
    pub dns_names: Vec<String>,
}

impl Element {
    /// Whom it names: URIs, DNS names, the subject's common name.
    pub fn identities(&self) -> impl Iterator<Item = &str> {
        let common_name = self.subject.as_deref().and_then(common_name);
        self.uris.iter().chain(&self.dns_names).map(String::as_str).chain(common_name)
    }
}

/// Reads a header: hops in order, the client's first.
///
/// # Errors
/// No header, or not one of this form.
pub fn parse(header: &str) -> Result<Vec<Element>, BadHeader> {
    if header.trim().is_empty() {
        return Err(BadHeader::Missing);
    }
    split(header, b',')?.into_iter().map(hop).collect()
}

fn hop(text: &str) -> Result<Element, BadHeader> {
    let mut element = Element::default();
    for pair in split(text, b';')? {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(BadHeader::Format("a pair without `=`"));
        };
        let value = value.trim();
        let value = match value.strip_prefix('"') {
            Some(rest) => rest.strip_suffix('"').ok_or(BadHeader::Format("a stray quote"))?,
            None if value.contains('"') => return Err(BadHeader::Format("a stray quote")),
            None => value,
        };
        let value = value.to_owned();
        match key.trim().to_ascii_lowercase().as_str() {
            "by" => element.by.push(value),
            "hash" => element.hash = Some(value),
            "cert" => element.certificate = Some(value),
            "chain" => element.chain = Some(value),
            "subject" => element.subject = Some(value),
            "uri" => element.uris.push(value),
            "dns" => element.dns_names.push(value),
            _ => return Err(BadHeader::Format("an unknown key")),
        }
    }
    Ok(element)
}

/// Splits where no quotes are open.
fn split(text: &str, separator: u8) -> Result<Vec<&str>, BadHeader> {
    let mut parts = Vec::new();
    let (mut start, mut quoted, mut escape) = (0, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escape => escape = false,
            b'\\' if quoted => escape = true,
            b'"' => quoted = !quoted,
            _ if byte == separator && !quoted => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if quoted {
        return Err(BadHeader::Format("a quote that is not closed"));
    }
    parts.push(&text[start..]);
    Ok(parts)
}

/// The CN of a subject in RFC 2253's form or OpenSSL's (`/C=…/CN=…`).
fn common_name(subject: &str) -> Option<&str> {
    let separator = if subject.starts_with('/') { '/' } else { ',' };
    let mut start = 0;
    let mut escape = false;
    let ends = subject.char_indices().chain([(subject.len(), separator)]);
    for (at, character) in ends {
        if character == separator && !escape {
            let part = subject[start..at].trim();
            if let Some(name) = part.strip_prefix("CN=") {
                return Some(name);
            }
            start = at + 1;
        }
        escape = character == '\\' && !escape;
    }
    None
}

#[cfg(test)]
#[path = "xfcc_tests.rs"]
mod tests;
