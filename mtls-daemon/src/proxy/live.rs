//! The connections of one thread that are open, and the ways in which others end them: the drain,
//! the end of their pod, a policy that no longer allows what they carry, a certificate that was
//! taken back.
//!
//! All of it belongs to one thread: a connection looks whether it was ended without any lock.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::SystemTime;

use super::age::{End, MaxAge};
use super::authorize::Parties;
use super::failure::Failure;
use super::http::InFlight;
use super::{Listening, Pod, Shared};
use crate::mesh::{ClientTls, OutboundPlan, Snapshot, Workload};
use crate::policy::Mode;
use crate::policy::authz::Verdict;
use crate::tls::{AuthenticatedPeer, OwnCertificate};

/// A word to one connection to end.
#[derive(Default)]
pub struct Stop {
    reason: RefCell<Option<Failure>>,
    told: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Stop {
    fn tell(&self, reason: Failure) {
        if !self.told.replace(true) {
            *self.reason.borrow_mut() = Some(reason);
            if let Some(waker) = self.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// Resolves when the connection has to end, with the reason. Once.
    pub async fn told(&self) -> Failure {
        poll_fn(|cx| {
            if !self.told.get() {
                let mut waker = self.waker.borrow_mut();
                if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                return Poll::Pending;
            }
            let reason = self.reason.borrow_mut().take();
            reason.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// What a connection carries in the clear, so that a new policy can be asked about it.
#[derive(Debug, Clone)]
pub enum InTheClear {
    /// To a port of the enrolled workload.
    Inbound { workload: Arc<Workload>, port: u16 },
    /// From the enrolled workload, to `endpoint` because it asked for `destination`.
    Outbound { workload: Arc<Workload>, destination: SocketAddr, endpoint: SocketAddr },
}

impl InTheClear {
    /// The same of the enrolled workload as it is described now.
    fn now(&self, now: &Arc<Workload>) -> Self {
        let mut changed = self.clone();
        match &mut changed {
            Self::Inbound { workload, .. } | Self::Outbound { workload, .. } => {
                *workload = now.clone();
            }
        }
        changed
    }

    /// Whether `snapshot` still leaves it in the clear; if not, what decides.
    fn judge(&self, snapshot: &Snapshot) -> Result<(), String> {
        match self {
            Self::Inbound { workload, port } => {
                let mode = snapshot.inbound(workload, *port).mode;
                match mode.mode {
                    Mode::Strict => Err(format!("{} is STRICT now", mode.because)),
                    Mode::Permissive | Mode::Disable => Ok(()),
                }
            }
            Self::Outbound { workload, destination, endpoint } => {
                // Each endpoint of a service has its own answer: ask for this one.
                let (mut index, mut endpoints) = (0, 1);
                while index < endpoints {
                    let plan = snapshot.outbound(workload, *destination, &mut |count| {
                        endpoints = count;
                        index % count
                    });
                    index += 1;
                    let (address, tls) = match plan {
                        OutboundPlan::Connect { address, tls, .. } => (address, tls),
                        OutboundPlan::RulesDisagree { .. } => {
                            return Err("several services' rules disagree about TLS there".into());
                        }
                        OutboundPlan::NotExported { .. } => {
                            return Err("the service is no longer exported to it".into());
                        }
                        // An endpoint that is leaving may finish what it has.
                        OutboundPlan::NoEndpoint { .. } | OutboundPlan::NoSuchPort { .. } => {
                            return Ok(());
                        }
                    };
                    if address == *endpoint {
                        return match tls {
                            ClientTls::Plaintext { .. } => Ok(()),
                            ClientTls::IstioMutual { because, .. }
                            | ClientTls::Originate { because, .. }
                            | ClientTls::Refused { because } => Err(because.to_string()),
                        };
                    }
                }
                Ok(())
            }
        }
    }
}

/// What both sides of a connection showed when it was opened.
#[derive(Debug)]
pub struct Certificates {
    pub own: Arc<OwnCertificate>,
    pub peer: AuthenticatedPeer,
}

impl Certificates {
    fn check(&self, listening: Listening, now: SystemTime) -> Result<(), Failure> {
        let upstream = listening == Listening::Outbound;
        let believed = self.own.check_with(&self.peer, now);
        believed.map_err(|error| Failure::NoLongerBelieved { upstream, error })
    }
}

struct Entry {
    pod: Arc<Pod>,
    listening: Listening,
    stop: Rc<Stop>,
    in_the_clear: Option<InTheClear>,
    certificates: Option<Certificates>,
    /// Relayed as bytes, so that AuthorizationPolicy judges the connection as a whole.
    admitted: Option<Parties>,
    /// HTTP: its requests are judged one by one.
    requests: Option<(Parties, Rc<InFlight>)>,
}

/// The open connections of one thread.
#[derive(Default)]
pub struct Live {
    next: Cell<u64>,
    entries: RefCell<HashMap<u64, Entry>>,
}

/// One open connection's place in [`Live`].
pub struct Place<'a> {
    live: &'a Live,
    number: u64,
    pub stop: Rc<Stop>,
    /// When it will be too old.
    pub end: Option<End>,
}

impl Live {
    pub fn enter(&self, pod: &Arc<Pod>, listening: Listening, age: Option<MaxAge>) -> Place<'_> {
        let number = self.next.replace(self.next.get() + 1);
        let stop = Rc::new(Stop::default());
        if pod.has_ended() {
            // Accepted at that moment: nobody will tell it.
            stop.tell(left_the_mesh());
        }
        let entry = Entry {
            pod: pod.clone(),
            listening,
            stop: stop.clone(),
            in_the_clear: None,
            certificates: None,
            admitted: None,
            requests: None,
        };
        self.entries.borrow_mut().insert(number, entry);
        Place { live: self, number, stop, end: age.map(|age| age.end(listening)) }
    }

    /// Ends every connection.
    pub fn end_all(&self) {
        self.entries.borrow().values().for_each(|entry| entry.stop.tell(Failure::Drained));
    }

    /// Ends the connections of one pod.
    pub fn end_pod(&self, pod: &Arc<Pod>) {
        let entries = self.entries.borrow();
        let of_pod = entries.values().filter(|entry| Arc::ptr_eq(&entry.pod, pod));
        of_pod.for_each(|entry| entry.stop.tell(left_the_mesh()));
    }

    /// Ends the connections that `snapshot` denies, and those that carry in the clear what it does
    /// not leave there.
    pub fn judge(&self, snapshot: &Snapshot) {
        for entry in self.entries.borrow().values() {
            // As it is described now: a label may have changed under its connections.
            let workload = &entry.pod.current().workload;
            let denied = match (&entry.admitted, &entry.requests) {
                (Some(parties), _) => admit(&parties.now(workload), snapshot).err(),
                (None, Some((parties, open))) => parties
                    .now(workload)
                    .judge_requests(snapshot, open)
                    .map(|verdict| denied(parties, verdict)),
                (None, None) => None,
            };
            if let Some(failure) = denied {
                tracing::info!(workload = entry.pod.current().workload.key(), %failure,
                    "ends a connection");
                entry.stop.tell(failure);
                continue;
            }
            let Some(in_the_clear) = &entry.in_the_clear else { continue };
            if let Err(because) = in_the_clear.now(workload).judge(snapshot) {
                tracing::info!(workload = entry.pod.current().workload.key(),
                    listening = ?entry.listening, %because, "ends a connection in the clear");
                entry.stop.tell(Failure::PolicyChanged { because });
            }
        }
    }
}

impl Live {
    /// Ends the connections that were opened with a certificate, the peer's or ours, that is not
    /// believed any more.
    pub fn judge_certificates(&self, now: SystemTime) {
        for entry in self.entries.borrow().values() {
            let Some(certificates) = &entry.certificates else { continue };
            if let Err(failure) = certificates.check(entry.listening, now) {
                tracing::info!(workload = entry.pod.current().workload.key(), %failure,
                    "ends a connection");
                entry.stop.tell(failure);
            }
        }
    }
}

/// Why a workload's connections end with its enrolment.
fn left_the_mesh() -> Failure {
    let because = "the workload is no longer enrolled, or its network namespace is gone".into();
    Failure::PolicyChanged { because }
}

fn admit(parties: &Parties, snapshot: &Snapshot) -> Result<Verdict, Failure> {
    let verdict = parties.judge(snapshot);
    if verdict.allowed { Ok(verdict) } else { Err(denied(parties, verdict)) }
}

fn denied(parties: &Parties, verdict: Verdict) -> Failure {
    Failure::AuthorizationDenied { verdict, client: parties.to_string() }
}

impl Place<'_> {
    /// From here on the connection is HTTP. Requests that are open when a policy comes that denies
    /// one of them end with their connection.
    pub fn requests(&self, parties: &Parties) -> Rc<InFlight> {
        let open = Rc::new(InFlight::default());
        if let Some(entry) = self.live.entries.borrow_mut().get_mut(&self.number) {
            entry.requests = Some((parties.clone(), open.clone()));
        }
        open
    }

    /// The enrolled workload as it is described now: a label may have changed while the connection was
    /// being settled, and nobody has judged that yet.
    fn workload(&self) -> Option<Arc<Workload>> {
        let entries = self.live.entries.borrow();
        Some(entries.get(&self.number)?.pod.current().workload.clone())
    }

    /// From here on the connection is relayed as bytes, if AuthorizationPolicy allows it: as it is
    /// now, and as it will be.
    pub fn admit(&self, shared: &Shared, parties: Parties) -> Result<Verdict, Failure> {
        let parties = match self.workload() {
            Some(now) => parties.now(&now),
            None => parties,
        };
        let verdict = admit(&parties, &shared.snapshot.load())?;
        if let Some(entry) = self.live.entries.borrow_mut().get_mut(&self.number) {
            entry.admitted = Some(parties);
        }
        Ok(verdict)
    }

    /// From here on the connection is one between these two. Asks again whether they are believed: one
    /// of them can have been revoked since the handshake looked.
    pub fn certified(&self, certificates: Certificates) -> Result<(), Failure> {
        let mut entries = self.live.entries.borrow_mut();
        let Some(entry) = entries.get_mut(&self.number) else { return Ok(()) };
        // In this order: whatever changes from here on finds it.
        let certificates = entry.certificates.insert(certificates);
        certificates.check(entry.listening, SystemTime::now())
    }

    /// From here on the connection is relayed in the clear. Asks again whether it may: a policy can
    /// have come since its plan was made.
    pub fn in_the_clear(&self, shared: &Shared, what: InTheClear) -> Result<(), Failure> {
        let what = match self.workload() {
            Some(now) => what.now(&now),
            None => what,
        };
        what.judge(&shared.snapshot.load())
            .map_err(|because| Failure::PolicyChanged { because })?;
        if let Some(entry) = self.live.entries.borrow_mut().get_mut(&self.number) {
            entry.in_the_clear = Some(what);
        }
        Ok(())
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.live.entries.borrow_mut().remove(&self.number);
    }
}
