//! The wiring: the only file that knows everyone.

mod configured;
mod identities;
mod report;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;

use configured::{ConfigState, Configured};

use crate::admin::{self, Admin, AdminError, Readiness};
use crate::bpf::{BpfError, Kernel};
use crate::cli::Exit;
use crate::config::Config;
use crate::drain::{self, Signals};
use crate::identity::ca::CaError;
use crate::identity::source::SourceError;
use crate::identity::{Federation, Revocations, SvidStore};
use crate::mesh::Accepted;
use crate::node::{self, Busy, Node, NodeLock, SockDestroy};
use crate::policy::error::refused_objects;
use crate::proxy::{MaxAge, Shared, Timeouts, Workers};
use crate::source::files::{self, LoadError, Loaded};
use crate::source::names::Names;
use crate::telemetry::{Direction, Telemetry, access};
use crate::tls::revocation::CrlsError;
use crate::tls::{Checks, HandshakeSettings};

/// How often namespaces that came or went are looked for.
const TICK: Duration = Duration::from_secs(1);
/// How often the cgroups of host workloads are looked for.
const CGROUPS: Duration = Duration::from_millis(100);
/// A handshake that has not become a connection by then never will (the kernel gives up on a SYN
/// after about two minutes).
const FLOW_LIFETIME: Duration = Duration::from_secs(180);
const HANDSHAKE: Duration = Duration::from_secs(10);
const REQUEST_HEAD: Duration = Duration::from_secs(15);
const CONNECT: Duration = Duration::from_secs(10);
const IDENTITY: Duration = Duration::from_secs(5);
/// How often names of hosts outside the mesh are resolved again.
const RESOLVE: Duration = Duration::from_secs(5);
/// How often a start that takes long says what it waits for.
const REPORT: Duration = Duration::from_secs(10);
/// For the last access log lines.
const FLUSH: Duration = Duration::from_secs(1);

