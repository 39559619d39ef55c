//! The matrices as text.

use std::io::IsTerminal;

use anyhow::Result;

use crate::demo::{Attempt, Row};
use crate::packet::Flow;

/// The heading of a matrix.
pub fn heading() -> String {
    format!(
        "  {:<7} {:<26} {:<22} {:<46} {:>4} {:>4}  {:<13} {}",
        "from", "to", "expected", "client's identity, says", "HTTP", "exit", "on the wire", ""
    )
}

/// One line of a matrix, and whether it agrees.
pub fn line(row: &Row, attempt: &Attempt) -> (String, bool) {
    let to = match row.pod {
        Some(pod) => format!("{:<8} {pod}", row.to.namespace()),
        None => format!("{:<8} (service)", row.to.namespace()),
    };
    let who = match &attempt.identity {
        Some(identity) => identity.clone(),
        None if attempt.witness == "nobody" => "plaintext, no daemon".into(),
        None if attempt.security == "none" => format!("none, {}", attempt.witness),
        None => format!("{}, {}", attempt.security, attempt.witness),
    };
    let differs = row.expected.differs(attempt);
    let text = format!(
        "  {:<7} {to:<26} {:<22} {who:<46} {:>4} {:>4}  {:<13} {}",
        row.from.namespace(),
        row.expected.to_string(),
        format!("{:03}", attempt.code),
        attempt.exit,
        attempt.wire,
        verdict(differs.as_deref()),
    );
    (text, differs.is_none())
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

/// The first bytes that the client's side sent, in hexadecimal and as text.
///
/// # Errors
/// When the capture misses them.
pub fn first_bytes(flow: &Flow) -> Result<String> {
    let bytes = flow.to_server.bytes()?;
    let mut text = format!("    {} -> {}, {} bytes\n", flow.client, flow.server, bytes.len());
    for line in bytes.chunks(16).take(4) {
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let ascii: String = line
            .iter()
            .map(|&byte| if (0x20..0x7f).contains(&byte) { char::from(byte) } else { '.' })
            .collect();
        text.push_str(&format!("    {:<47}  {ascii}\n", hex.join(" ")));
    }
    Ok(text)
}

/// Whether a stream starts with a TLS record that holds a ClientHello.
pub fn is_client_hello(bytes: &[u8]) -> bool {
    matches!(bytes, [0x16, 0x03, _, _, _, 0x01, ..])
}
