//! Bundles of other trust domains, from where the operator says (policy.md 6.3).
//!
//! Which trust domain a bundle is of is said by the configuration and never by the document. Bundles
//! are never merged: a CA speaks for the domain that its bundle was configured for. Nothing is trusted
//! that was never had; what was had once is kept on disk.

mod endpoint;
mod kept;
mod origin;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::spiffe_bundle::DEFAULT_REFRESH;
use super::{Bundle, SpiffeBundle, TrustDomain};
use crate::tls::Federated;
use crate::tls::svid::check_bundle;
use kept::Kept;
pub use origin::{Endpoint, Origin};

/// However short a hint: the owner of a bundle does not set our load.
const SHORTEST_REFRESH: Duration = Duration::from_secs(1);
/// However long: a root that was taken away must not stay for weeks.
const LONGEST_REFRESH: Duration = Duration::from_secs(24 * 3600);

/// What to do about other trust domains.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub domains: BTreeMap<TrustDomain, Origin>,
    /// Who signs for endpoints' servers; None: the system's authorities.
    pub endpoint_ca: Option<PathBuf>,
    /// Own trust domain and aliases, which nobody else delivers.
    pub own: Vec<TrustDomain>,
    pub state_dir: PathBuf,
}

/// The trust domains that this node believes beside its own.
#[derive(Debug)]
pub struct Federation {
    settings: Settings,
    state: Mutex<State>,
    trust: Arc<Federated>,
}

#[derive(Debug, Default)]
struct State {
    configured: BTreeMap<TrustDomain, Known>,
    /// By the source of SVIDs.
    delivered: Vec<Bundle>,
    published: Vec<Bundle>,
}

#[derive(Debug, Default)]
struct Known {
    /// None: nothing is trusted.
    bundle: Option<SpiffeBundle>,
    /// When it was last read or fetched.
    confirmed: Option<SystemTime>,
    last_error: Option<String>,
    unkept: Option<Unkept>,
}

/// A bundle that is in force and could not be written.
#[derive(Debug)]
struct Unkept {
    document: Vec<u8>,
    why: String,
    tried: Instant,
}

/// One other trust domain, for `status`.
#[derive(Debug, Clone)]
pub struct FederatedStatus {
    pub trust_domain: TrustDomain,
    pub origin: String,
    pub authorities: usize,
    pub sequence: Option<u64>,
    pub confirmed: Option<SystemTime>,
    pub last_error: Option<String>,
}

impl Federation {
    /// What was kept is in force at once, files are read. `trust`: what verifiers ask.
    pub fn new(settings: Settings, trust: Arc<Federated>) -> Arc<Self> {
        let configured =
            settings.domains.keys().map(|domain| (domain.clone(), Known::default())).collect();
        let state = State { configured, ..State::default() };
        let new = Self { settings, state: Mutex::new(state), trust };
        for (domain, origin) in &new.settings.domains {
            if let Some(kept) = Kept::read(&new.settings.state_dir, domain) {
                let mut state = new.state();
                if let Some(known) = state.configured.get_mut(domain) {
                    (known.bundle, known.confirmed) = (Some(kept.bundle), Some(kept.confirmed));
                }
            }
            if let Origin::File(path) = origin {
                new.took(domain, origin::read_file(path));
            }
        }
        new.publish();
        Arc::new(new)
    }