/// Why the daemon did not start or stopped. Each kind has an exit code of its own (`cli`).
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the configuration in {dir} is refused, nothing was changed:\n{error}")]
    Config { dir: String, error: LoadError },
    #[error(transparent)]
    Kernel(BpfError),
    #[error(transparent)]
    Busy(Busy),
    #[error(transparent)]
    Privilege(#[from] node::privilege::PrivilegeError),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error("the CA cannot be asked: {0}")]
    Source(#[from] SourceError),
    #[error(transparent)]
    Crls(#[from] CrlsError),
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("{what}: {error}")]
    Io { what: String, error: std::io::Error },
}

impl RunError {
    pub fn exit(&self) -> Exit {
        match self {
            Self::Config { .. } | Self::Crls(_) => Exit::Config,
            Self::Kernel(error) if error.is_kernel() => Exit::Kernel,
            Self::Kernel(BpfError::Claimed { .. }) | Self::Busy(Busy::Held { .. }) => Exit::Busy,
            Self::Admin(AdminError::Busy(_)) => Exit::Busy,
            Self::Kernel(_)
            | Self::Busy(_)
            | Self::Privilege(_)
            | Self::Ca(_)
            | Self::Source(_)
            | Self::Admin(_)
            | Self::Io { .. } => Exit::Failure,
        }
    }
}

impl From<BpfError> for RunError {
    fn from(error: BpfError) -> Self {
        Self::Kernel(error)
    }
}

impl From<Busy> for RunError {
    fn from(error: Busy) -> Self {
        Self::Busy(error)
    }
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> RunError {
    let what = what.into();
    move |error| RunError::Io { what, error }
}

/// The node and its configuration, shared by the main task and the admin server.
struct App {
    config: Config,
    node: Mutex<Node>,
    state: Mutex<Configured>,
    store: Arc<SvidStore>,
    federation: Arc<Federation>,
    shared: Arc<Shared>,
    readiness: Readiness,
    started: SystemTime,
}

/// Runs the daemon until it is told to end. Returns early when it cannot start; then whatever an
/// earlier daemon left in the kernel is as it was, and enrolled workloads stay shut.
pub async fn run(config: Config) -> Result<(), RunError> {
    node::privilege::check()?;
    let mut signals = Signals::new().map_err(io("install signal handlers"))?;
    let (readiness, start) = Readiness::starting();
    let _run_lock = NodeLock::take(&config.run_dir)?;
    let _state_lock = NodeLock::take(&config.state_dir)?;

    let node_name = config.node.as_str().to_owned();
    let names = Arc::new(Names::default());
    let loaded =
        files::load_with(&config.config_dir, &node_name, &config.mesh, 1, &names).map_err(
            |error| RunError::Config { dir: config.config_dir.display().to_string(), error },
        )?;
    let revocations = Revocations::new(config.revocation.rules.clone());
    let checks = match &config.revocation.crl_file {
        Some(place) => Checks::with_files(revocations.clone(), place)?,
        None => Checks::new(revocations.clone()),
    };
    let (source, follow) = identities::source(&config, &revocations)?;
    let federation = Federation::new(config.federation.clone(), checks.federated().clone());
    let aliases = config.mesh.trust_domain_aliases.clone();
    let handshakes =
        HandshakeSettings { checks: checks.clone(), resumption: config.session_resumption };
    let store = SvidStore::new(source, aliases, handshakes);

    raise_descriptor_limit();
    // Before anything is made in the kernel, so that a refusal leaves nothing there.
    refuse_without_sock_destroy()?;
    let mut kernel = Kernel::open(&config.node.pin_name(), &config.without_kernel_feature)?;
    kernel.follow_log();

    let telemetry = Telemetry::new(&node_name, &config.access_log)
        .map_err(io(format!("open the access log {:?}", config.access_log)))?;
    let (drain, watch) = drain::channel();
    let timeouts = Timeouts {
        detect: config.detect_timeout,
        mtls: config.mtls_wait,
        handshake: HANDSHAKE,
        connect: CONNECT,
        head: REQUEST_HEAD,
        identity: IDENTITY,
        age: config.max_connection_age.map(|age| MaxAge { age, grace: config.drain }),
    };
    let (mesh, http) = (config.mesh.clone(), config.http.clone());
    let shared = Shared::new(mesh, telemetry.clone(), timeouts, http, checks.clone(), watch);
    let shared = Arc::new(shared);
    let maps = (0..config.workers.get()).map(|_| kernel.socket_maps()).collect::<Result<_, _>>()?;
    let workers = Workers::start(&shared, maps).map_err(io("start worker threads"))?;
    let admin = Admin::bind(&config.admin_socket, config.http_address).await?;

    let node = Node::new(kernel, store.clone(), shared.clone(), workers);
    let app = Arc::new(App {
        node: Mutex::new(node),
        state: Mutex::new(Configured::nothing()),
        store: store.clone(),
        federation: federation.clone(),
        shared,
        readiness: readiness.clone(),
        started: SystemTime::now(),
        config,
    });
    tokio::spawn(store.clone().run());
    tokio::spawn(identities::replace_revoked(store.clone(), checks.clone()));
    tokio::spawn(identities::judge_again(checks));
    tokio::spawn(follow.run(store, federation.clone()));
    tokio::spawn(federation.clone().run());
    let reported = readiness.clone();
    tokio::spawn(access::reopen_on_hangup(telemetry.access.clone()));
    let generation = loaded.snapshot.generation;
    let (fingerprint, accepted) = (loaded.fingerprint, loaded.accepted.clone());
    app.clone().accept(loaded).await?;
    tokio::spawn(serve_admin(admin, app.clone()));
    tokio::spawn(app.clone().tick());
    tokio::spawn(app.clone().follow_cgroups());
    tokio::spawn(app.clone().follow_rules_files());
    tokio::spawn(names.clone().follow(RESOLVE));
    tokio::spawn(app.clone().follow_files(node_name, names, generation, fingerprint, accepted));
    app.clone().answer_readiness();
    start.met();
    tokio::spawn(async move { reported.report(REPORT).await });

    let signal = signals.next().await;
    tracing::info!(
        "{signal}: no new connections; enrolled workloads stay shut until a daemon is back"
    );
    let _stopping = readiness.condition("shutting down");
    lock(&app.node).stop_accepting();
    let ended = drain::until_drained(&drain, app.config.drain, signals.next()).await;
    tracing::info!(?ended, "ends");
    if !telemetry.access.flush(FLUSH) {
        tracing::warn!("the last access log lines could not be written");
    }
    Ok(())
}

/// A relayed connection takes two descriptors, and the limit that login shells and service managers
/// give is for programs with few.
pub(crate) fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) => tracing::debug!(limit, "open files"),
        Err(error) => tracing::warn!(%error, "the limit of open files stays as it is"),
    }
}

