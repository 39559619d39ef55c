//! What a node must know soon, asked for again and again: revocations, and new roots.

use std::sync::Arc;
use std::time::Duration;

use super::{ANSWER, IstioCa, revoked};
use crate::grpc::mtls_ca_v1::PollResponse;
use crate::identity::Svid;
use crate::identity::revocations::Trouble;

/// For the answer to a poll at first: a connection that nobody ends any more must not take the time in
/// which a revocation has to be here. A long list over a slow line gets longer with each failure.
const POLL: Duration = Duration::from_secs(3);
/// How much less often a CA is asked that has no such service: another may take its place.
const UNSERVED: u32 = 10;

/// What a poll brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Polled {
    /// It was the first to bring new roots.
    pub roots: bool,
    pub revocations: bool,
}

impl IstioCa {
    /// Asks every `interval`. Calls `on_roots` whenever the CA's roots changed, whichever answer brought
    /// them, and `on_back` when it answers again after it did not. Never ends.
    pub async fn follow(
        self: Arc<Self>,
        interval: Duration,
        on_roots: impl Fn(),
        on_back: impl Fn(),
    ) {
        let roots = async {
            loop {
                self.trust.changed().await;
                on_roots();
            }
        };
        tokio::join!(self.poll_for_ever(interval, on_back), roots);
    }

    async fn poll_for_ever(self: &Arc<Self>, interval: Duration, on_back: impl Fn()) {
        let (mut failures, mut unserved) = (0_u32, false);
        loop {
            let limit = POLL.saturating_mul(1 << failures.min(8)).min(ANSWER);
            let asked = match self.own_at_hand().await {
                Ok(own) => tokio::time::timeout(limit, self.ask_news(own))
                    .await
                    .unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs()))),
                Err(error) => Err(error),
            };
            if asked.is_ok() && std::mem::take(&mut failures) > 0 {
                self.revocations.trouble(Trouble::Unasked, None);
                tracing::info!("the CA answers again");
                on_back();
            }
            let mut wait = interval;
            match asked {
                Ok(Some(response)) => {
                    unserved = false;
                    self.revocations.trouble(Trouble::Unserved, None);
                    self.took(response).await;
                }
                Ok(None) => {
                    if !std::mem::replace(&mut unserved, true) {
                        self.say_unserved();
                    }
                    wait = interval.saturating_mul(UNSERVED);
                }
                Err(error) => {
                    self.client.forget();
                    // Once for each outage, not every time.
                    if failures == 0 {
                        tracing::warn!(%error, "the CA tells nothing of revocations and new roots");
                    }
                    // One may be a connection that broke.
                    if failures > 0 {
                        let why = format!(
                            "the CA tells nothing of revocations and new roots: {error}; what it said \
                             last stays in force"
                        );
                        self.revocations.trouble(Trouble::Unasked, Some(why));
                    }
                    failures = failures.saturating_add(1);
                }
            }
            // Nodes that were started together do not ask together.
            tokio::time::sleep(wait.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
        }
    }

    /// What is wrong with the list has been said, and is in `status`.
    async fn took(self: &Arc<Self>, response: PollResponse) {
        match self.take(response).await {
            Ok(Polled { revocations: true, .. }) => {
                let number = self.revocations.current().map(|list| list.number());
                tracing::info!(number, "a new revocation list");
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "a poll's answer"),
        }
    }

    /// istiod never had any. A CA that had one, or should have one, may be the wrong one.
    fn say_unserved(&self) {
        let why = match self.revocations.current() {
            Some(list) => format!(
                "the CA has no revocation list any more, and number {} stays in force",
                list.number()
            ),
            None if self.revocations.rules().max_age.is_some() => {
                "the CA has no revocation list, and --revocation-max-age wants one".to_owned()
            }
            None if self.revocations.is_required() => {
                tracing::warn!(
                    "this CA has no revocation list: whoever no list in --crl-file speaks of is \
                     refused (--revocation required)"
                );
                return;
            }
            None => {
                tracing::info!("this CA has no revocation list, and tells of new roots late");
                return;
            }
        };
        let why = format!("{why}: is it the right one, and as new as this daemon?");
        tracing::warn!("{why}");
        self.revocations.trouble(Trouble::Unserved, Some(why));
    }

    /// None: this CA has no such service.
    pub async fn poll(self: &Arc<Self>) -> Result<Option<Polled>, String> {
        let own = self.own_at_hand().await?;
        match self.ask_news(own).await? {
            Some(response) => self.take(response).await.map(Some),
            None => Ok(None),
        }
    }

    /// A join takes its time; nothing can be asked without it.
    async fn own_at_hand(&self) -> Result<Option<Arc<Svid>>, String> {
        Ok(match &self.node {
            Some(node) => Some(node.at_hand().await?),
            None => None,
        })
    }

    async fn ask_news(&self, own: Option<Arc<Svid>>) -> Result<Option<PollResponse>, String> {
        let channel = self.client.channel(&self.trust, own.as_ref()).await?;
        Ok(self.client.poll(channel, self.token()?).await?)
    }

    async fn take(self: &Arc<Self>, response: PollResponse) -> Result<Polled, String> {
        let source = self.clone();
        // It verifies, and writes to disk.
        let taken = tokio::task::spawn_blocking(move || {
            // Roots first: a list may be signed below a new one.
            let roots = source.trust.learn(&response.roots);
            let revocations = revoked::accept(&source, &response);
            Ok(Polled { roots: roots?, revocations: revocations? })
        });
        taken.await.map_err(|error| error.to_string())?
    }
}
