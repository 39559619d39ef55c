//! Who asks. Each authenticator knows one kind of credential; the first that accepts decides.

pub mod join;
pub mod node;
pub mod token_review;

use std::net::SocketAddr;
use std::time::SystemTime;

use tonic::async_trait;

use super::bearer;
use super::token::Token;
use crate::identity::NodeName;
use crate::tls::authority::CertifiedClient;

/// What came with a request.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub peer: SocketAddr,
    /// Verified in the TLS handshake.
    pub client: Option<CertifiedClient>,
    /// The values of the metadata `authorization`.
    pub authorization: Vec<String>,
    pub now: SystemTime,
}

/// A caller whose credential holds.
#[derive(Debug, Clone)]
pub enum Caller {
    /// A node, by its own SVID.
    Node { name: NodeName, serial: String },
    /// A machine that becomes a node. The token is used up when its certificate is made.
    Joining { token_id: String, token: Token },
    /// A Kubernetes service account.
    Account(token_review::Account),
}

/// What the credential is for: a join token is spent on a certificate, not on a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Certificate,
    Poll,
}

#[async_trait]
pub trait Authenticator: Send + Sync {
    /// As the audit log names it.
    fn name(&self) -> &'static str;

    /// None: there is no credential of this kind. The error is for the audit log alone.
    async fn authenticate(
        &self,
        credentials: &Credentials,
        purpose: Purpose,
    ) -> Option<Result<Caller, String>>;
}

impl Credentials {
    pub fn bearer_token(&self) -> Result<&str, bearer::BearerError> {
        bearer::token(Some(self.authorization.iter().map(String::as_str)))
    }
}

impl Caller {
    /// For the audit log.
    pub fn name(&self) -> String {
        match self {
            Self::Node { name, .. } => format!("node {name}"),
            Self::Joining { token_id, token } => {
                format!("node {} by join token {token_id}", token.node)
            }
            Self::Account(account) => account.to_string(),
        }
    }
}
