//! The node's own SVID: brought by a join token once, renewed with itself from then on, and kept on
//! disk, for a restarted daemon has no second token.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::OwnedMutexGuard;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::client::Client;
use super::join_key::{self, JoinKeys};
use super::trust::{Trust, certificates};
use super::{ANSWER, Denial, NAME, Reason, Settings, SourceError, read_token};
use crate::identity::ca::files;
use crate::identity::revocations::normal_serial;
use crate::identity::slot::{Warned, half_life, longest_retry, retry_after};
use crate::identity::{KeyType, NodeName, SpiffeId, Svid, SvidStatus};
use crate::tls::svid::issuer;

/// How soon a node without an SVID tries again to reach its CA, for whoever wants one. A token that reached
/// it is sent again ever more seldom: the CA counts, and writes down each time.
const REACH: Duration = Duration::from_secs(1);

pub(super) struct NodeSvid {
    id: SpiffeId,
    join_token: Option<PathBuf>,
    join_keys: Arc<JoinKeys>,
    key_type: KeyType,
    file: PathBuf,
    client: Arc<Client>,
    trust: Arc<Trust>,
    state: Mutex<State>,
    /// Held while a new one is asked for: a token is spent once.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Held while the file is written.
    writing: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    failures: u32,
    rest: Option<Rest>,
    /// Of the latest attempt, if that failed.
    last_error: Option<String>,
    /// It is not on disk yet.
    unwritten: bool,
    /// Why it could not be written.
    unkept: Option<String>,
    warned: Warned,
}

/// After a failure the CA is not asked before this time, unless something else is there by then.
struct Rest {
    until: Instant,
    roots: Vec<CertificateDer<'static>>,
    /// Where there was no SVID: with what it was tried, and what those hear who want it meanwhile.
    joining: Option<(Option<String>, Denial)>,
}

struct Held {
    svid: Arc<Svid>,
    /// None: it is from an earlier run.
    fresh: Option<Fresh>,
}

/// What is known of an SVID that this run got.
struct Fresh {
    /// The CA's roots at the time. With other ones the SVID may soon be one that the CA does not know
    /// any more.
    roots: Vec<CertificateDer<'static>>,
    /// Not what its certificate says: that begins before it was issued.
    issued: SystemTime,
    half_life: SystemTime,
}

/// What there is to show.
enum Own {
    Good(Arc<Svid>),
    /// Valid, and a new one is due.
    Due(Arc<Svid>),
    Missing,
}

impl NodeSvid {
    pub(super) fn new(
        name: &NodeName,
        join_token: Option<PathBuf>,
        settings: &Settings,
        client: Arc<Client>,
        trust: Arc<Trust>,
    ) -> Result<Self, SourceError> {
        let id = name.id(&settings.trust_domain);
        let id = id.map_err(|error| SourceError::Other(error.to_string()))?;
        let file = settings.state_dir.join("node-svid.pem");
        let join_keys = Arc::new(JoinKeys::new(&settings.state_dir));
        let key_type = settings.key_type;
        let (state, turn) = (Mutex::default(), Arc::default());
        let writing = Arc::default();
        Ok(Self { id, join_token, join_keys, key_type, file, client, trust, state, turn, writing })
    }

    /// One that is valid; renewed after half of its life, when the CA's roots changed, and by each run.
    /// Nobody waits for a renewal that somebody else has begun.
    pub(super) async fn current(self: &Arc<Self>) -> Result<Arc<Svid>, Denial> {
        self.get(true).await
    }

    /// The same, and a valid one at once: it is renewed meanwhile.
    pub(super) async fn at_hand(self: &Arc<Self>) -> Result<Arc<Svid>, Denial> {
        self.get(false).await
    }

