//! A request as the application and the policies get it: one path, one host, no header of the
//! connection itself, and nothing about its client that the client made up.

use std::net::IpAddr;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::http::uri::{PathAndQuery, Scheme};
use hyper::{Method, Uri, Version};

use super::Context;
use super::head::MAX_HEADERS;
use super::refusal::Refusal;
use crate::policy::xfcc::{self, Forward};
use crate::policy::{authz, path};

const XFCC: HeaderName = HeaderName::from_static(xfcc::HEADER);
const XFF: HeaderName = HeaderName::from_static("x-forwarded-for");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Fields that a client cannot have removed by calling them its connection's.
const NEVER_OF_THE_CONNECTION: [HeaderName; 6] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::AUTHORIZATION,
    header::COOKIE,
    header::FORWARDED,
];

/// What was taken out of a request, and what it is now.
pub struct Sanitised {
    pub host: String,
    /// The protocols that it asks to switch to; empty: none.
    pub protocols: Vec<String>,
    pub connect: bool,
    pub expects_continue: bool,
}

/// Brings `parts` into the form that is judged and forwarded.
///
/// # Errors
/// The request means different things to different readers.
pub fn request(parts: &mut Parts, context: &Context<'_>) -> Result<Sanitised, Refusal> {
    let http2 = parts.version == Version::HTTP_2;
    // HTTP/1's guard has counted them; in HTTP/2 each may be a byte on the wire and a hundred in memory.
    if parts.headers.len() > MAX_HEADERS {
        return Err(Refusal::TOO_LARGE);
    }
    let connect = parts.method == Method::CONNECT;
    let host = host(parts, context, http2)?;
    let protocols = if http2 { Vec::new() } else { hop_by_hop(parts)? };
    let expects_continue = !http2
        && parts.version == Version::HTTP_11
        && parts
            .headers
            .get(header::EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    target(parts, context, &host, http2, connect)?;
    client(&mut parts.headers, context)?;
    if http2 {
        parts.headers.remove(header::HOST);
    } else {
        let value = HeaderValue::from_str(&host);
        let value = value.map_err(|_| Refusal::bad("a malformed Host"))?;
        parts.headers.insert(header::HOST, value);
        parts.version = Version::HTTP_11;
    }
    Ok(Sanitised { host, protocols, connect, expects_continue })
}

/// What policies match as `hosts`, and the application gets.
fn host(parts: &Parts, context: &Context<'_>, http2: bool) -> Result<String, Refusal> {
    let mut named = parts.headers.get_all(header::HOST).iter();
    let header = match (named.next(), named.next()) {
        (Some(_), Some(_)) => return Err(Refusal::bad("more than one Host")),
        (Some(host), None) => Some(host.to_str().map_err(|_| Refusal::bad("a malformed Host"))?),
        (None, _) => None,
    };
    let authority = parts.uri.authority().map(|authority| authority.as_str());
    match (authority, header) {
        (Some(authority), _) if authority.contains('@') => {
            Err(Refusal::bad("user information in the request target"))
        }
        // CONNECT names in its target where to, and in Host often the proxy.
        (Some(authority), Some(host))
            if !authority.eq_ignore_ascii_case(host) && parts.method != Method::CONNECT =>
        {
            Err(Refusal::bad("a Host that differs from the request target's"))
        }
        (Some(authority), _) => Ok(authority.to_owned()),
        (None, Some(host)) => Ok(host.to_owned()),
        (None, None) if http2 => Err(Refusal::bad("HTTP/2 without an authority")),
        // HTTP/1.0 needs none, 1.1, which the application is spoken to, does.
        (None, None) => Ok(context.connection.destination.to_string()),
    }
}

/// Removes what belongs to the client's own connection (RFC 9110 §7.6.1). Returns the protocols that
/// the request asks to switch to.
fn hop_by_hop(parts: &mut Parts) -> Result<Vec<String>, Refusal> {
    let headers = &mut parts.headers;
    let mut switches = false;
    let mut listed = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        for name in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if name.is_empty() {
                continue;
            }
            let name = HeaderName::from_bytes(name)
                .map_err(|_| Refusal::bad("a malformed Connection header"))?;
            let forwarding = name.as_str().starts_with("x-forwarded-");
            if forwarding || NEVER_OF_THE_CONNECTION.contains(&name) {
                return Err(Refusal::bad("a Connection header that lists what is not its own"));
            }
            switches |= name == header::UPGRADE;
            listed.push(name);
        }
    }
    let mut protocols = Vec::new();
    if switches && parts.version == Version::HTTP_11 {
        for value in headers.get_all(header::UPGRADE) {
            let value = value.to_str().map_err(|_| Refusal::bad("a malformed Upgrade header"))?;
            let wanted = value.split(',').map(str::trim).filter(|name| !name.is_empty());
            // Nobody here can follow into HTTP/2 in mid-connection: requests would go unseen.
            let wanted = wanted.filter(|name| {
                !name.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("h2"))
            });
            protocols.extend(wanted.map(str::to_owned));
        }
    }
    let trailers = headers.get_all(header::TE).iter().any(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    });
    let own = [
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        HTTP2_SETTINGS,
        KEEP_ALIVE,
        PROXY_CONNECTION,
    ];
    for name in own.iter().chain(&listed) {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if !protocols.is_empty() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        let value = HeaderValue::from_str(&protocols.join(", "));
        let value = value.map_err(|_| Refusal::bad("a malformed Upgrade header"))?;
        headers.insert(header::UPGRADE, value);
    }
    Ok(protocols)
}

