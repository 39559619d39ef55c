//! Kubernetes service-account tokens, which the cluster's API server reviews (policy.md 7.2).

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use tonic::async_trait;

use super::{Authenticator, Caller, Credentials, Purpose};
use crate::ca::token;

/// The audience of tokens that are meant for a CA.
pub const AUDIENCE: &str = "istio-ca";

/// How the name of a service account's user begins.
const USER: &str = "system:serviceaccount:";
/// The group of all of them.
const GROUP: &str = "system:serviceaccounts";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Asks an API server. The answer is a TokenReview object as JSON.
#[async_trait]
pub trait Reviewer: Send + Sync {
    async fn review(&self, token: &str, audiences: &[&str]) -> Result<Value, String>;
}

pub struct TokenReviews {
    pub reviewer: Arc<dyn Reviewer>,
    pub audience: String,
}

/// A service account, and the pod that its token is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub namespace: String,
    pub name: String,
    pub pod: Option<PodReference>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodReference {
    pub name: String,
    pub uid: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    #[error("the API server's answer is no TokenReview: {0}")]
    Unreadable(String),
    #[error("the API server could not review the token: {0}")]
    Failed(String),
    #[error("the API server does not accept the token")]
    NotAuthenticated,
    #[error("the token is for another audience than {0}")]
    Audience(String),
    #[error(
        "the API server did not say that the token is for {0}, as one that knows audiences does"
    )]
    NoAudience(String),
    #[error("the token is no service account's")]
    NoServiceAccount,
    #[error("the token's user {0:?} has not the form of a service account's")]
    Username(String),
}

#[derive(Deserialize)]
struct Review {
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    error: String,
    authenticated: bool,
    user: User,
    audiences: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
    groups: Vec<String>,
    extra: std::collections::BTreeMap<String, Vec<String>>,
}

/// Whom a TokenReview names. `audience`: the one that was asked for; an answer that names audiences
/// must have it among them.
pub fn account(review: &Value, audience: &str) -> Result<Account, ReviewError> {
    // What is read into a structure may be a list as well, field by field.
    for place in ["", "/status", "/status/user"] {
        if review.pointer(place).is_some_and(|part| !part.is_object()) {
            return Err(ReviewError::Unreadable(format!("it has no object at {place:?}")));
        }
    }
    let Review { status } =
        Review::deserialize(review).map_err(|error| ReviewError::Unreadable(error.to_string()))?;
    if !status.error.is_empty() {
        return Err(ReviewError::Failed(status.error));
    }
    if !status.authenticated {
        return Err(ReviewError::NotAuthenticated);
    }
    if status.audiences.is_some_and(|given| !given.iter().any(|it| it == audience)) {
        return Err(ReviewError::Audience(audience.to_owned()));
    }
    let User { username, groups, mut extra } = status.user;
    if !groups.iter().any(|group| group == GROUP) {
        return Err(ReviewError::NoServiceAccount);
    }
    let (namespace, name) = match username.strip_prefix(USER).and_then(|it| it.split_once(':')) {
        Some((namespace, name))
            if !namespace.is_empty() && !name.is_empty() && !name.contains(':') =>
        {
            (namespace.to_owned(), name.to_owned())
        }
        _ => return Err(ReviewError::Username(username)),
    };
    let mut first = |key| extra.remove(key).and_then(|values| values.into_iter().next());
    let pod = match (first(POD_NAME), first(POD_UID)) {
        (Some(name), Some(uid)) => Some(PodReference { name, uid }),
        _ => None,
    };
    Ok(Account { namespace, name, pod })
}

#[async_trait]
impl Authenticator for TokenReviews {
    fn name(&self) -> &'static str {
        "service account token"
    }

    async fn authenticate(
        &self,
        credentials: &Credentials,
        _purpose: Purpose,
    ) -> Option<Result<Caller, String>> {
        let token = match credentials.bearer_token() {
            Ok(token) if !token.starts_with(token::PREFIX) => token,
            Ok(_) => return None,
            Err(error) if credentials.client.is_none() => return Some(Err(error.to_string())),
            Err(_) => return None,
        };
        let review = self.reviewer.review(token, &[&self.audience]).await;
        let account = review.and_then(|review| {
            // An API server that knows nothing of audiences leaves them out: the token is then good
            // for itself, and not for us.
            if review.pointer("/status/audiences").is_none_or(Value::is_null)
                && review.pointer("/status/authenticated") == Some(&Value::Bool(true))
            {
                return Err(ReviewError::NoAudience(self.audience.clone()).to_string());
            }
            account(&review, &self.audience).map_err(|error| error.to_string())
        });
        Some(account.map(Caller::Account))
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service account {}/{}", self.namespace, self.name)?;
        if let Some(pod) = &self.pod {
            write!(f, " (pod {})", pod.name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn review(user: Value) -> Value {
        json!({ "status": { "authenticated": true, "user": user } })
    }

    #[test]
    fn a_service_account_is_read_with_its_pod() {
        let user = json!({
            "username": "system:serviceaccount:shop:web",
            "groups": ["system:serviceaccounts", "system:authenticated"],
            "extra": { POD_NAME: ["web-0"], POD_UID: ["u-1"], "more": ["x"] },
        });
        let found = account(&review(user.clone()), AUDIENCE).unwrap();
        assert_eq!((found.namespace.as_str(), found.name.as_str()), ("shop", "web"));
        assert_eq!(found.pod, Some(PodReference { name: "web-0".into(), uid: "u-1".into() }));

        let mut answer = review(user);
        answer["status"]["audiences"] = json!(["vault"]);
        assert!(matches!(account(&answer, AUDIENCE), Err(ReviewError::Audience(_))));
        answer["status"]["audiences"] = json!(["vault", AUDIENCE]);
        assert!(account(&answer, AUDIENCE).is_ok());
    }

    #[test]
    fn what_is_no_accepted_service_account_is_refused() {
        let groups = json!([GROUP]);
        for username in [
            "",
            "alice",
            "system:serviceaccount:x",
            "system:serviceaccount::x",
            "system:serviceaccount:a:b:c",
        ] {
            let user = json!({ "username": username, "groups": groups });
            assert!(matches!(account(&review(user), AUDIENCE), Err(ReviewError::Username(_))));
        }
        let user = json!({ "username": "system:serviceaccount:shop:web", "groups": [] });
        assert_eq!(account(&review(user), AUDIENCE), Err(ReviewError::NoServiceAccount));
        assert_eq!(account(&json!({}), AUDIENCE), Err(ReviewError::NotAuthenticated));
        assert!(matches!(account(&json!([]), AUDIENCE), Err(ReviewError::Unreadable(_))));
        let failed = json!({ "status": { "error": "boom", "authenticated": true } });
        assert!(matches!(account(&failed, AUDIENCE), Err(ReviewError::Failed(_))));
    }
}
