//! The servers that need a thread for each connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};

use super::{BANNER, GREETING, Kind, Meter, Noise, REJECTION, end_of, event, http, plain};

/// Accepts for ever.
///
/// # Errors
/// When accepting fails.
pub fn serve(listener: &TcpListener, kind: Kind) -> Result<()> {
    loop {
        let (stream, peer) = listener.accept().context("accepting")?;
        let peer = plain(peer);
        let local = plain(stream.local_addr()?);
        if kind != Kind::Http {
            event("accepted", json!({"peer": peer, "local": local}));
        }
        std::thread::spawn(move || {
            let mut seen = json!({});
            let result = converse(kind, stream, peer, &mut seen);
            if kind != Kind::Http {
                seen["peer"] = json!(peer);
                seen["end"] = json!(end_of(&result));
                event("closed", seen);
            }
        });
    }
}

fn converse(
    kind: Kind,
    mut stream: TcpStream,
    peer: SocketAddr,
    seen: &mut Value,
) -> std::io::Result<()> {
    match kind {
        Kind::Http => http::serve(stream, peer),
        Kind::Banner => {
            stream.write_all(BANNER.as_bytes())?;
            copy(&mut stream.try_clone()?, |bytes| stream.write_all(bytes))
        }
        Kind::Sink => {
            let (meter, result) = drain(&mut stream);
            *seen = meter.summary();
            result?;
            stream.write_all(format!("{seen}\n").as_bytes())
        }
        Kind::Source => {
            let mut line = String::new();
            BufReader::new(stream.try_clone()?).read_line(&mut line)?;
            let length = line.trim().parse().unwrap_or(0);
            let mut meter = Meter::default();
            let mut noise = Noise::new(length);
            while let Some(piece) = noise.piece() {
                stream.write_all(piece)?;
                meter.take(piece);
            }
            stream.shutdown(Shutdown::Write)?;
            *seen = meter.summary();
            drain(&mut stream).1
        }
        Kind::HalfClose => {
            stream.write_all(GREETING.as_bytes())?;
            stream.shutdown(Shutdown::Write)?;
            let (meter, result) = drain(&mut stream);
            *seen = meter.summary();
            result
        }
        Kind::Reset => {
            let mut bytes = [0; 1024];
            let read = stream.read(&mut bytes)?;
            seen["bytes"] = json!(read);
            // Closing now sends a reset.
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))
        }
        Kind::Reject => {
            let mut bytes = vec![0; 100_000];
            stream.read_exact(&mut bytes)?;
            stream.write_all(REJECTION.as_bytes())?;
            stream.shutdown(Shutdown::Write)?;
            // Let the answer arrive before the close, which resets because of what is unread.
            std::thread::sleep(Duration::from_millis(200));
            Ok(())
        }
        Kind::Drip => {
            let line = format!("drip drip drip {}\n", "x".repeat(1000));
            loop {
                stream.write_all(line.as_bytes())?;
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Kind::Echo | Kind::Udp => unreachable!("served elsewhere"),
    }
}

fn copy(
    stream: &mut TcpStream,
    mut each: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut bytes = vec![0; 1 << 18];
    loop {
        match stream.read(&mut bytes)? {
            0 => return Ok(()),
            read => each(&bytes[..read])?,
        }
    }
}

fn drain(stream: &mut TcpStream) -> (Meter, std::io::Result<()>) {
    let mut meter = Meter::default();
    let result = copy(stream, |bytes| {
        meter.take(bytes);
        Ok(())
    });
    (meter, result)
}

/// Answers each datagram with its sender's address and its content.
///
/// # Errors
/// When the port cannot be bound.
pub fn serve_udp(port: u16) -> Result<()> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
    socket.set_only_v6(false)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    let socket = UdpSocket::from(socket);
    event("listening", json!({"address": socket.local_addr()?}));
    let mut bytes = vec![0; 65536];
    loop {
        let (length, peer) = socket.recv_from(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes[..length]);
        let answer = json!({"peer": plain(peer), "text": text}).to_string();
        socket.send_to(answer.as_bytes(), peer)?;
    }
}
