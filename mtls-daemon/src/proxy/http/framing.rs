//! Where a request's body ends. Chunks are read as strictly as heads are.

use super::head::{Framing, field};
use super::refusal::Refusal;

/// A chunk's extension, or all trailers together, beyond this are refused.
const MAX_EXTENSION: usize = 1024;
const MAX_TRAILERS: usize = 8 * 1024;

/// How much of the body is still to come.
#[derive(Debug)]
pub enum Body {
    Length(u64),
    Chunked(Chunk),
}

/// Within a chunked body.
#[derive(Debug)]
pub enum Chunk {
    Size {
        digits: u8,
        size: u64,
    },
    Extension {
        size: u64,
        length: usize,
    },
    SizeEnd {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataReturn,
    DataEnd,
    Trailers {
        line: Vec<u8>,
        length: usize,
    },
    /// After a malformed one nothing is a chunk any more.
    Broken,
}

const START: Chunk = Chunk::Size { digits: 0, size: 0 };

impl Body {
    /// None: there is no body.
    pub fn of(framing: Framing) -> Option<Self> {
        match framing {
            Framing::Length(0) => None,
            Framing::Length(length) => Some(Self::Length(length)),
            Framing::Chunked => Some(Self::Chunked(START)),
        }
    }

    /// How many of `bytes` belong to the body, and whether it ends with them.
    ///
    /// # Errors
    /// A chunk that two parsers could read in two ways.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(usize, bool), Refusal> {
        match self {
            Self::Length(left) => {
                let count = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= count as u64;
                Ok((count, *left == 0))
            }
            Self::Chunked(chunk) => {
                let mut at = 0;
                while at < bytes.len() {
                    if let Chunk::Data { left } = chunk {
                        let rest = bytes.len() - at;
                        let count = rest.min(usize::try_from(*left).unwrap_or(usize::MAX));
                        at += count;
                        *left -= count as u64;
                        if *left == 0 {
                            *chunk = Chunk::DataReturn;
                        }
                        continue;
                    }
                    let ended = chunk.step(bytes[at])?;
                    at += 1;
                    if ended {
                        return Ok((at, true));
                    }
                }
                Ok((at, false))
            }
        }
    }
}

impl Chunk {
    /// True: the body has ended.
    fn step(&mut self, byte: u8) -> Result<bool, Refusal> {
        const MALFORMED: Refusal = Refusal::bad("a malformed chunk");
        *self = match std::mem::replace(self, Self::Broken) {
            Self::Size { digits, size } => match (byte, char::from(byte).to_digit(16)) {
                (_, Some(digit)) if digits < 15 => {
                    Self::Size { digits: digits + 1, size: size * 16 + u64::from(digit) }
                }
                (b'\r', _) if digits > 0 => Self::SizeEnd { size },
                (b';', _) if digits > 0 => Self::Extension { size, length: 0 },
                (_, Some(_)) => return Err(Refusal::bad("a chunk that is too large")),
                _ => return Err(MALFORMED),
            },
            Self::Extension { size, length } => match byte {
                b'\r' => Self::SizeEnd { size },
                b'\t' | b' '..=b'~' if length < MAX_EXTENSION => {
                    Self::Extension { size, length: length + 1 }
                }
                _ => return Err(MALFORMED),
            },
            Self::SizeEnd { size } => match (byte, size) {
                (b'\n', 0) => Self::Trailers { line: Vec::new(), length: 0 },
                (b'\n', left) => Self::Data { left },
                _ => return Err(MALFORMED),
            },
            Self::Data { left } => Self::Data { left },
            Self::DataReturn if byte == b'\r' => Self::DataEnd,
            Self::DataEnd if byte == b'\n' => START,
            Self::DataReturn | Self::DataEnd | Self::Broken => return Err(MALFORMED),
            Self::Trailers { mut line, length } => {
                if length >= MAX_TRAILERS {
                    return Err(Refusal::TOO_LARGE);
                }
                if byte == b'\n' {
                    let Some(whole) = line.strip_suffix(b"\r") else {
                        return Err(Refusal::bad("a line that ends in a bare LF"));
                    };
                    if whole.is_empty() {
                        return Ok(true);
                    }
                    field(whole)?;
                    line.clear();
                } else {
                    line.push(byte);
                }
                Self::Trailers { line, length: length + 1 }
            }
        };
        Ok(false)
    }
}

#[cfg(test)]
#[path = "framing_tests.rs"]
mod tests;