    /// Keeps every configured bundle up to date. Never ends, unless nothing is configured.
    pub async fn run(self: Arc<Self>) {
        let mut tasks = tokio::task::JoinSet::new();
        for (domain, origin) in self.settings.domains.clone() {
            let federation = self.clone();
            tasks.spawn(async move {
                match origin {
                    Origin::File(path) => federation.follow_file(&domain, path).await,
                    Origin::Web(endpoint) => federation.follow_endpoint(&domain, &endpoint).await,
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    }

    /// What the source of SVIDs trusts beside its own trust domain: these and no others from now on.
    /// A domain that is configured here is not taken from it.
    pub fn deliver(&self, bundles: Vec<Bundle>) {
        let mine = |bundle: &Bundle| {
            !self.settings.own.contains(&bundle.trust_domain)
                && !self.settings.domains.contains_key(&bundle.trust_domain)
        };
        let usable = |bundle: &Bundle| match check_bundle(bundle) {
            Ok(()) => true,
            Err(error) => {
                let trust_domain = &bundle.trust_domain;
                tracing::error!(%trust_domain, %error, "a delivered bundle is not used");
                false
            }
        };
        let delivered = bundles.into_iter().filter(|it| mine(it) && usable(it)).collect();
        self.state().delivered = delivered;
        self.publish();
    }

    pub fn status(&self) -> Vec<FederatedStatus> {
        let state = self.state();
        let configured = state.configured.iter().map(|(domain, known)| FederatedStatus {
            trust_domain: domain.clone(),
            origin: self.settings.domains.get(domain).map(ToString::to_string).unwrap_or_default(),
            authorities: known.bundle.as_ref().map_or(0, |it| it.bundle.anchors.len()),
            sequence: known.bundle.as_ref().and_then(|it| it.sequence),
            confirmed: known.confirmed,
            last_error: known
                .last_error
                .clone()
                .or_else(|| known.unkept.as_ref().map(|it| it.why.clone())),
        });
        let delivered = state.delivered.iter().map(|bundle| FederatedStatus {
            trust_domain: bundle.trust_domain.clone(),
            origin: "the source of SVIDs".to_owned(),
            authorities: bundle.anchors.len(),
            sequence: None,
            confirmed: None,
            last_error: None,
        });
        configured.chain(delivered).collect()
    }

    /// What reading or fetching brought. An error leaves what is there.
    fn took(&self, domain: &TrustDomain, result: Result<Option<Vec<u8>>, String>) {
        let now = SystemTime::now();
        let mut to_keep = None;
        let result = result.and_then(|document| match document {
            Some(document) => {
                let news = self.accept(domain, &document, now)?;
                to_keep = Some((document, news));
                Ok(())
            }
            None => self.withdraw(domain),
        });
        let mut state = self.state();
        let Some(known) = state.configured.get_mut(domain) else { return };
        let error = result.err();
        // Once for each fault, not at every attempt.
        if let Some(error) = &error
            && known.last_error.as_ref() != Some(error)
        {
            let authorities = known.bundle.as_ref().map_or(0, |it| it.bundle.anchors.len());
            tracing::error!(trust_domain = %domain, authorities, %error,
                "no new bundle of another trust domain; so many authorities go on being believed");
        }
        known.last_error = error;
        drop(state);
        self.publish();
        // In force first: a disk that is full does not bring back what was taken away.
        if let Some((document, news)) = to_keep {
            self.keep(domain, document, news);
        }
    }

    /// Writes what is in force.
    fn keep(&self, domain: &TrustDomain, document: Vec<u8>, news: bool) {
        let (kept, again) = {
            let state = self.state();
            let Some(known) = state.configured.get(domain) else { return };
            let (Some(bundle), Some(confirmed)) = (known.bundle.clone(), known.confirmed) else {
                return;
            };
            (Kept { bundle, confirmed }, known.unkept.is_some())
        };
        let error = kept.write(&self.settings.state_dir, &document, news || again).err();
        let unkept = error.map(|error| {
            let file = kept::path(&self.settings.state_dir, domain);
            let why = format!(
                "it is in force and cannot be kept in {} for a restart: {error}",
                file.display()
            );
            Unkept { document, why, tried: Instant::now() }
        });
        if let Some(Unkept { why, .. }) = &unkept
            && !again
        {
            tracing::error!(trust_domain = %domain, "the bundle of another trust domain: {why}");
        }
        if let Some(known) = self.state().configured.get_mut(domain) {
            known.unkept = unkept;
        }
    }

    /// Once a minute, what could not be written. Blocks.
    fn keep_again(&self, domain: &TrustDomain) {
        let document = {
            let state = self.state();
            let unkept = state.configured.get(domain).and_then(|known| known.unkept.as_ref());
            let due = unkept.filter(|it| it.tried.elapsed() >= kept::CONFIRM);
            due.map(|it| it.document.clone())
        };
        if let Some(document) = document {
            self.keep(domain, document, true);
        }
    }

    /// True: it is another one.
    fn accept(
        &self,
        domain: &TrustDomain,
        document: &[u8],
        now: SystemTime,
    ) -> Result<bool, String> {
        let new = origin::parse(domain, document)?;
        check_bundle(&new.bundle).map_err(|error| error.to_string())?;
        let file = kept::path(&self.settings.state_dir, domain);
        let before = self.state().configured.get(domain).and_then(|known| known.bundle.clone());
        if let Some(before) = &before
            && !new.succeeds(before)
        {
            let number = |it: Option<u64>| it.map_or("none".to_owned(), |it| it.to_string());
            return Err(format!(
                "its spiffe_sequence is {}, and that of the one in use is {}: an older document is \
                 refused; if its owner began anew, remove {} and restart",
                number(new.sequence),
                number(before.sequence),
                file.display()
            ));
        }
        let news = before.as_ref().is_none_or(|before| *before != new);
        if news {
            let authorities = new.bundle.anchors.len();
            tracing::info!(trust_domain = %domain, authorities, sequence = new.sequence,
                "a new bundle of another trust domain");
        }
        if let Some(known) = self.state().configured.get_mut(domain) {
            (known.bundle, known.confirmed) = (Some(new), Some(now));
        }
        Ok(news)
    }

    /// Its file is gone: so is the trust. Nothing is kept of it, and a new one may begin anew.
    fn withdraw(&self, domain: &TrustDomain) -> Result<(), String> {
        kept::remove(&self.settings.state_dir, domain);
        if let Some(known) = self.state().configured.get_mut(domain) {
            (known.bundle, known.confirmed, known.unkept) = (None, None, None);
        }
        Err("the file is not there: nobody of this trust domain is believed".to_owned())
    }

    /// How long until the owner of `domain` wants to be asked again.
    fn refresh_after(&self, domain: &TrustDomain) -> Duration {
        let state = self.state();
        let bundle = state.configured.get(domain).and_then(|known| known.bundle.as_ref());
        let hint = bundle.and_then(|bundle| bundle.refresh_hint).filter(|hint| !hint.is_zero());
        hint.unwrap_or(DEFAULT_REFRESH).clamp(SHORTEST_REFRESH, LONGEST_REFRESH)
    }

    fn publish(&self) {
        let mut state = self.state();
        let empty = |domain: &TrustDomain| Bundle::new(domain.clone(), Vec::new());
        let configured = state.configured.iter().map(|(domain, known)| match &known.bundle {
            Some(known) => known.bundle.clone(),
            // Named all the same, so that a refusal says which bundle is missing.
            None => empty(domain),
        });
        let bundles: Vec<Bundle> = configured.chain(state.delivered.iter().cloned()).collect();
        if bundles == state.published {
            return;
        }
        match self.trust.replace(&bundles) {
            Ok(()) => state.published = bundles,
            // Each was checked before.
            Err(error) => tracing::error!(%error, "federated bundles are not in force"),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Replaced whole; what a panic leaves is a valid state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
