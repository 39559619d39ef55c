//! How a walkthrough reads: as its original does, with what was looked at beside it.

use std::io::IsTerminal;

use crate::walkthrough::{Attempt, Request};
use crate::world::SERVICE_PORT;

/// The originals' loops, by what they ask for.
const LOOPS: [(&str, &[&str]); 2] = [
    (
        "/headers",
        &[
            "for every namespace from, and every namespace to:",
            "  echo \"sleep.${from} to httpbin.${to}\"",
            "  curl http://httpbin.${to}:8000/headers -s -w \"response code: %{http_code}\\n\" |",
            "    egrep -o 'URI\\=spiffe.*sa/[a-z]*|response.*$'",
        ],
    ),
    (
        "/ip",
        &[
            "for every namespace from, and every namespace to:",
            "  curl http://httpbin.${to}:8000/ip -s -o /dev/null \\",
            "    -w \"sleep.${from} to httpbin.${to}: %{http_code}\\n\"",
        ],
    ),
];

/// The loop that asks for `path` between all pairs.
pub fn loops(path: &str) -> &'static [&'static str] {
    LOOPS.iter().find(|of| of.0 == path).map_or(&[], |of| of.1)
}

/// `sleep.<from> to httpbin.<to>`.
pub fn name(request: &Request) -> String {
    format!("sleep.{} to httpbin.{}", request.from, request.to)
}

/// What the originals' loops print of one request.
pub fn as_printed(request: &Request, attempt: &Attempt) -> Vec<String> {
    let (code, exit) = (attempt.curl.code, attempt.curl.exit);
    let mut lines = Vec::new();
    let port = match request.ports.0 {
        SERVICE_PORT => String::new(),
        port => format!(":{port}"),
    };
    if request.path == "/headers" {
        lines.push(format!("{}{port}", name(request)));
        lines.extend(attempt.uri().map(|uri| format!("URI={uri}")));
        lines.push(format!("response code: {code:03}"));
    } else {
        lines.push(format!("{}{port}: {code:03}", name(request)));
    }
    if exit != 0 {
        lines.push(format!("command terminated with exit code {exit}"));
    }
    lines
}

/// How it crossed, in words.
pub fn on_the_wire(attempt: &Attempt) -> String {
    format!("on the wire: {}", attempt.wire)
}

/// `ok`, or what differs.
pub fn verdict(differs: Option<&str>) -> String {
    let colour = std::io::stdout().is_terminal();
    match (differs, colour) {
        (None, true) => "\x1b[32mok\x1b[0m".into(),
        (None, false) => "ok".into(),
        (Some(how), true) => format!("\x1b[31mDIFFERS\x1b[0m: {how}"),
        (Some(how), false) => format!("DIFFERS: {how}"),
    }
}
