//! SVIDs from an agent of this host, a SPIRE agent for example (policy.md 6.4): by SPIFFE's Workload
//! API, which gives what the daemon itself may be, or by SPIRE's Delegated Identity API, which gives
//! what the node's workloads may be.
//!
//! The client is ours, not the `spiffe` crate's: that brings a second transport stack, copies keys into
//! buffers that nobody wipes, and has no Delegated Identity API. No key is kept here: what an agent
//! tells while it is followed is wiped, and asked for again when an identity needs it.

mod delegated;
mod follow;
mod offer;
mod selectors;
mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::denial::Denial;
use super::{Reason, SourceError, SvidSource};
use crate::grpc::Channel;
use crate::identity::{Bundle, SpiffeId, Svid, TrustDomain};
use crate::tls::svid::{check_key, verify_svid};
use offer::Offer;
pub use selectors::{DEFAULT as DEFAULT_SELECTORS, Selectors};

/// A local process has all it needs; one that hangs must not hold a place.
const ANSWER: Duration = Duration::from_secs(10);
/// Certificates of all workloads of a node in one message.
const LARGEST_MESSAGE: usize = 64 * 1024 * 1024;
/// How many of the agent's identities an error names.
const NAMED: usize = 5;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Api {
    Workload,
    Delegated(Selectors),
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub api: Api,
    pub socket: PathBuf,
    pub trust_domain: TrustDomain,
}

/// SVIDs from an agent.
pub struct SpiffeAgent {
    settings: Settings,
    runtime: Handle,
    /// The own trust domain's bundle as it was last told.
    bundle: Mutex<Option<Bundle>>,
    /// Identities that the node wants: each is followed, where the API has them one by one.
    wanted: Mutex<BTreeSet<SpiffeId>>,
    wanted_changed: Notify,
}

impl SpiffeAgent {
    /// Within the runtime that is to make the connections. Nothing is asked for yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            runtime: Handle::current(),
            bundle: Mutex::default(),
            wanted: Mutex::default(),
            wanted_changed: Notify::new(),
        }
    }

    async fn connect(&self) -> Result<Channel, Denial> {
        let connected = Channel::unix(&self.settings.socket).await.map_err(|error| {
            format!("cannot connect: {error}; does it run, and may this daemon use its socket?")
        });
        connected.map_err(Denial::new(Reason::Unreachable))
    }

    async fn ask(&self, id: &SpiffeId) -> Result<Offer, Denial> {
        let channel = self.connect().await?;
        match &self.settings.api {
            Api::Workload => workload::fetch(channel).await,
            Api::Delegated(selectors) => delegated::fetch(channel, selectors.of(id)?).await,
        }
    }

    /// The SVID for `id` out of what the agent gives, if it is one.
    fn pick(&self, id: &SpiffeId, offer: Offer) -> Result<(Svid, Bundle), Denial> {
        let given = given(&offer);
        let missing = Reason::of_missing(&offer.problems);
        let found = offer.svids.into_iter().find(|offered| offered.id == *id);
        let absent = || format!("it gives no SVID for {id}; {given}");
        let mut found = found.ok_or_else(absent).map_err(Denial::new(missing))?;
        let bundle = Bundle::new(self.settings.trust_domain.clone(), found.bundle);
        let bundles = std::slice::from_ref(&bundle);
        let expected = std::slice::from_ref(id);
        let facts = verify_svid(&found.chain, bundles, Some(expected), SystemTime::now())
            .map_err(|why| format!("the SVID that it gives is not usable: {why}"))?;
        let key = std::mem::take(&mut *found.key);
        let svid = Svid {
            id: facts.id,
            serial: crate::identity::revocations::normal_serial(&facts.serial),
            not_before: facts.not_before,
            not_after: facts.not_after,
            chain: found.chain,
            key: rustls_pki_types::PrivatePkcs8KeyDer::from(key).into(),
        };
        check_key(&svid.chain, &svid.key).map_err(|why| why.to_string())?;
        *lock(&self.bundle) = Some(bundle.clone());
        Ok((svid, bundle))
    }

    fn named(&self, why: &str) -> String {
        format!("the agent at {}: {why}", self.settings.socket.display())
    }
}

