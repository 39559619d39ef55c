//! The CA itself: who asks, for whom, and the certificate.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use rcgen::PublicKeyData;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::allow::{self, AccountName, Pods};
use super::audit::{Audit, Entry};
use super::authenticate::{Authenticator, Caller, Credentials, Purpose, join, node};
use super::nodes::{self, Node, Nodes};
use super::rate::Rates;
use super::revoke::{self, Held};
use super::signing::{Signing, Source, pem_of};
use super::state::Watched;
use super::token::UsedUp;
use super::unexpired::Unexpired;
use super::{Refusal, StateDir, csr, domain, issued, roots, seconds, token};
use crate::identity::KeyType;
use crate::identity::ca::sealed::SealingKey;
use crate::identity::ca::{CaError, Signed, Subject};
use crate::identity::source::istio_ca;
use crate::identity::{NodeName, SpiffeId, TrustDomain};

/// Requests of callers who are known, waiting for a processor; one more is told to come back.
pub(super) const WAITING: u32 = 4096;

/// Requests with a token that nobody has looked at: they take no place from those who are known.
pub(super) const STRANGERS: u32 = 2048;
/// So many of those are looked at at a time: it takes files, or an API server.
const LOOKED_AT: usize = 64;

/// How long a request waits for its turn: whoever asked has an answer soon after, and nothing is signed
/// for somebody who was told that the CA is busy, or has given up. It may have to wait twice.
const QUEUE: Duration = Duration::from_secs(5);
const _: () = assert!(2 * QUEUE.as_secs() < istio_ca::ANSWER.as_secs());

/// How long a signed revocation list is handed out before it is signed again.
const SIGN_AGAIN: Duration = Duration::from_secs(2);

pub struct Settings {
    pub directory: PathBuf,
    pub trust_domain: TrustDomain,
    /// None: roots of its own.
    pub plugged_in: Option<PathBuf>,
    /// Of a root that has to be made.
    pub key_type: KeyType,
    pub sealing: Option<SealingKey>,
    pub dns_names: Vec<String>,
    pub default_lifetime: Duration,
    pub max_lifetime: Duration,
    /// Service accounts that may ask for the pods on their own node.
    pub trusted_accounts: BTreeSet<AccountName>,
}

pub struct Ca {
    settings: Settings,
    source: Source,
    directory: Arc<StateDir>,
    signing: ArcSwap<Signing>,
    authenticators: Vec<Box<dyn Authenticator>>,
    pods: Option<Arc<dyn Pods>>,
    audit: Audit,
    nodes: Watched<Nodes>,
    revoked: Watched<Held>,
    list: Mutex<Option<SignedList>>,
    pub(super) rates: Rates,
    pub(super) unexpired: Unexpired,
    processors: Semaphore,
    pub(super) waiting: Semaphore,
    pub(super) strangers: Semaphore,
    looked_at: Semaphore,
    /// All that is answered and written down at the moment; its permits are those that are not.
    unfinished: Semaphore,
}

/// More than can be under way: for [`Ca::finished`] to take at once.
const ALL: u32 = 1 << 20;

/// What a request asks for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub csr: String,
    /// In seconds; nothing and less is the default.
    pub lifetime: i64,
    /// The identity that a node asks for on a workload's behalf.
    pub impersonated: Option<String>,
}

/// Whom the certificate is for, and what has to be done before it is handed out.
struct Grant {
    id: SpiffeId,
    /// Who answers for it: revoked with this node.
    node: Option<NodeName>,
    token: Option<String>,
    /// Of the certificate that the caller showed.
    shown: Option<String>,
}

#[derive(Clone)]
pub struct SignedList {
    pub list: Vec<u8>,
    pub signature: Vec<u8>,
    /// With whose key: what else there is by now does not fit the signature.
    pub signing: Arc<Signing>,
    number: u64,
    signed: SystemTime,
}