    async fn get(self: &Arc<Self>, wait: bool) -> Result<Arc<Svid>, Denial> {
        let turn = match self.own()? {
            Own::Good(svid) => {
                self.keep().await;
                return Ok(svid);
            }
            Own::Due(svid) => match self.turn.clone().try_lock_owned() {
                Ok(turn) if wait => turn,
                Ok(turn) => {
                    // What becomes of it is said there.
                    drop(tokio::spawn(self.clone().renew(turn)));
                    return Ok(svid);
                }
                Err(_) => return Ok(svid),
            },
            Own::Missing => self.turn.clone().lock_owned().await,
        };
        // Goes on when whoever asked has given up: a token is spent once.
        let renewing = tokio::spawn(self.clone().renew(turn));
        renewing.await.map_err(|error| Denial::from(error.to_string()))?
    }

    fn own(&self) -> Result<Own, Denial> {
        let (anchors, now) = (self.trust.anchors()?, SystemTime::now());
        let mut state = self.state();
        if state.held.is_none() {
            let svid = read(&self.file, &self.id)?;
            state.held = svid.map(|svid| Held { svid: Arc::new(svid), fresh: None });
        }
        let held = state.held.as_ref().filter(|held| held.svid.not_after > now);
        let rest = state.rest.as_ref();
        let rest = rest.filter(|it| Instant::now() < it.until && it.roots == anchors);
        let Some(Held { svid, fresh }) = held else {
            let joining = rest.and_then(|rest| rest.joining.as_ref());
            return match joining {
                Some((token, why)) if *token == self.token() => Err(why.clone()),
                _ => Ok(Own::Missing),
            };
        };
        // One that begins later is from when both clocks were ahead.
        let good = |it: &Fresh| (svid.not_before..it.half_life).contains(&now);
        let young = fresh.as_ref().is_some_and(|it| it.roots == anchors && good(it));
        Ok(if young || rest.is_some() { Own::Good(svid.clone()) } else { Own::Due(svid.clone()) })
    }

    /// Which join token there is now.
    fn token(&self) -> Option<String> {
        let token = self.join_token.as_ref().and_then(|file| read_token(file).ok());
        token.map(|token| join_key::digest(&token))
    }

    async fn renew(self: Arc<Self>, _turn: OwnedMutexGuard<()>) -> Result<Arc<Svid>, Denial> {
        let old = match self.own()? {
            // Whoever had the turn before has brought it.
            Own::Good(svid) => return Ok(svid),
            Own::Due(svid) => Some(svid),
            Own::Missing => None,
        };
        // Before it is asked with: another one is tried at once.
        let (token, mut sent) = (self.token(), false);
        let asked = tokio::time::timeout(ANSWER, async {
            match &old {
                Some(svid) => match self.ask(Some(svid), &mut sent).await {
                    // A CA that does not know our SVID any more may know a new token.
                    Err(error) if self.join_token.as_ref().is_some_and(|token| token.exists()) => {
                        self.ask(None, &mut sent).await.map_err(|_| error)
                    }
                    asked => asked,
                },
                None => self.ask(None, &mut sent).await,
            }
        });
        let asked = asked.await.unwrap_or_else(|_| {
            let text = format!("no answer within {} s", ANSWER.as_secs());
            Err(Denial { reason: Reason::Timeout, text })
        });
        match asked {
            Ok((svid, roots)) => {
                let svid = Arc::new(svid);
                let issued = SystemTime::now();
                let half_life = half_life(svid.not_after, issued);
                let fresh = Some(Fresh { roots, issued, half_life });
                *self.state() = State {
                    held: Some(Held { svid: svid.clone(), fresh }),
                    // In use from memory already: what brought it is spent.
                    unwritten: true,
                    ..State::default()
                };
                tracing::info!(node = %self.id, serial = svid.serial, "the node's own SVID");
                self.keep().await;
                Ok(svid)
            }
            Err(denial) => match old {
                Some(old) => self.not_renewed(denial, old),
                None => Err(self.not_joined(denial, token, sent)),
            },
        }
    }

