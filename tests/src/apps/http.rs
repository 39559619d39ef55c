//! A small HTTP/1.1 server in the manner of httpbin: enough for curl, and strict enough to refuse
//! what is not HTTP.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Map, Value, json};

use super::Noise;

/// Answers requests until the client ends the connection or sends something that is not HTTP.
///
/// # Errors
/// When the connection fails.
pub fn serve(mut stream: TcpStream, peer: SocketAddr) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let Some(request) = read(&mut reader)? else { return Ok(()) };
        let Some((method, path, headers)) = request else {
            return stream.write_all(
                b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        };
        if let Some(length) = path.strip_prefix("/bytes/").and_then(|n| n.parse().ok()) {
            head(&mut stream, "application/octet-stream", length)?;
            let mut noise = Noise::new(length);
            while let Some(piece) = noise.piece() {
                stream.write_all(piece)?;
            }
            continue;
        }
        let origin = peer.ip();
        let seen = json!({
            "method": method, "path": path, "headers": headers, "peer": peer, "origin": origin,
        });
        // A line a header, to be searched by line.
        let body = format!("{seen:#}\n");
        head(&mut stream, "application/json", body.len() as u64)?;
        stream.write_all(body.as_bytes())?;
    }
}

fn head(stream: &mut TcpStream, kind: &str, length: u64) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n")
}

/// As httpbin shows names: they are the same in any case, and proxies send small letters.
fn title_case(name: &str) -> String {
    let mut start = true;
    name.chars()
        .map(|letter| {
            let shown =
                if start { letter.to_ascii_uppercase() } else { letter.to_ascii_lowercase() };
            start = letter == '-';
            shown
        })
        .collect()
}

type Request = (String, String, Map<String, Value>);

/// `None` at the end of the connection; `Some(None)` for what is not an HTTP request.
fn read(reader: &mut impl BufRead) -> std::io::Result<Option<Option<Request>>> {
    // Looked at before a line is awaited: a ClientHello has no line end to wait for.
    match reader.fill_buf()?.first() {
        None => return Ok(None),
        Some(first) if !first.is_ascii_uppercase() => return Ok(Some(None)),
        Some(_) => {}
    }
    let mut lines = Vec::new();
    loop {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        let Ok(line) = String::from_utf8(line) else { return Ok(Some(None)) };
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let mut words = lines.first().map(String::as_str).unwrap_or_default().split(' ');
    let (Some(method), Some(path), Some("HTTP/1.1")) = (words.next(), words.next(), words.next())
    else {
        return Ok(Some(None));
    };
    let headers = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (title_case(name), json!(value.trim())));
    Ok(Some(Some((method.to_owned(), path.to_owned(), headers.collect()))))
}
