//! Which name an originated connection asks its server for.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::http::detect::{Spoken, spoken};
use crate::mesh::AskFor;
use crate::policy::host;

/// How long a client may take to send the head of its first request.
const HEAD: Duration = Duration::from_secs(1);
/// How much of it is looked at.
const LONGEST: usize = 16 * 1024;
/// Between two looks at what has arrived: it stays in the socket, which so is always ready.
const LOOK: Duration = Duration::from_millis(5);

/// None: nothing names the server (policy.md 2.3).
pub async fn of(client: &TcpStream, ask_for: &AskFor) -> Option<Arc<str>> {
    match ask_for {
        AskFor::Name(name) => Some(name.clone()),
        AskFor::HostOfRequest(hosts) => {
            let requested = requested(client).await;
            let named = requested.filter(|name| hosts.iter().any(|h| host::subset_of(name, h)));
            let only = || hosts.iter().find(|host| !host.starts_with('*')).cloned();
            named.map(Into::into).or_else(only)
        }
    }
}

/// The Host of an HTTP/1 request that the client sends first. Nothing is taken from the socket.
async fn requested(client: &TcpStream) -> Option<String> {
    let end = Instant::now() + HEAD;
    let mut bytes = vec![0; LONGEST];
    loop {
        let peeked = tokio::time::timeout_at(end, client.peek(&mut bytes)).await;
        let count = peeked.ok()?.ok()?;
        let head = &bytes[..count];
        if let Some(host) = host_of(head) {
            return Some(host);
        }
        let line = head.contains(&b'\n');
        let whole = head.windows(4).any(|window| window == b"\r\n\r\n");
        if count == 0 || count == LONGEST || whole || (line && !is_http1_request(head)) {
            return None;
        }
        // Only a head of HTTP/1 is worth waiting for: its first letter tells most others.
        if !head[0].is_ascii_uppercase() && !matches!(head[0], b'\r' | b'\n') {
            return None;
        }
        // An end of the stream behind these bytes would not show.
        if Instant::now() >= end {
            return None;
        }
        sleep(LOOK).await;
    }
}

fn is_http1_request(bytes: &[u8]) -> bool {
    spoken(bytes) == Spoken::Http1
}

/// The Host header of a request's head as far as it has come, without port, in lower case.
fn host_of(head: &[u8]) -> Option<String> {
    if !is_http1_request(head) {
        return None;
    }
    // Only whole lines: half a name could be another one.
    let whole = &head[..=head.iter().rposition(|byte| *byte == b'\n')?];
    let mut lines = whole.split(|byte| *byte == b'\n').map(|line| line.trim_ascii());
    lines.find(|line| !line.is_empty())?;
    for line in lines.take_while(|line| !line.is_empty()) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        if line[..colon].eq_ignore_ascii_case(b"host") {
            let value = std::str::from_utf8(line[colon + 1..].trim_ascii()).ok()?;
            let name = value.rsplit_once(':').map_or(value, |(name, _)| name);
            return host::is_dns_name(name).then(|| name.to_ascii_lowercase());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::host_of;

    #[test]
    fn the_host_of_a_request_is_read_from_whole_lines() {
        let check = |head: &str, expected: Option<&str>| {
            assert_eq!(host_of(head.as_bytes()).as_deref(), expected, "{head:?}");
        };
        check("GET / HTTP/1.1\r\nHost: A.Example.com:8443\r\n", Some("a.example.com"));
        check("GET / HTTP/1.1\r\nAccept: */*\r\nhost:b.test\r\n\r\n", Some("b.test"));
        check("\r\nGET / HTTP/1.1\r\nHost: b.test\r\n", Some("b.test"));
        check("GET / HTTP/1.1\r\nHost: a.example.c", None);
        check("GET / HTTP/1.1\r\n\r\nHost: body.test\r\n", None);
        check("GET / HTTP/1.1\r\nHost: [::1]:80\r\n", None);
        check("PING\r\nHost: b.test\r\n", None);
    }
}