    fn not_joined(&self, denial: Denial, token: Option<String>, sent: bool) -> Denial {
        let Denial { reason, text: error } = denial;
        let way_out = match &self.join_token {
            // Spent, most likely: it was good for the SVID that has ended.
            Some(file) if reason == Reason::Refused => format!(
                "; a new token in {} lets it join again (`mtls-daemon ca token create`)",
                file.display()
            ),
            _ => String::new(),
        };
        let text = format!("no SVID for the node itself: {error}{way_out}");
        let denial = Denial { reason, text };
        let roots = match self.trust.anchors() {
            Ok(roots) => roots,
            Err(error) => return error.into(),
        };
        let mut state = self.state();
        state.last_error = Some(error);
        let most = if sent { longest_retry(None) } else { REACH };
        let retry = retry_after(state.failures, most);
        let (until, joining) = (Instant::now() + retry.wait, Some((token, denial.clone())));
        state.rest = Some(Rest { until, roots, joining });
        state.failures = retry.failures;
        denial
    }

    fn not_renewed(&self, denial: Denial, old: Arc<Svid>) -> Result<Arc<Svid>, Denial> {
        let anchors = self.trust.anchors()?;
        let mut state = self.state();
        let Denial { text: error, .. } = denial;
        state.last_error = Some(error.clone());
        let left = old.not_after.duration_since(SystemTime::now()).ok();
        let retry = retry_after(state.failures, longest_retry(left));
        let until = Instant::now() + retry.wait;
        state.rest = Some(Rest { until, roots: anchors, joining: None });
        // Once for each outage, not every time.
        if state.failures == 0 {
            tracing::warn!(%error, "the node's own SVID is not renewed yet");
        }
        state.failures = retry.failures;
        Ok(old)
    }

    /// Writes it, if that has not been done.
    async fn keep(self: &Arc<Self>) {
        // Whoever has a good one comes here as well, and a file is written by one at a time.
        let writing = self.writing.clone().lock_owned().await;
        let svid = {
            let state = self.state();
            if !state.unwritten {
                return;
            }
            state.held.as_ref().map(|held| held.svid.clone())
        };
        let Some(svid) = svid else { return };
        let (file, new, keys) = (self.file.clone(), svid.clone(), self.join_keys.clone());
        let written = tokio::task::spawn_blocking(move || {
            // Until it is done, also when nobody waits for that any more.
            let _writing = writing;
            write(&file, &new)?;
            keys.forget();
            Ok(())
        });
        let written = written.await;
        let error = written.unwrap_or_else(|error| Err(error.to_string())).err();
        let unkept = error.map(|error| {
            format!(
                "it is in use and cannot be kept, and a restart needs a new join token: {error}"
            )
        });
        let mut state = self.state();
        if state.held.as_ref().is_none_or(|held| !Arc::ptr_eq(&held.svid, &svid)) {
            return;
        }
        if let Some(error) = &unkept
            && state.unkept != unkept
        {
            tracing::error!(node = %self.id, "the node's own SVID: {error}");
        }
        (state.unwritten, state.unkept) = (unkept.is_some(), unkept);
    }

    /// With the roots that came with it.
    async fn ask(
        &self,
        own: Option<&Svid>,
        sent: &mut bool,
    ) -> Result<(Svid, Vec<CertificateDer<'static>>), Denial> {
        let credential = Denial::new(Reason::Credential);
        let (token, key) = match (own, &self.join_token) {
            (Some(_), _) => (None, None),
            (None, Some(path)) => {
                let token = read_token(path).map_err(credential)?;
                let (keys, text, key_type) = (self.join_keys.clone(), token.clone(), self.key_type);
                let key = tokio::task::spawn_blocking(move || keys.of(&text, key_type)).await;
                (Some(token), Some(key.map_err(|error| error.to_string())??))
            }
            (None, None) => {
                return Err(credential(
                    "there is none from before, and no join token: make one with \
                            `mtls-daemon ca token create` and give it with --ca-join-token-file"
                        .to_owned(),
                ));
            }
        };
        let channel = self.client.connect(&self.trust, own).await?;
        *sent = true;
        let answer = self.client.certificate(channel, &self.id, None, token, key).await?;
        let roots = certificates(&answer.roots)?;
        let (trust, said) = (self.trust.clone(), answer.roots);
        // Whatever becomes of them: a join is not repeated.
        let learned = tokio::task::spawn_blocking(move || trust.learn(&said)).await;
        if let Err(error) = learned.unwrap_or_else(|error| Err(error.to_string())) {
            tracing::error!(%error, "the CA's roots are not taken over");
        }
        Ok((answer.svid, roots))
    }

