//! One GET over the admin socket.
//!
//! The other end is this same program, which answers one request a connection with a
//! Content-Length: reading to the end is the whole of the client's HTTP.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Far more than thousands of workloads need.
const MAX_ANSWER: u64 = 64 * 1024 * 1024;

/// The body of the daemon's answer.
///
/// # Errors
/// Nobody answers on `socket`, or not with 200; the error names the socket.
pub(in crate::cli) fn ask(socket: &Path, path: &str) -> anyhow::Result<String> {
    let name = socket.display();
    let stream = UnixStream::connect(socket).map_err(|error| explain(socket, &error))?;
    let answer =
        exchange(stream, path).with_context(|| format!("the daemon on {name} does not answer"))?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("what listens on {name} does not speak HTTP"))?;
    let code = head.split(' ').nth(1).unwrap_or_default();
    if code != "200" {
        bail!("the daemon on {name} answered {code}: {}", body.trim_end());
    }
    // A daemon that was killed in mid-answer must not pass for one with little to say.
    if content_length(head) != Some(body.len()) {
        bail!("the daemon on {name} ended before its answer did");
    }
    Ok(body.to_owned())
}

fn explain(socket: &Path, error: &io::Error) -> anyhow::Error {
    let name = socket.display();
    match error.kind() {
        ErrorKind::NotFound => anyhow!(
            "no daemon answers: there is no socket {name}; is `mtls-daemon run` up with the same \
             --node and --run-dir?"
        ),
        ErrorKind::ConnectionRefused => anyhow!(
            "no daemon answers on {name}: it ended without cleaning up, and its workloads cannot \
             connect until it is back (or `mtls-daemon cleanup` was run)"
        ),
        ErrorKind::PermissionDenied => anyhow!("{name} is for root alone: {error}"),
        _ => anyhow!("no daemon answers on {name}: {error}"),
    }
}

fn exchange(mut stream: UnixStream, path: &str) -> io::Result<String> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
    Ok(answer)
}

fn content_length(head: &str) -> Option<usize> {
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    let (_, length) = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?;
    length.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// What `ask` makes of a daemon that says `answer`.
    fn hear(answer: &'static str) -> Result<String, String> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("admin.sock");
        let listener = UnixListener::bind(&path).expect("bound");
        let daemon = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepted");
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut part = [0; 512];
                let length = stream.read(&mut part).expect("a request");
                assert_ne!(length, 0, "{}", String::from_utf8_lossy(&request));
                request.extend_from_slice(&part[..length]);
            }
            assert!(request.starts_with(b"GET /status HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).expect("answered");
        });
        let heard = ask(&path, "/status").map_err(|error| format!("{error:#}"));
        daemon.join().expect("no panic");
        heard
    }

    #[test]
    fn a_whole_answer_is_its_body() {
        assert_eq!(hear("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"), Ok("{}".into()));
    }

    #[test]
    fn half_an_answer_is_none() {
        let error = hear("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{}").expect_err("cut");
        assert!(error.contains("ended before its answer did"), "{error}");
    }

    #[test]
    fn a_refusal_is_shown() {
        let error = hear("HTTP/1.1 500 X\r\ncontent-length: 5\r\n\r\noops\n").expect_err("500");
        assert!(error.ends_with("answered 500: oops"), "{error}");
    }

    #[test]
    fn without_a_daemon_the_socket_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("admin.sock");
        let error = ask(&path, "/status").expect_err("nobody").to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
        assert!(error.contains("--run-dir"), "{error}");
        drop(UnixListener::bind(&path).expect("bound"));
        let error = ask(&path, "/status").expect_err("dead").to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
        assert!(error.contains("mtls-daemon cleanup"), "{error}");
    }
}
