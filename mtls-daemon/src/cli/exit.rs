//! Exit codes, which are part of the command line's contract.

use std::fmt;

/// The exit codes, for `--help`.
pub(super) const HELP: &str = "Exit codes: 0 ok; 1 failure; 2 usage; 64 bad configuration; 65 \
     policy lint found errors; 69 a kernel feature is missing; 73 another daemon holds this node's name or directories";

/// How the process ends. The numbers from 64 on are those of sysexits.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Ok = 0,
    Failure = 1,
    /// Clap's own.
    Usage = 2,
    /// EX_USAGE: the configuration, or a flag that is well formed and cannot be.
    Config = 64,
    /// EX_DATAERR: `policy lint` found errors (or warnings, with `--deny-warnings`).
    Findings = 65,
    /// EX_UNAVAILABLE: the kernel lacks something.
    Kernel = 69,
    /// EX_CANTCREAT: another daemon holds this node's name or its state directory.
    Busy = 73,
}

/// An error, and what the process ends with because of it.
#[derive(Debug)]
pub struct Failed {
    pub exit: Exit,
    pub error: anyhow::Error,
}

impl Failed {
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into() }
    }
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self { exit: Exit::Failure, error }
    }
}

impl From<crate::config::ConfigError> for Failed {
    fn from(error: crate::config::ConfigError) -> Self {
        Self::new(Exit::Config, error)
    }
}

impl From<crate::admin::AdminError> for Failed {
    fn from(error: crate::admin::AdminError) -> Self {
        let exit = match error {
            crate::admin::AdminError::Busy(_) => Exit::Busy,
            _ => Exit::Failure,
        };
        Self::new(exit, error)
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The error and its causes on one line.
impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_never_change() {
        let exits = [
            Exit::Ok,
            Exit::Failure,
            Exit::Usage,
            Exit::Config,
            Exit::Findings,
            Exit::Kernel,
            Exit::Busy,
        ];
        assert_eq!(exits.map(|exit| exit as u8), [0, 1, 2, 64, 65, 69, 73]);
    }

    #[test]
    fn a_failure_shows_its_causes() {
        let cause = std::io::Error::other("no such thing");
        let failed = Failed::from(anyhow::Error::new(cause).context("cannot read x"));
        assert_eq!(failed.to_string(), "cannot read x: no such thing");
        assert_eq!(failed.exit, Exit::Failure);
        let busy = Failed::from(crate::admin::AdminError::Busy("/run/x".into()));
        assert_eq!(busy.exit, Exit::Busy);
    }
}
