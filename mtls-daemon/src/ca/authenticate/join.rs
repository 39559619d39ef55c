//! One-time join tokens.

use std::sync::Arc;

use tonic::async_trait;

use super::{Authenticator, Caller, Credentials, Purpose};
use crate::ca::{StateDir, token};

pub struct JoinTokens(pub Arc<StateDir>);

#[async_trait]
impl Authenticator for JoinTokens {
    fn name(&self) -> &'static str {
        "join token"
    }

    async fn authenticate(
        &self,
        credentials: &Credentials,
        purpose: Purpose,
    ) -> Option<Result<Caller, String>> {
        let text = credentials.bearer_token().ok()?;
        if !text.starts_with(token::PREFIX) {
            return None;
        }
        if purpose != Purpose::Certificate {
            return Some(Err("a join token is for a certificate alone".to_owned()));
        }
        let (directory, text, now) = (self.0.clone(), text.to_owned(), credentials.now);
        // Files: not on the thread that serves everybody.
        let checked =
            tokio::task::spawn_blocking(move || token::check(&directory, &text, now)).await;
        Some(match checked {
            Ok(Ok(Ok((token_id, token)))) => Ok(Caller::Joining { token_id, token }),
            Ok(Ok(Err(error))) => Err(error.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(format!("looking at the token failed: {error}")),
        })
    }
}