/// The target in the form that is forwarded, its path normalised.
fn target(
    parts: &mut Parts,
    context: &Context<'_>,
    host: &str,
    http2: bool,
    connect: bool,
) -> Result<(), Refusal> {
    const MALFORMED: Refusal = Refusal::bad("a malformed request target");
    if connect {
        if parts.uri.authority().is_none() {
            return Err(MALFORMED);
        }
        let mut uri = hyper::http::uri::Parts::default();
        uri.authority = parts.uri.authority().cloned();
        parts.uri = Uri::from_parts(uri).map_err(|_| MALFORMED)?;
        return Ok(());
    }
    let sent = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if !sent.starts_with('/') && (sent != "*" || parts.method != Method::OPTIONS) {
        return Err(Refusal::bad("a request target that is neither a path nor a URL"));
    }
    let normal = path::normalise(sent, context.normalisation).map_err(|bad| match bad {
        path::BadPath::Control => Refusal::bad("a control character in the path"),
        path::BadPath::Nul => Refusal::bad("an escaped NUL in the path"),
        path::BadPath::Fragment => Refusal::bad("a fragment in the path"),
        path::BadPath::Nested => Refusal::bad("escapes within escapes in the path"),
    })?;
    let mut uri = hyper::http::uri::Parts::default();
    uri.path_and_query = Some(PathAndQuery::try_from(&*normal).map_err(|_| MALFORMED)?);
    if http2 {
        uri.authority = Some(host.parse().map_err(|_| Refusal::bad("a malformed authority"))?);
        uri.scheme = Some(parts.uri.scheme().cloned().unwrap_or(Scheme::HTTP));
    }
    parts.uri = Uri::from_parts(uri).map_err(|_| MALFORMED)?;
    Ok(())
}

/// X-Forwarded-Client-Cert, and nothing of it that the client made up (policy.md 5).
fn client(headers: &mut HeaderMap, context: &Context<'_>) -> Result<(), Refusal> {
    let trusted = context.connection.principal.is_some_and(|principal| {
        context.trusted_forwarders.iter().any(|pattern| matches(pattern, principal))
    });
    let how = match (context.forward_client_cert, trusted) {
        (true, true) => Forward::AppendForward,
        (true, false) => Forward::SanitizeSet,
        (false, true) => Forward::ForwardOnly,
        (false, false) => Forward::Sanitize,
    };
    let received: Vec<_> = headers.get_all(XFCC).iter().filter_map(|v| v.to_str().ok()).collect();
    let received = (!received.is_empty()).then(|| received.join(","));
    let forwarded =
        xfcc::forwarded(how, context.client.as_ref(), context.own_uri, received.as_deref());
    remove(headers, &XFCC);
    if let Some(value) = forwarded {
        // Written in visible ASCII alone, so this does not fail.
        let value = HeaderValue::from_str(&value);
        let value = value.map_err(|_| Refusal::bad("a malformed X-Forwarded-Client-Cert"))?;
        headers.insert(XFCC, value);
    }
    Ok(())
}

/// Trailers must not say what headers may not.
pub fn trailers(trailers: &mut HeaderMap) {
    remove(trailers, &XFCC);
    remove(trailers, &XFF);
}

/// Removes a header in every spelling that an application may take for it: CGI and its descendants
/// (WSGI, Rack, PHP) know no difference between `-` and `_`.
fn remove(headers: &mut HeaderMap, name: &HeaderName) {
    headers.remove(name);
    let same = |other: &HeaderName| {
        other.as_str().contains('_')
            && other.as_str().len() == name.as_str().len()
            && other.as_str().replace('_', "-") == name.as_str()
    };
    while let Some(other) = headers.keys().find(|other| same(other)).cloned() {
        headers.remove(other);
    }
}

/// `*`, `prefix*`, `*suffix` or the whole principal.
fn matches(pattern: &str, principal: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(suffix), _) => principal.ends_with(suffix),
        (None, Some(prefix)) => principal.starts_with(prefix),
        (None, None) => pattern == principal,
    }
}

/// The client's address as the nearest of `proxies` trusted proxies saw it; what a client claims
/// further left counts for nothing. Without proxies, or with less than they would have written, the
/// connection's source.
pub fn remote(headers: &HeaderMap, source: IpAddr, proxies: usize) -> IpAddr {
    let Some(place) = proxies.checked_sub(1) else { return source };
    let values = headers.get_all(XFF);
    // Every value counts its place, also one that is no text: a line left out would move the others.
    let values: Vec<&[u8]> = values.iter().map(HeaderValue::as_bytes).collect();
    let address = values.iter().flat_map(|v| v.split(|byte| *byte == b',')).rev().nth(place);
    let address = address.and_then(|address| std::str::from_utf8(address).ok());
    address.and_then(|address| address.trim().parse().ok()).unwrap_or(source)
}

/// Header fields as policies ask for them.
pub struct Fields<'a>(pub &'a HeaderMap);

impl authz::Headers for Fields<'_> {
    fn any(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.0.get_all(name).iter().any(|value| test(value.as_bytes()))
    }
}

/// Removes what belongs to the application's own connection.
pub fn response(headers: &mut HeaderMap) {
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, KEEP_ALIVE, PROXY_CONNECTION] {
        headers.remove(name);
    }
}