    /// For `status`.
    pub(super) fn status(&self) -> SvidStatus {
        let state = self.state();
        let svid = state.held.as_ref().map(|held| &held.svid);
        let rest = state
            .rest
            .as_ref()
            .map(|rest| SystemTime::now() + rest.until.saturating_duration_since(Instant::now()));
        let due = state.held.as_ref().map(|held| {
            let due = held.fresh.as_ref().map_or(SystemTime::now(), |fresh| fresh.half_life);
            rest.map_or(due, |rest| rest.max(due))
        });
        let due = due.or(rest);
        SvidStatus {
            id: self.id.clone(),
            serial: svid.map(|svid| svid.serial.clone()),
            issuer: svid.map(|svid| issuer(&svid.chain)),
            not_before: svid.map(|svid| svid.not_before),
            not_after: svid.map(|svid| svid.not_after),
            next_renewal: due,
            last_error: state.last_error.clone().or_else(|| state.unkept.clone()),
            source: NAME,
        }
    }

    /// Says once that it nears its end without a successor, and once that it has come to it.
    pub(super) fn warn_of_expiry(&self, now: SystemTime) {
        let mut state = self.state();
        let Some(Held { svid, fresh }) = &state.held else { return };
        let begin = fresh.as_ref().map_or(svid.not_before, |fresh| fresh.issued);
        let life = svid.not_after.duration_since(begin).unwrap_or_default();
        let left = svid.not_after.duration_since(now).unwrap_or_default();
        let Some(due) = state.warned.next(left, life) else { return };
        let error = state.last_error.as_deref().unwrap_or("no attempt has failed");
        let (node, serial) = (&self.id, &svid.serial);
        if due == Warned::HasEnded {
            tracing::error!(
                %node, serial, error,
                "the node's own SVID has expired: it needs a new join token to get certificates again"
            );
        } else {
            let left_s = left.as_secs();
            tracing::warn!(
                %node, serial, left_s, error,
                "the node's own SVID expires soon, and there is no new one; after its end the node \
                 needs a new join token"
            );
        }
        state.warned = due;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every state that a panic can leave is a valid one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// None: there is none, or another node's.
fn read(file: &Path, id: &SpiffeId) -> Result<Option<Svid>, String> {
    let Some(text) = files::read_private(file).map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    let spoilt = |why: String| format!("{} cannot be used: {why}; remove it", file.display());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let chain = chain.map_err(|error| spoilt(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(text.as_bytes());
    let key = key.map_err(|error| spoilt(error.to_string()))?;
    let leaf = chain.first().ok_or_else(|| spoilt("it has no certificate".to_owned()))?;
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|error| spoilt(error.to_string()))?;
    let named = leaf.subject_alternative_name().ok().flatten().is_some_and(|names| {
        let own = x509_parser::extensions::GeneralName::URI(id.as_str());
        names.value.general_names.contains(&own)
    });
    if !named {
        tracing::warn!(file = %file.display(), node = %id, "the SVID there is another node's");
        return Ok(None);
    }
    let serial = normal_serial(&leaf.serial.to_str_radix(16));
    let not_before = leaf.validity().not_before.to_datetime().into();
    let not_after = leaf.validity().not_after.to_datetime().into();
    Ok(Some(Svid { id: id.clone(), chain: chain.clone(), key, serial, not_before, not_after }))
}

fn write(file: &Path, svid: &Svid) -> Result<(), String> {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    let block =
        |tag, der: &[u8]| Zeroizing::new(pem::encode_config(&pem::Pem::new(tag, der), config));
    // Room for all of it: a string that grows leaves pieces of the key behind.
    let mut text = Zeroizing::new(String::with_capacity(64 * 1024));
    text.push_str(&block("PRIVATE KEY", svid.key.secret_der()));
    for certificate in &svid.chain {
        text.push_str(&block("CERTIFICATE", certificate));
    }
    files::write_private(file, text.as_bytes()).map_err(|error| error.to_string())
}
