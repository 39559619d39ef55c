//! Why there is no certificate: exact for the audit log, and what the caller gets to hear.

use tonic::{Code, Status};

use super::rate;
use crate::identity::ca::CaError;

/// Whoever is not allowed to ask learns no more than that: not which check failed, nor what exists.
const OPAQUE: &str = "request authenticate failure";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No credential, or none that holds.
    #[error("not authenticated: {0}")]
    Unauthenticated(String),
    /// The caller is known, and may not have this.
    #[error("not allowed: {0}")]
    NotAllowed(String),
    /// The caller may ask, and asked for something that cannot be.
    #[error("bad request: {0}")]
    BadRequest(String),
    #[error("too many requests are waiting")]
    Busy,
    /// One caller, many certificates.
    #[error(
        "{caller} asks for too many certificates: {} at once and {} a second are granted",
        rate::BURST,
        rate::PER_SECOND
    )]
    TooMany { caller: String },
    /// One node, and what it obtained has not expired.
    #[error(
        "{caller} has {most} certificates that have not expired, and gets no more; if it is not itself, \
         `mtls-daemon ca revoke --node` takes back all of them"
    )]
    TooManyHeld { caller: String, most: usize },
    /// The CA's own trouble.
    #[error("the CA failed: {0}")]
    Internal(String),
}

impl Refusal {
    pub fn status(&self) -> Status {
        match self {
            Self::Unauthenticated(_) | Self::NotAllowed(_) => {
                Status::new(Code::Unauthenticated, OPAQUE)
            }
            Self::BadRequest(why) => Status::new(Code::InvalidArgument, why),
            Self::Busy => Status::new(Code::ResourceExhausted, "the CA is busy: ask again later"),
            Self::TooMany { .. } => Status::new(
                Code::ResourceExhausted,
                "too many certificates were asked for: ask again later",
            ),
            Self::TooManyHeld { most, .. } => Status::new(
                Code::ResourceExhausted,
                format!(
                    "this node has {most} certificates that have not expired, and gets no more"
                ),
            ),
            Self::Internal(_) => Status::new(Code::Internal, "the CA failed: see its log"),
        }
    }
}

impl From<CaError> for Refusal {
    fn from(error: CaError) -> Self {
        Self::Internal(error.to_string())
    }
}
