//! The town before, and the wire after.

use std::fmt::Write as _;

use anyhow::{Context, Result};

use crate::packet::Flow;
use crate::walkthrough::transcript::verdict;
use crate::walkthrough::{Played, Walkthrough};

/// Who lives where.
pub fn town(walkthrough: &Walkthrough) -> String {
    let on = |clients: bool| {
        let members = walkthrough.members.iter().filter(|it| (it.app == "sleep") == clients);
        let named = members.map(|it| {
            let enrolled = if it.enrolled { "enrolled" } else { "not enrolled" };
            format!("{}/{} ({enrolled})", it.namespace, it.pod)
        });
        named.collect::<Vec<_>>().join("   ")
    };
    format!("  node a   {}\n  node b   {}", on(true), on(false))
}

/// The first bytes of one encrypted and of one plaintext connection, and whether they are what they
/// should be.
///
/// # Errors
/// When the capture has gaps, or there was no such connection.
pub fn proof(played: &Played, say: &mut dyn FnMut(&str)) -> Result<bool> {
    let flow = |attempt: &Option<_>| {
        attempt.as_ref().and_then(|it: &crate::walkthrough::Attempt| it.flow.clone())
    };
    let encrypted = flow(&played.encrypted).context("no encrypted connection was captured")?;
    let clear = flow(&played.clear).context("no plaintext connection was captured")?;
    let hello = is_client_hello(&encrypted.to_server.bytes()?);
    let get = clear.to_server.bytes()?.starts_with(b"GET /");
    say("\nOn the wire between the nodes: a connection of identity (16 03 .. is a TLS handshake)");
    say(&first_bytes(&encrypted)?);
    say(&format!("    {}", verdict((!hello).then_some("not a TLS ClientHello"))));
    say("and one in the clear");
    say(&first_bytes(&clear)?);
    say(&format!("    {}", verdict((!get).then_some("not an HTTP request"))));
    Ok(hello && get)
}

/// The first bytes that the client's side sent, in hexadecimal and as text.
fn first_bytes(flow: &Flow) -> Result<String> {
    let bytes = flow.to_server.bytes()?;
    let mut text = format!("    {} -> {}, {} bytes", flow.client, flow.server, bytes.len());
    for line in bytes.chunks(16).take(4) {
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let ascii: String = line
            .iter()
            .map(|&byte| if (0x20..0x7f).contains(&byte) { char::from(byte) } else { '.' })
            .collect();
        write!(text, "\n    {:<47}  {ascii}", hex.join(" "))?;
    }
    Ok(text)
}

/// Whether a stream starts with a TLS record that holds a ClientHello.
pub fn is_client_hello(bytes: &[u8]) -> bool {
    matches!(bytes, [0x16, 0x03, _, _, _, 0x01, ..])
}