impl Ca {
    /// Makes the first root if there is none.
    pub fn open(settings: Settings, audit: Audit, now: SystemTime) -> Result<Self, CaError> {
        let directory = Arc::new(StateDir::open(&settings.directory)?);
        domain::keep(&directory, &settings.trust_domain)?;
        let source = match &settings.plugged_in {
            Some(folder) => Source::PluggedIn(folder.clone()),
            None => Source::Own,
        };
        if matches!(source, Source::Own) {
            let Settings { trust_domain, key_type, sealing, .. } = &settings;
            roots::make(&directory, trust_domain, *key_type, sealing.as_ref(), now)?;
        }
        let unexpired = Unexpired::read(&directory, now)?;
        let signing = load(&settings, &source, &directory, now)?;
        show_anchors(&source, &directory, &signing)?;
        let authenticators: Vec<Box<dyn Authenticator>> = vec![
            Box::new(node::NodeSvid(settings.trust_domain.clone())),
            Box::new(join::JoinTokens(directory.clone())),
        ];
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            source,
            directory,
            signing: ArcSwap::from_pointee(signing),
            authenticators,
            pods: None,
            audit,
            nodes: Watched::new(nodes::FILE),
            revoked: Watched::new(revoke::FILE),
            list: Mutex::new(None),
            processors: Semaphore::new(processors),
            rates: Rates::default(),
            unexpired,
            waiting: Semaphore::new(WAITING as usize),
            strangers: Semaphore::new(STRANGERS as usize),
            looked_at: Semaphore::new(LOOKED_AT),
            unfinished: Semaphore::new(ALL as usize),
            settings,
        })
    }

    /// One more way to prove who one is, asked after those that are there.
    #[must_use]
    pub fn with_authenticator(mut self, authenticator: impl Authenticator + 'static) -> Self {
        self.authenticators.push(Box::new(authenticator));
        self
    }

    /// The cluster's pods, for which trusted node accounts may ask.
    #[must_use]
    pub fn with_pods(mut self, pods: Arc<dyn Pods>) -> Self {
        self.pods = Some(pods);
        self
    }

    pub fn signing(&self) -> Arc<Signing> {
        self.signing.load_full()
    }

    pub fn directory(&self) -> &StateDir {
        &self.directory
    }

    /// Takes over what changed in the CA's files. A fault keeps what is there. Blocking.
    pub fn refresh(&self, now: SystemTime) -> Result<(), CaError> {
        if self.signing.load().is_current(&self.source, &self.directory, now) {
            return Ok(());
        }
        let signing = load(&self.settings, &self.source, &self.directory, now)?;
        let changed = signing.anchors_pem != self.signing.load().anchors_pem;
        if changed {
            show_anchors(&self.source, &self.directory, &signing)?;
        }
        self.signing.store(Arc::new(signing));
        if changed {
            tracing::info!("the CA's roots changed");
        }
        Ok(())
    }

    /// Answers a request, and writes it down.
    ///
    /// # Errors
    /// Why there is no certificate.
    pub async fn create(
        self: &Arc<Self>,
        credentials: Credentials,
        request: Request,
    ) -> Result<Vec<String>, Refusal> {
        let _unfinished = self.unfinished.acquire().await.map_err(|_| Refusal::Busy)?;
        let mut entry = Entry { peer: Some(credentials.peer), ..Entry::default() };
        let result = self.decide(&credentials, request, &mut entry).await;
        let written = match &result {
            Ok(_) => self.audit.issued(&entry),
            Err(refusal) => self.audit.refused(&entry, &refusal.to_string()),
        };
        if let Err(error) = written {
            tracing::error!(%error, "the audit log cannot be written: no certificate is handed out");
            return Err(Refusal::Internal(format!("the audit log cannot be written: {error}")));
        }
        result
    }

    /// Resolves when nothing is being answered.
    pub async fn finished(&self) {
        // Fails only when the semaphore is closed: never.
        self.unfinished.acquire_many(ALL).await.ok();
    }

    async fn decide(
        self: &Arc<Self>,
        credentials: &Credentials,
        request: Request,
        entry: &mut Entry,
    ) -> Result<Vec<String>, Refusal> {
        entry.identity = request.impersonated.as_ref().map(|id| id.chars().take(256).collect());
        let caller = self.authenticate(credentials, Purpose::Certificate, entry).await?;
        let _waiting = self.waiting.try_acquire().map_err(|_| Refusal::Busy)?;
        let _processor = place(&self.processors).await?;
        let (ca, now, mut noted) = (self.clone(), credentials.now, entry.clone());
        let work = move || {
            let result = ca.issue(caller, &request, now, &mut noted);
            (result, noted)
        };
        let done = tokio::task::spawn_blocking(work).await;
        let (result, noted) =
            done.map_err(|error| Refusal::Internal(format!("issuing failed: {error}")))?;
        *entry = noted;
        result
    }

    /// Who asks.
    pub async fn authenticate(
        &self,
        credentials: &Credentials,
        purpose: Purpose,
        entry: &mut Entry,
    ) -> Result<Caller, Refusal> {
        let _looked_at = self.looked_at(credentials).await?;
        let mut failures = Vec::new();
        for authenticator in &self.authenticators {
            match authenticator.authenticate(credentials, purpose).await {
                Some(Ok(Caller::Node { name, .. })) if !self.still_trusts(credentials) => {
                    let why = format!("the root above the SVID of node {name} is trusted no more");
                    failures.push(format!("{}: {why}", authenticator.name()));
                }
                Some(Ok(caller)) => {
                    entry.method = Some(authenticator.name());
                    entry.caller = Some(caller.name());
                    return Ok(caller);
                }
                Some(Err(why)) => failures.push(format!("{}: {why}", authenticator.name())),
                None => {}
            }
        }
        if failures.is_empty() {
            failures.push(match credentials.bearer_token() {
                Ok(_) => "no authenticator knows this kind of token".to_owned(),
                Err(error) => format!("no client certificate, and {error}"),
            });
        }
        Err(Refusal::Unauthenticated(failures.join("; ")))
    }

    /// A place among those whose token has to be looked at. A client certificate has been verified:
    /// whoever shows nothing else needs none.
    async fn looked_at(
        &self,
        credentials: &Credentials,
    ) -> Result<Option<(SemaphorePermit<'_>, SemaphorePermit<'_>)>, Refusal> {
        if credentials.bearer_token().is_err() {
            return Ok(None);
        }
        let waiting = self.strangers.try_acquire().map_err(|_| Refusal::Busy)?;
        Ok(Some((waiting, place(&self.looked_at).await?)))
    }

    /// Whether the client's certificate would verify in a handshake of now: a connection outlives the
    /// roots that it began with.
    fn still_trusts(&self, credentials: &Credentials) -> bool {
        let client = credentials.client.as_ref();
        client.is_some_and(|client| self.signing.load().trusts(&client.chain, credentials.now))
    }

    fn lifetime(&self, asked: i64) -> Result<Duration, Refusal> {
        let Settings { default_lifetime, max_lifetime, .. } = &self.settings;
        let Ok(asked @ 1..) = u64::try_from(asked) else { return Ok(*default_lifetime) };
        if asked > max_lifetime.as_secs() {
            let most = humantime::format_duration(*max_lifetime);
            return Err(Refusal::BadRequest(format!(
                "a lifetime of {asked} seconds is asked for, at most {most} is granted"
            )));
        }
        Ok(Duration::from_secs(asked))
    }

    fn grant(&self, caller: Caller, request: &Request) -> Result<Grant, Refusal> {
        let trust_domain = &self.settings.trust_domain;
        let refuse = |error: allow::NotAllowed| Refusal::NotAllowed(error.to_string());
        let impersonated = request.impersonated.as_deref();
        let internal = |error: crate::identity::SpiffeIdError| Refusal::Internal(error.to_string());
        match (caller, impersonated) {
            (Caller::Node { name, serial }, asked) => {
                let known = self.nodes.get(&self.directory)?;
                let id = match asked {
                    Some(asked) => {
                        allow::node(&known, &name, asked, trust_domain).map_err(refuse)?
                    }
                    None if known.0.contains_key(&name) => {
                        name.id(trust_domain).map_err(internal)?
                    }
                    None => return Err(refuse(allow::NotAllowed::NodeUnknown(name))),
                };
                Ok(Grant { id, node: Some(name), token: None, shown: Some(serial) })
            }
            (Caller::Joining { .. }, Some(_)) => Err(Refusal::NotAllowed(
                "a join token is for the node's own certificate, which then asks for others".into(),
            )),
            (Caller::Joining { token_id, token }, None) => {
                let id = token.node.id(trust_domain).map_err(internal)?;
                Ok(Grant { id, node: Some(token.node), token: Some(token_id), shown: None })
            }
            (Caller::Account(account), Some(asked)) => {
                let trusted = &self.settings.trusted_accounts;
                let pods = self.pods.as_deref();
                let (id, node) =
                    allow::account(trusted, &account, asked, trust_domain, pods).map_err(refuse)?;
                Ok(Grant { id, node: NodeName::parse(&node).ok(), token: None, shown: None })
            }
            (Caller::Account(account), None) => {
                let id = SpiffeId::istio(trust_domain, &account.namespace, &account.name)
                    .map_err(|error| Refusal::NotAllowed(error.to_string()))?;
                Ok(Grant { id, node: None, token: None, shown: None })
            }
        }
    }

    /// Blocking.
    fn issue(
        &self,
        caller: Caller,
        request: &Request,
        now: SystemTime,
        entry: &mut Entry,
    ) -> Result<Vec<String>, Refusal> {
        // A join token is good for a few certificates anyhow.
        let counted = match &caller {
            Caller::Joining { .. } => None,
            caller => Some(caller.name()),
        };
        let grant = self.grant(caller, request)?;
        entry.identity = Some(grant.id.to_string());
        // First: whoever is revoked hears nothing else, and has nothing signed.
        self.refuse_revoked(&grant)?;
        let lifetime = self.lifetime(request.lifetime)?;
        let key = csr::public_key(&request.csr)
            .map_err(|error| Refusal::BadRequest(error.to_string()))?;
        if let Some(caller) = counted
            && !self.rates.take(&caller, Instant::now())
        {
            return Err(Refusal::TooMany { caller });
        }
        self.refuse_too_many(&grant, entry, now)?;
        let signing = self.signing.load_full();
        let subject = Subject { id: &grant.id, dns_names: &[] };
        let signed = signing.authority.sign(&key, subject, lifetime, now)?;
        let spki = key.subject_public_key_info();
        entry.retry = self.record(&grant, &spki, &signed, &signing.issuer, now)?;
        let lives = signed.not_after.duration_since(now).unwrap_or_default();
        entry.signed(&signed.serial, lives, signed.not_after);
        let mut chain: Vec<String> = signed.chain.iter().map(pem_of).collect();
        // All roots are one element: clients of Istio take the last for the trust anchors.
        chain.push(signing.anchors_pem.clone());
        Ok(chain)
    }

    /// What has to be true, and to be remembered, at the moment of handing out: in one turn, so that
    /// a token is used once, and a revocation that comes at the same time reaches this certificate or
    /// stops it. True: it is an answer that was given before.
    fn record(
        &self,
        grant: &Grant,
        spki: &[u8],
        signed: &Signed,
        issuer: &str,
        now: SystemTime,
    ) -> Result<bool, Refusal> {
        let turn = self.directory.turn()?;
        self.refuse_revoked(grant)?;
        let used_up = grant.token.as_ref().map(|id| {
            let used = token::Use { spki, serial: &signed.serial };
            // Once only: another token may have come in between.
            token::use_up(&turn, id, used, now, |token| {
                let mut nodes: Nodes = turn.read(nodes::FILE)?;
                let node = Node { identities: token.identities.clone(), joined: seconds(now) };
                nodes.0.insert(token.node.clone(), node);
                turn.write(nodes::FILE, &nodes)
            })
        });
        let used_up = used_up.transpose()?.transpose();
        let used_up = used_up.map_err(|error| Refusal::Unauthenticated(error.to_string()))?;
        let retry = matches!(used_up, Some(UsedUp::Again { .. }));
        if let Some(UsedUp::Again { serials }) = used_up {
            self.refuse_serials(&serials)?;
        }
        let issued = issued::Issued {
            serial: signed.serial.clone(),
            issuer: issuer.to_owned(),
            id: grant.id.to_string(),
            node: grant.node.clone(),
            not_after: seconds(signed.not_after),
        };
        issued::add(&turn, &issued)?;
        self.unexpired.add(&issued);
        if matches!(self.source, Source::Own) {
            let lives = signed.not_after.duration_since(now).unwrap_or_default();
            roots::note_lifetime(&turn, lives)?;
        }
        Ok(retry)
    }

    fn refuse_revoked(&self, grant: &Grant) -> Result<(), Refusal> {
        let revoked = self.revoked.get(&self.directory)?;
        let refuse = |what: String| Err(Refusal::NotAllowed(format!("{what} is revoked")));
        if revoked.names_identity(grant.id.as_str()) {
            return refuse(grant.id.to_string());
        }
        if let Some(node) = &grant.node
            && revoked.names_node(node)
        {
            return refuse(format!("node {node}"));
        }
        if let Some(serial) = &grant.shown
            && revoked.names_serial(serial)
        {
            return refuse(format!("the caller's certificate {serial}"));
        }
        Ok(())
    }

    fn refuse_too_many(
        &self,
        grant: &Grant,
        entry: &Entry,
        now: SystemTime,
    ) -> Result<(), Refusal> {
        let Some(node) = &grant.node else { return Ok(()) };
        let known = self.nodes.get(&self.directory)?;
        let identities = known.0.get(node).map_or(0, |node| node.identities.len());
        let caller = || entry.caller.clone().unwrap_or_default();
        let room = self.unexpired.room(node, identities, now);
        room.map_err(|most| Refusal::TooManyHeld { caller: caller(), most })
    }

    /// A key whose certificate was taken back gets no other one.
    fn refuse_serials(&self, serials: &[String]) -> Result<(), Refusal> {
        let revoked = self.revoked.get(&self.directory)?;
        match serials.iter().find(|serial| revoked.names_serial(serial)) {
            Some(serial) => Err(Refusal::NotAllowed(format!(
                "the certificate {serial} that the join token brought is revoked"
            ))),
            None => Ok(()),
        }
    }

    /// Whether a caller that was known when it connected has been revoked since.
    pub fn check_caller(&self, caller: &Caller) -> Result<(), Refusal> {
        let Caller::Node { name, serial } = caller else { return Ok(()) };
        let revoked = self.revoked.get(&self.directory)?;
        if revoked.names_node(name) || revoked.names_serial(serial) {
            return Err(Refusal::NotAllowed(format!("node {name} is revoked")));
        }
        Ok(())
    }

    /// The revocation list, signed not long ago. Blocking.
    pub fn signed_list(&self, now: SystemTime) -> Result<SignedList, CaError> {
        let held = self.revoked.get(&self.directory)?;
        let signing = self.signing.load_full();
        let mut cached = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(list) = &*cached
            && list.number == held.number
            && Arc::ptr_eq(&list.signing, &signing)
            && now.duration_since(list.signed).is_ok_and(|age| age < SIGN_AGAIN)
        {
            return Ok(list.clone());
        }
        let list = serde_json::to_vec(&held.list(&self.settings.trust_domain, now))
            .map_err(|error| CaError::Sign(error.to_string()))?;
        let signed = SignedList {
            signature: signing.sign_list(&list)?,
            list,
            number: held.number,
            signing,
            signed: now,
        };
        *cached = Some(signed.clone());
        Ok(signed)
    }
}

async fn place(of: &Semaphore) -> Result<SemaphorePermit<'_>, Refusal> {
    let taken = tokio::time::timeout(QUEUE, of.acquire()).await;
    taken.map_err(|_| Refusal::Busy)?.map_err(|_| Refusal::Busy)
}

fn load(
    settings: &Settings,
    source: &Source,
    directory: &StateDir,
    now: SystemTime,
) -> Result<Signing, CaError> {
    let Settings { sealing, trust_domain, dns_names, default_lifetime, .. } = settings;
    let sealing = sealing.as_ref();
    Signing::load(source, directory, sealing, trust_domain, dns_names, *default_lifetime, now)
}

/// Writes down what is trusted above somebody else's root, for `ca root show`, or that it is no more.
fn show_anchors(source: &Source, directory: &StateDir, signing: &Signing) -> Result<(), CaError> {
    let turn = directory.turn()?;
    match source {
        Source::PluggedIn(_) => turn.write_text(roots::PLUGGED_IN, &signing.anchors_pem),
        Source::Own => turn.remove(roots::PLUGGED_IN),
    }
}
