//! A node's own SVID, shown in the TLS handshake.

use tonic::async_trait;

use super::{Authenticator, Caller, Credentials, Purpose};
use crate::identity::{NodeName, TrustDomain};

pub struct NodeSvid(pub TrustDomain);

#[async_trait]
impl Authenticator for NodeSvid {
    fn name(&self) -> &'static str {
        "node SVID"
    }

    async fn authenticate(
        &self,
        credentials: &Credentials,
        _purpose: Purpose,
    ) -> Option<Result<Caller, String>> {
        let client = credentials.client.as_ref()?;
        let id = client.peer.id();
        if id.trust_domain() != self.0.as_str() {
            return Some(Err(format!("{id} is of another trust domain than {}", self.0)));
        }
        let Some(name) = NodeName::of(id) else {
            return Some(Err(format!("{id} is no node's identity")));
        };
        // A connection outlives the moment at which its certificate was verified.
        if client.peer.not_after() <= credentials.now {
            return Some(Err(format!("the SVID of {id} expired while its connection was open")));
        }
        Some(Ok(Caller::Node { name, serial: client.serial.clone() }))
    }
}