/// Enrolment and tightened policy must be able to end older connections.
fn refuse_without_sock_destroy() -> Result<(), RunError> {
    let missing = |option: &str, cause: &str| {
        let (option, cause) = (option.into(), cause.into());
        let feature = "SOCK_DESTROY";
        Err(RunError::Kernel(BpfError::Missing { feature, since: "4.5", option, cause }))
    };
    match node::sock_destroy() {
        Ok(SockDestroy::Works) => Ok(()),
        Ok(SockDestroy::Unsupported) => {
            missing(", built with CONFIG_INET_DIAG_DESTROY=y", "sock_diag answers EOPNOTSUPP to it")
        }
        Ok(SockDestroy::NoTcpDiag) => missing(
            ", built with CONFIG_INET_DIAG_DESTROY=y and CONFIG_INET_TCP_DIAG=y, or =m and loaded",
            "sock_diag knows no TCP sockets: try `modprobe tcp_diag`",
        ),
        Err(error) => Err(RunError::Kernel(BpfError::Call { what: "ask sock_diag", error })),
    }
}

/// A thread that panicked while it held the lock has already said so; the state is replaced step by
/// step and remains usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl App {
    /// Puts a good configuration in force. Not on the runtime: it waits for the kernel.
    async fn accept(self: Arc<Self>, loaded: Loaded) -> Result<(), RunError> {
        let Loaded { snapshot, warnings, errors, .. } = loaded;
        for error in &errors {
            tracing::error!("{error}");
        }
        self.shared.telemetry.metrics.set_config_refused_objects(refused_objects(&errors));
        let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        let generation = snapshot.generation;
        lock(&self.state).begin(ConfigState::read(generation, &errors, warnings));
        let app = self.clone();
        let apply = move || {
            // Before the rules are in force, so that their first connection finds the files read.
            app.shared.originations.prepare(snapshot.originations());
            lock(&app.node).apply(Arc::new(snapshot))
        };
        tokio::task::spawn_blocking(apply)
            .await
            .map_err(|error| RunError::Io { what: "apply".into(), error: error.into() })??;
        lock(&self.state).succeeded();
        self.shared.telemetry.metrics.config_in_force(generation, errors.is_empty());
        tracing::info!(generation, "configuration in force");
        Ok(())
    }

    async fn follow_files(
        self: Arc<Self>,
        node: String,
        names: Arc<Names>,
        generation: u64,
        fingerprint: files::Fingerprint,
        accepted: Arc<Accepted>,
    ) {
        let (sender, mut changes) = mpsc::unbounded_channel();
        let watching = files::watch(
            self.config.config_dir.clone(),
            node,
            self.config.mesh.clone(),
            names,
            generation,
            fingerprint,
            accepted,
            move |change| {
                // The receiver is in this very function.
                sender.send(change).ok();
            },
        );
        let applying = async {
            while let Some(change) = changes.recv().await {
                match change {
                    Ok(loaded) => {
                        if let Err(error) = self.clone().accept(loaded).await {
                            tracing::error!(%error, "a good configuration is not whole in force yet");
                            lock(&self.state).failed(error.to_string());
                            self.shared.telemetry.metrics.config_refused();
                        }
                    }
                    Err(error) => {
                        tracing::error!(
                            "configuration refused, the last good one stays in force:\n{error}"
                        );
                        lock(&self.state).refused(&error);
                        let metrics = &self.shared.telemetry.metrics;
                        metrics.set_config_refused_objects(refused_objects(&error.0));
                        metrics.config_refused();
                    }
                }
            }
        };
        tokio::join!(watching, applying);
    }

    async fn tick(self: Arc<Self>) {
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let app = self.clone();
            let ticked = tokio::task::spawn_blocking(move || {
                app.shared.checks.tick(SystemTime::now());
                let mut node = lock(&app.node);
                node.tick()?;
                if let Some(generation) = lock(&app.state).succeeded_late() {
                    app.shared.telemetry.metrics.set_config_generation(generation);
                    tracing::info!(generation, "configuration in force");
                }
                node.sweep_flows(FLOW_LIFETIME)
            });
            match ticked.await {
                Ok(Ok(0)) => {}
                Ok(Ok(stale)) => tracing::debug!(stale, "handshakes that were never completed"),
                Ok(Err(error)) => {
                    tracing::error!(%error, "cannot keep up with the node's namespaces")
                }
                Err(error) => tracing::error!(%error, "looking after namespaces failed"),
            }
        }
    }

    /// Apart from all else: a rule may name a file on a mount that hangs.
    async fn follow_rules_files(self: Arc<Self>) {
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let shared = self.shared.clone();
            let refreshed = tokio::task::spawn_blocking(move || shared.originations.refresh());
            if let Err(error) = refreshed.await {
                tracing::error!(%error, "looking after the files of rules failed");
            }
        }
    }

    /// The kernel tells nobody when a unit's cgroup comes: it is looked for more often than the rest.
    async fn follow_cgroups(self: Arc<Self>) {
        let mut interval = tokio::time::interval(CGROUPS);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            // Whoever holds it has something to do that takes longer; there is a next time.
            let any = self.node.try_lock().is_ok_and(|node| node.has_workloads_on_host());
            if !any {
                continue;
            }
            let app = self.clone();
            let looked = tokio::task::spawn_blocking(move || lock(&app.node).follow_cgroups());
            match looked.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "cannot follow the host's cgroups"),
                Err(error) => tracing::error!(%error, "looking after cgroups failed"),
            }
        }
    }

    /// Beside the start itself: a workload that is configured and not enrolled talks in the clear,
    /// one without an SVID not at all.
    fn answer_readiness(self: Arc<Self>) {
        let readiness = self.readiness.clone();
        // Weak: readiness is held by the very thing that it asks.
        let app = Arc::downgrade(&self);
        readiness.check(Box::new(move || {
            let Some(app) = app.upgrade() else { return Vec::new() };
            let (refused, pending) = {
                let node = lock(&app.node);
                (node.refused(), node.is_pending())
            };
            let pending =
                pending.then(|| "the newest configuration: it is not whole in force".to_owned());
            let missing = app.store.missing().into_iter().map(|id| format!("an SVID for {id}"));
            let list = app.shared.checks.awaited();
            refused.into_iter().chain(pending).chain(missing).chain(list).collect()
        }));
    }

    fn status(&self) -> admin::Status {
        // Before the lock that its checks take.
        let awaited = self.readiness.awaited();
        let node = lock(&self.node);
        let configured = lock(&self.state);
        let state = configured.state();
        let metrics = &self.shared.telemetry.metrics;
        admin::Status {
            node: self.config.node.to_string(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            started: admin::status::timestamp(self.started),
            ready: awaited.is_empty(),
            awaited,
            config: admin::status::ConfigStatus {
                dir: self.config.config_dir.clone(),
                generation: state.generation,
                loaded_at: admin::status::timestamp(state.loaded_at),
                last_error: state.last_error.clone(),
                refused: state.refused.clone(),
                warnings: state.warnings.clone(),
            },
            workloads: node.status().into_iter().map(report::workload).collect(),
            policies: report::policies(&self.shared.snapshot.load()),
            svids: self.store.status().into_iter().map(report::svid).collect(),
            trust: report::trust(self.store.trust(), &self.config.mesh.trust_domain),
            federation: self.federation.status().into_iter().map(report::federated).collect(),
            revocation: report::revocation(&self.shared.checks, SystemTime::now()),
            kernel: admin::status::KernelStatus {
                programs: node.kernel().programs().into_iter().collect(),
                instructions: node.kernel().instructions(),
                without: node
                    .kernel()
                    .features()
                    .missing()
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
                full: node.full(),
                decisions: decisions(&node),
            },
            connections: admin::status::ConnectionsStatus {
                open_inbound: metrics.open_connections(Direction::Inbound),
                open_outbound: metrics.open_connections(Direction::Outbound),
            },
        }
    }

    /// Values that are looked up when somebody asks for metrics.
    fn scrape(&self, metrics: &crate::telemetry::metrics::Metrics) {
        let node = lock(&self.node);
        metrics.set_workloads_enrolled(node.enrolled_count());
        let decisions = decisions(&node);
        metrics.set_bpf_decisions(decisions.iter().map(|(name, total)| (name.as_str(), *total)));
        let svids = self.store.status();
        metrics
            .set_svid_expiries(svids.iter().filter_map(|svid| Some((&svid.id, svid.not_after?))));
        let federation = self.federation.status();
        metrics.federation.set(federation.iter().map(|it| {
            let age = it.confirmed.and_then(|time| time.elapsed().ok());
            (it.trust_domain.as_str(), it.authorities, age)
        }));
        metrics.set_svids_issued(self.store.issued_ok(), self.store.issued_failed());
        metrics.set_svid_failures(
            self.store.failures().map(|(reason, total)| (reason.as_str(), total)),
        );
        let revocation = report::revocation(&self.shared.checks, SystemTime::now());
        metrics.set_revocation_lists(report::revocation_lists(&revocation));
    }
}

fn decisions(node: &Node) -> BTreeMap<String, u64> {
    let totals = node.kernel().tables.decisions();
    totals.into_iter().map(|(decision, total)| (decision.as_str().to_owned(), total)).collect()
}

async fn serve_admin(admin: Admin, app: Arc<App>) {
    let metrics = app.shared.telemetry.metrics.clone();
    let scraped = app.clone();
    metrics.on_scrape(Box::new(move |metrics| scraped.scrape(metrics)));
    let readiness = app.readiness.clone();
    let state = admin::State { readiness, metrics, status: Box::new(move || app.status()) };
    admin.serve(Arc::new(state)).await;
}
