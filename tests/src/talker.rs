//! A client that writes HTTP/1.1 by hand, on a connection that it keeps: what curl would not send.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::bed::Pod;
use crate::client::{self, End};

/// One connection.
pub struct Talker(BufReader<TcpStream>);

/// One answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub code: u16,
    pub head: String,
    pub body: String,
    pub trailers: Vec<String>,
}

impl Answer {
    /// 403, as policy answers.
    pub fn denied(&self) -> bool {
        self.code == 403 && self.body == "RBAC: access denied"
    }
}

impl Talker {
    /// Connects from `pod`.
    ///
    /// # Errors
    /// When it cannot.
    pub fn connect(pod: &Pod, to: SocketAddr) -> Result<Self> {
        Ok(Self(BufReader::new(pod.inside(|| client::connect(to))?)))
    }

    /// No more is sent.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn end(&self) -> Result<()> {
        self.0.get_ref().shutdown(Shutdown::Write).context("the end of what is sent")
    }

    /// The connection ends here, and nothing more is heard.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn reset(self) -> Result<()> {
        socket2::SockRef::from(self.0.get_ref()).set_linger(Some(Duration::ZERO))?;
        Ok(())
    }

    /// # Errors
    /// When the connection has ended.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.0.get_mut().write_all(bytes.as_ref()).context("sending")
    }

    /// A GET without a body, and its answer.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&mut self, path: &str) -> Result<Answer> {
        self.ask(format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n"))
    }

    /// # Errors
    /// When there is no answer.
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Result<Answer> {
        self.send(request)?;
        self.answer()
    }

    /// The next answer with its body, if its head says that it has one.
    ///
    /// # Errors
    /// When the connection ends before it is whole.
    pub fn answer(&mut self) -> Result<Answer> {
        let head = self.lines().context("an answer's head")?;
        let code = head.first().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let code = code.with_context(|| format!("no answer: {head:?}"))?;
        let find = |name: &str| {
            let headers = head.iter().filter_map(|line| line.split_once(':'));
            headers.filter(|(is, _)| is.eq_ignore_ascii_case(name)).map(|it| it.1.trim()).next()
        };
        let chunked = find("transfer-encoding") == Some("chunked");
        let length: usize = find("content-length").and_then(|it| it.parse().ok()).unwrap_or(0);
        let mut answer =
            Answer { code, head: head.join("\n"), body: String::new(), trailers: Vec::new() };
        if !chunked {
            answer.body = self.exactly(length)?;
            return Ok(answer);
        }
        loop {
            let mut size = String::new();
            self.0.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16).context("a chunk's size")?;
            if size == 0 {
                answer.trailers = self.lines()?;
                return Ok(answer);
            }
            answer.body += &self.exactly(size)?;
            self.exactly(2)?;
        }
    }

    fn exactly(&mut self, length: usize) -> Result<String> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).context("a body")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn lines(&mut self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            ensure!(self.0.read_line(&mut line)? > 0, "the connection ended after {lines:?}");
            let line = line.trim_end();
            if line.is_empty() {
                return Ok(lines);
            }
            lines.push(line.to_owned());
        }
    }

    /// Sends `text` and reads it back: the other end has become an echo.
    ///
    /// # Errors
    /// When it does not come.
    pub fn echo(&mut self, text: &str) -> Result<()> {
        self.send(text)?;
        self.hear(text)
    }

    /// Reads `text`.
    ///
    /// # Errors
    /// When it does not come, or others do.
    pub fn hear(&mut self, text: &str) -> Result<()> {
        let came = self.exactly(text.len())?;
        ensure!(came == text, "{text:?} should have come: {came:?}");
        Ok(())
    }

    /// What else comes until the connection ends, and how it does.
    ///
    /// # Errors
    /// When it fails in another way.
    pub fn rest(mut self) -> Result<(String, End)> {
        let mut all = self.0.buffer().to_vec();
        let (more, end) = client::read_to_end(self.0.get_mut())?;
        all.extend(more);
        Ok((String::from_utf8_lossy(&all).into_owned(), end))
    }
}
