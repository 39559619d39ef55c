//! The agent's streams: whatever changes is told, and a stream that ends is opened again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use super::{Api, Offer, Others, Selectors, SpiffeAgent, delegated, lock, workload};
use crate::identity::{Bundle, Federation, SpiffeId};

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

type OnChange = Arc<dyn Fn(&BTreeSet<SpiffeId>) + Send + Sync>;

impl SpiffeAgent {
    /// Calls `on_change` with the identities whose SVIDs changed, and gives `federation` the bundles of
    /// other trust domains. Never ends.
    pub async fn follow(
        self: Arc<Self>,
        federation: Arc<Federation>,
        on_change: impl Fn(&BTreeSet<SpiffeId>) + Send + Sync + 'static,
    ) {
        let on_change: OnChange = Arc::new(on_change);
        match self.settings.api.clone() {
            Api::Workload => self.follow_workload(federation, on_change).await,
            Api::Delegated(selectors) => {
                self.follow_delegated(federation, selectors, on_change).await;
            }
        }
    }

    async fn follow_workload(self: Arc<Self>, federation: Arc<Federation>, on_change: OnChange) {
        let mut known = None;
        let mut retry = Retry::new(&self, "its Workload API");
        loop {
            let streamed = async {
                let mut stream = workload::subscribe(self.connect().await?).await?;
                loop {
                    let offer = workload::next(&mut stream).await?;
                    retry.worked();
                    tell(&mut known, &lock(&self.wanted).clone(), &offer, &on_change);
                    for problem in &offer.problems {
                        tracing::warn!(%problem, "the agent gives what cannot be used");
                    }
                    // With it the keys are wiped.
                    federation.deliver(offer.others.into_values().collect());
                }
            };
            let Err::<std::convert::Infallible, String>(why) = streamed.await;
            known = None;
            retry.failed(&why).await;
        }
    }

    async fn follow_delegated(
        self: Arc<Self>,
        federation: Arc<Federation>,
        selectors: Selectors,
        on_change: OnChange,
    ) {
        let shared = Arc::new(Shared {
            bundles: watch::Sender::new(Others::new()),
            federates: Mutex::default(),
            federation,
            on_change,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(self.clone().follow_bundles(shared.clone()));
        let mut following: HashMap<SpiffeId, AbortHandle> = HashMap::new();
        loop {
            let wanted = lock(&self.wanted).clone();
            following.retain(|id, task| {
                let keep = wanted.contains(id);
                if !keep {
                    task.abort();
                    lock(&shared.federates).remove(id);
                }
                keep
            });
            shared.deliver();
            for id in wanted {
                if !following.contains_key(&id) {
                    let (agent, shared) = (self.clone(), shared.clone());
                    let one = agent.follow_one(shared, selectors.clone(), id.clone());
                    following.insert(id, tasks.spawn(one));
                }
            }
            self.wanted_changed.notified().await;
        }
    }

    async fn follow_bundles(self: Arc<Self>, shared: Arc<Shared>) {
        let mut retry = Retry::new(&self, "its bundles");
        loop {
            let streamed = async {
                let mut stream = delegated::subscribe_to_bundles(self.connect().await?).await?;
                loop {
                    let (bundles, problems) = delegated::next_bundles(&mut stream).await?;
                    retry.worked();
                    for problem in problems {
                        tracing::warn!(%problem, "the agent gives what cannot be used");
                    }
                    let own = &self.settings.trust_domain;
                    let before = shared.bundles.send_replace(bundles);
                    if before.get(own) != shared.bundles.borrow().get(own) {
                        (shared.on_change)(&lock(&self.wanted).clone());
                    }
                    shared.deliver();
                }
            };
            let Err::<std::convert::Infallible, String>(why) = streamed.await;
            retry.failed(&why).await;
        }
    }

    async fn follow_one(self: Arc<Self>, shared: Arc<Shared>, selectors: Selectors, id: SpiffeId) {
        // Nobody tells of a change to an identity that cannot be described: asking says why.
        let Ok(selectors) = selectors.of(&id) else { return };
        let one = BTreeSet::from([id.clone()]);
        let mut known = None;
        let mut retry = Retry::new(&self, id.as_str());
        loop {
            let streamed = async {
                let channel = self.connect().await?;
                let mut stream = delegated::subscribe(channel, selectors.clone()).await?;
                loop {
                    let bundles = Others::new();
                    let (offer, federates) = delegated::next(&mut stream, &bundles).await?;
                    retry.worked();
                    lock(&shared.federates).insert(id.clone(), federates);
                    shared.deliver();
                    tell(&mut known, &one, &offer, &shared.on_change);
                }
            };
            let Err::<std::convert::Infallible, String>(why) = streamed.await;
            known = None;
            retry.failed(&why).await;
        }
    }
}

/// What the streams of the delegated API have in common.
struct Shared {
    bundles: watch::Sender<Others>,
    /// Names of trust domains, by the identity that is to federate with them.
    federates: Mutex<BTreeMap<SpiffeId, Vec<String>>>,
    federation: Arc<Federation>,
    on_change: OnChange,
}

impl Shared {
    /// The node believes what one of its identities is to believe.
    fn deliver(&self) {
        let named: BTreeSet<String> = lock(&self.federates).values().flatten().cloned().collect();
        let name = |name: &str| name.strip_prefix("spiffe://").unwrap_or(name).to_owned();
        let named: BTreeSet<String> = named.iter().map(|it| name(it)).collect();
        let bundles = self.bundles.borrow();
        let wanted = bundles.values().filter(|it| named.contains(it.trust_domain.as_str()));
        let wanted: Vec<Bundle> = wanted.cloned().collect();
        drop(bundles);
        self.federation.deliver(wanted);
    }
}

/// What an agent gave in its last message.
type Known = Option<BTreeMap<SpiffeId, [u8; 32]>>;

/// After an interruption that is all that is wanted: something may have been taken back meanwhile, and
/// who asked in vain waits.
fn tell(known: &mut Known, wanted: &BTreeSet<SpiffeId>, offer: &Offer, on_change: &OnChange) {
    let now = offer.fingerprints();
    let changed: BTreeSet<SpiffeId> = match known {
        None => wanted.iter().chain(now.keys()).cloned().collect(),
        Some(known) => {
            let ids = known.keys().chain(now.keys());
            ids.filter(|id| known.get(*id) != now.get(*id)).cloned().collect()
        }
    };
    *known = Some(now);
    if !changed.is_empty() {
        on_change(&changed);
    }
}

/// Waiting between attempts, and what is said of them: an outage once, not every attempt.
struct Retry {
    socket: String,
    what: String,
    wait: Duration,
    told: Option<String>,
}

impl Retry {
    fn new(agent: &SpiffeAgent, what: &str) -> Self {
        let socket = agent.settings.socket.display().to_string();
        Self { socket, what: what.to_owned(), wait: FIRST_RETRY, told: None }
    }

    fn worked(&mut self) {
        self.wait = FIRST_RETRY;
        if self.told.take().is_some() {
            tracing::info!(socket = self.socket, what = self.what, "the agent answers again");
        }
    }

    async fn failed(&mut self, why: &str) {
        if self.told.as_deref() != Some(why) {
            tracing::warn!(socket = self.socket, what = self.what, %why,
                "the agent is not followed: what is there stays in use until it expires");
            self.told = Some(why.to_owned());
        }
        sleep(self.wait.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
        self.wait = self.wait.saturating_mul(2).min(LONGEST_RETRY);
    }
}
