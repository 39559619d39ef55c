//! The daemon's own log: stderr, so that stdout is the access log's alone.

use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// A level (`info`) or directives (`info,mtls_daemon::proxy=debug`), known to be well formed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level(String);

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        EnvFilter::builder().parse(text).map_err(|error| {
            format!("{error}; expected error, warn, info, debug, trace, or target=level,...")
        })?;
        Ok(Self(text.to_owned()))
    }
}

impl Default for Level {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl Level {
    /// The daemon's own setting, else `RUST_LOG`, else `info`.
    ///
    /// # Errors
    /// `RUST_LOG` is not well formed.
    pub fn or_environment(own: Option<Self>) -> Result<Self, String> {
        match (own, std::env::var("RUST_LOG")) {
            (Some(own), _) => Ok(own),
            (None, Ok(text)) if !text.is_empty() => {
                text.parse().map_err(|error| format!("RUST_LOG={text}: {error}"))
            }
            (None, _) => Ok(Self::default()),
        }
    }
}

/// The log cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("the log level is not understood: {0}")]
    Level(#[from] tracing_subscriber::filter::ParseError),
    #[error("a log was started before: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Starts the log of this process.
///
/// # Errors
/// A log was started before: two in one process is a mistake of the caller's.
pub fn init(format: Format, level: &Level) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(&level.0)?;
    let stderr = std::io::stderr;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal());
    match format {
        Format::Text => builder.finish().try_init()?,
        Format::Json => builder.json().flatten_event(true).finish().try_init()?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_checked_when_it_is_parsed() {
        for good in ["info", "warn,mtls_daemon::proxy=trace", "debug"] {
            assert!(good.parse::<Level>().is_ok(), "{good}");
        }
        let error = "loudly=very".parse::<Level>().expect_err("not a level");
        assert!(error.contains("expected error, warn, info"), "{error}");
    }

    #[test]
    fn the_own_setting_wins() {
        let own: Level = "debug".parse().expect("a level");
        assert_eq!(Level::or_environment(Some(own.clone())), Ok(own));
    }
}
