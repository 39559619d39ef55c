//! The token in a request's `authorization` metadata (policy.md 7.2).

const SCHEME: &str = "Bearer ";

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BearerError {
    #[error("the request has no metadata")]
    NoMetadata,
    #[error("the request has no authorization metadata")]
    NoAuthorization,
    #[error("the authorization metadata has no bearer token")]
    NoToken,
}

/// The first of the `authorization` values that is a bearer token. `values` is None for a request
/// that came with no metadata at all.
pub fn token<'v>(
    values: Option<impl IntoIterator<Item = &'v str>>,
) -> Result<&'v str, BearerError> {
    let mut values = values.ok_or(BearerError::NoMetadata)?.into_iter().peekable();
    if values.peek().is_none() {
        return Err(BearerError::NoAuthorization);
    }
    values.find_map(|value| value.strip_prefix(SCHEME)).ok_or(BearerError::NoToken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bearer_token_counts() {
        let given = |values: &[&'static str]| token(Some(values.iter().copied()));
        assert_eq!(given(&["Basic x", "Bearer a", "Bearer b"]), Ok("a"));
        assert_eq!(given(&["Bearer "]), Ok(""));
        assert_eq!(given(&["bearer a", "Bearer"]), Err(BearerError::NoToken));
        assert_eq!(given(&[]), Err(BearerError::NoAuthorization));
        assert_eq!(token(None::<[&str; 0]>), Err(BearerError::NoMetadata));
    }
}
