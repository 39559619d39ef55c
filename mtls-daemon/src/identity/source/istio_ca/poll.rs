//! What a node must know soon, asked for again and again: revocations, and new roots.

use std::sync::Arc;
use std::time::Duration;

use super::{ANSWER, IstioCa, revoked};

/// What a poll brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Polled {
    /// It was the first to bring new roots.
    pub roots: bool,
    pub revocations: bool,
}

impl IstioCa {
    /// Asks every `interval`, and calls `on_roots` whenever the CA's roots changed, whichever answer
    /// brought them. Never ends.
    pub async fn follow(self: Arc<Self>, interval: Duration, on_roots: impl Fn()) {
        let roots = async {
            loop {
                self.trust.changed().await;
                on_roots();
            }
        };
        tokio::join!(self.poll_for_ever(interval), roots);
    }

    /// Ends only if the CA has no such service (istiod).
    async fn poll_for_ever(&self, interval: Duration) {
        let mut failed = false;
        loop {
            let polled = tokio::time::timeout(ANSWER, self.poll()).await;
            match polled.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
                Ok(Some(polled)) => {
                    if polled.revocations {
                        let number = self.revocations.current().map(|list| list.number());
                        tracing::info!(number, "a new revocation list");
                    }
                    failed = false;
                }
                Ok(None) => {
                    tracing::info!("this CA has no revocation list, and tells of new roots late");
                    return;
                }
                Err(error) => {
                    self.client.forget();
                    // Once for each outage, not every time.
                    if !failed {
                        tracing::warn!(%error, "the CA tells nothing of revocations and new roots");
                    }
                    failed = true;
                }
            }
            // Nodes that were started together do not ask together.
            tokio::time::sleep(interval.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
        }
    }

    /// None: this CA has no such service.
    pub async fn poll(&self) -> Result<Option<Polled>, String> {
        let own = match &self.node {
            Some(node) => Some(node.current(self).await?),
            None => None,
        };
        let channel = self.client.channel(&self.trust, own.as_ref()).await?;
        let Some(response) = self.client.poll(channel, self.token()?).await? else {
            return Ok(None);
        };
        // Roots first: a list may be signed below a new one.
        let roots = self.trust.learn(&response.roots)?;
        let revocations = revoked::accept(self, &response)?;
        Ok(Some(Polled { roots, revocations }))
    }
}