/// What an agent gives instead of what was asked for.
fn given(offer: &Offer) -> String {
    let names: BTreeSet<&str> = offer.svids.iter().map(|it| it.id.as_str()).collect();
    let more = names.len().saturating_sub(NAMED);
    let shown: Vec<&str> = names.into_iter().take(NAMED).collect();
    let mut text = match shown[..] {
        [] => "it gives none at all".to_owned(),
        _ => format!("it gives {}", shown.join(", ")),
    };
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    for problem in &offer.problems {
        text.push_str(&format!("; not usable: {problem}"));
    }
    text + ": is there a registration entry for it?"
}

impl SvidSource for SpiffeAgent {
    fn issue(&self, id: &SpiffeId) -> Result<Svid, SourceError> {
        Ok(self.obtain(id)?.0)
    }

    fn bundle(&self) -> Result<Bundle, SourceError> {
        let bundle = lock(&self.bundle).clone();
        bundle.ok_or_else(|| SourceError::Other(self.named("it has told no bundle yet")))
    }

    fn obtain(&self, id: &SpiffeId) -> Result<(Svid, Bundle), SourceError> {
        if lock(&self.wanted).insert(id.clone()) {
            self.wanted_changed.notify_one();
        }
        if id.trust_domain() != self.settings.trust_domain.as_str() {
            let why = format!("{id} is not of the trust domain {}", self.settings.trust_domain);
            return Err(SourceError::Other(why));
        }
        // On a thread for blocking work; the connection itself is the runtime's.
        let asked = async {
            tokio::time::timeout(ANSWER, self.ask(id)).await.unwrap_or_else(|_| {
                let text = format!("no answer within {} s", ANSWER.as_secs());
                Err(Denial { reason: Reason::Timeout, text })
            })
        };
        let offer = self.runtime.block_on(asked);
        let picked = offer.and_then(|offer| self.pick(id, offer));
        Ok(picked.map_err(|denial| denial.said(|why| self.named(why)))?)
    }

    fn makes(&self) -> bool {
        false
    }

    fn retain(&self, ids: &BTreeSet<SpiffeId>) {
        lock(&self.wanted).retain(|id| ids.contains(id));
        self.wanted_changed.notify_one();
    }

    fn name(&self) -> &'static str {
        match self.settings.api {
            Api::Workload => "spiffe",
            Api::Delegated(_) => "spiffe (delegated)",
        }
    }
}

/// Bundles of other trust domains, the last that were told.
type Others = BTreeMap<TrustDomain, Bundle>;

fn refusal(status: &tonic::Status) -> Denial {
    let hint = match status.code() {
        tonic::Code::PermissionDenied => {
            ": is there a registration entry for this daemon itself, and may it do this?"
        }
        tonic::Code::Unimplemented => ": is this the socket of that API?",
        _ => "",
    };
    Denial::status(status, hint)
}

/// `unix:///PATH`, `unix:/PATH` or the path itself (Workload Endpoint §4). TCP is refused: keys would
/// cross it in the clear.
///
/// # Errors
/// What is wrong with it.
pub fn socket(text: &str) -> Result<PathBuf, String> {
    let path = match text.split_once(':') {
        Some(("unix", rest)) => rest.strip_prefix("//").unwrap_or(rest),
        Some((scheme, _)) if !text.starts_with('/') => {
            return Err(format!("{scheme}: is not supported, only Unix sockets: unix:///PATH"));
        }
        _ => text,
    };
    match Path::new(path) {
        path if path.is_absolute() && !text.contains(['?', '#']) => Ok(path.to_owned()),
        _ => Err(format!("{text:?} is no absolute path of a socket: unix:///PATH")),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is replaced whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
