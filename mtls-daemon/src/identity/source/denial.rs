//! Why an attempt to get an SVID came to nothing, before it is said of whom it was asked.

use super::{Reason, SourceError};

/// Why there is no answer. What has no better reason cannot be used.
#[derive(Debug, Clone)]
pub(super) struct Denial {
    pub reason: Reason,
    pub text: String,
}

impl Denial {
    pub fn new(reason: Reason) -> impl Fn(String) -> Self {
        move |text| Self { reason, text }
    }

    /// The same, with words around it.
    pub fn said(self, how: impl FnOnce(&str) -> String) -> Self {
        Self { text: how(&self.text), ..self }
    }

    /// What a gRPC server's refusal means.
    pub fn status(status: &tonic::Status, hint: &str) -> Self {
        // Made here, not by the server: the connection broke.
        let broken = std::error::Error::source(status).is_some();
        let reason = match status.code() {
            tonic::Code::Unknown if broken => Reason::Unreachable,
            tonic::Code::Unavailable => Reason::Unreachable,
            tonic::Code::DeadlineExceeded => Reason::Timeout,
            _ => Reason::Refused,
        };
        let text = format!("it answered {:?}: {}{hint}", status.code(), status.message());
        Self { reason, text }
    }
}

impl From<String> for Denial {
    fn from(text: String) -> Self {
        Self { reason: Reason::Invalid, text }
    }
}

impl From<Denial> for String {
    fn from(denial: Denial) -> Self {
        denial.text
    }
}

impl From<Denial> for SourceError {
    fn from(Denial { reason, text }: Denial) -> Self {
        Self::Asked { reason, text }
    }
}

impl std::fmt::Display for Denial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}
