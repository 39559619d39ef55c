//! What becomes of an inbound connection once its mode is settled: requests that are judged one by
//! one where it is HTTP and somebody needs that, bytes that are judged as one connection elsewhere.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::age::Leaving;
use super::authorize::Parties;
use super::failure::Failure;
use super::http::{self, Authorize, Connecting, Traffic, detect};
use super::inbound::Inbound;
use super::never_http::NeverHttp;
use super::relay::{Side, Tally, relay};
use super::{Pod, Shared};
use crate::mesh::InboundPlan;
use crate::policy::PortProtocol;
use crate::policy::authz::{Connection, Request, Verdict};
use crate::telemetry::FlowRecord;
use crate::tls::{AuthenticatedPeer, Replay};

/// A connection whose client is known, or known to have no identity.
pub struct Settled<'a> {
    pub parties: Parties,
    /// None: in the clear.
    pub peer: Option<&'a AuthenticatedPeer>,
    /// The client announced HTTP in its handshake.
    pub announced_http: bool,
    /// The application's own TLS: nobody can look into it.
    pub opaque: bool,
}

impl Inbound<'_> {
    /// Relays `client`, whose first bytes may have been looked at, to the application.
    pub async fn carry<C: Side + Send + 'static>(
        &self,
        mut client: Replay<C>,
        settled: Settled<'_>,
        plan: &InboundPlan,
        mut application: Option<TcpStream>,
        flow: &mut FlowRecord,
        tally: &Tally,
    ) -> Result<(), Failure> {
        let needed = self.current.forward_client_cert
            || plan.authorization.needs_http(self.destination.port());
        let spoken = match plan.protocol {
            _ if !needed || settled.opaque => Inside::Bytes,
            PortProtocol::Tcp => Inside::Bytes,
            PortProtocol::Http => Inside::Http,
            PortProtocol::Auto if settled.announced_http => Inside::Http,
            PortProtocol::Auto => {
                self.inside(&mut client, &settled.parties, &mut application).await?
            }
        };
        if spoken == Inside::Http {
            return self.requests(client, settled, application, flow, tally).await;
        }
        flow.verdict = Some(self.place.admit(&self.worker.shared, settled.parties)?);
        let mut application = match application {
            Some(stream) => stream,
            None => self.reach_application().await?,
        };
        self.worker.shared.telemetry.opened(flow);
        if spoken == Inside::Undecided {
            let mut client = NeverHttp::new(client);
            return relay(&mut client, &mut application, self.destination, tally).await;
        }
        relay(&mut client, &mut application, self.destination, tally).await
    }

    /// What the client of a port that nobody declared speaks. A silent one may be waiting for the
    /// server's greeting: after a while the application is reached, and whoever speaks first decides.
    async fn inside<C: Side>(
        &self,
        client: &mut Replay<C>,
        parties: &Parties,
        application: &mut Option<TcpStream>,
    ) -> Result<Inside, Failure> {
        let timeouts = &self.worker.shared.timeouts;
        let mut first: Option<Instant> = None;
        loop {
            match detect::is_http(client.peeked()) {
                Some(true) => return Ok(Inside::Http),
                Some(false) => return Ok(Inside::Bytes),
                None => {}
            }
            let begun = detect::begins_usually(client.peeked());
            let limit = if begun {
                // Of all of it: a byte now and then is no reason to wait for ever.
                timeouts.head.saturating_sub(first.get_or_insert_with(Instant::now).elapsed())
            } else {
                timeouts.detect
            };
            let more = async {
                match application.as_ref() {
                    // No clock: whoever waits for whom is their own business.
                    Some(application) if client.peeked().is_empty() => tokio::select! {
                        biased;
                        more = client.peek_more() => Some(more),
                        _ = application.readable() => None,
                    },
                    _ => timeout(limit, client.peek_more()).await.ok(),
                }
            };
            match more.await {
                Some(Ok(0)) => return Ok(Inside::Bytes),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(Failure::ClientReset(error)),
                None if begun => return Err(Failure::DetectTimeout),
                None if !client.peeked().is_empty() || application.is_some() => {
                    return Ok(Inside::Undecided);
                }
                None if parties.judge(&self.worker.shared.snapshot.load()).allowed => {
                    *application = Some(self.reach_application().await?);
                }
                // Policy allows requests at most, so no greeting would be delivered.
                None => match timeout(timeouts.head, client.peek_more()).await {
                    Ok(more) => {
                        more.map_err(Failure::ClientReset)?;
                    }
                    Err(_) => return Ok(Inside::Undecided),
                },
            }
        }
    }

    async fn requests<C: Side + Send + 'static>(
        &self,
        client: Replay<C>,
        settled: Settled<'_>,
        application: Option<TcpStream>,
        flow: &mut FlowRecord,
        tally: &Tally,
    ) -> Result<(), Failure> {
        let shared = &self.worker.shared;
        let counted = Counted { traffic: Arc::default(), tally };
        let connect = || -> Connecting<'_> { Box::pin(self.reach_application()) };
        let in_flight = self.place.requests(&settled.parties);
        let authorize = Policies { shared, pod: self.pod, port: self.destination.port() };
        shared.telemetry.opened(flow);
        let context = http::Context {
            connection: settled.parties.connection(),
            own_uri: settled.peer.map(|_| self.current.workload.id.as_str()),
            client: settled.peer.map(http::client_of),
            forward_client_cert: self.current.forward_client_cert,
            trusted_forwarders: &shared.http.trusted_forwarders,
            trusted_proxies: shared.http.trusted_proxies,
            normalisation: shared.http.normalisation,
            authorize: &authorize,
            connect: &connect,
            connected: application.into(),
            report: Rc::new(shared.telemetry.requests(flow)),
            in_flight,
            traffic: counted.traffic.clone(),
            head_time: shared.timeouts.head,
            leaving: Leaving::new(&shared.drain, self.place.end),
        };
        http::serve(client, context).await
    }
}

/// What a connection carries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    Http,
    Bytes,
    /// Bytes, unless what follows makes a request of what has come: that is refused.
    Undecided,
}

/// The policies in force at the moment of each request.
struct Policies<'a> {
    shared: &'a Shared,
    pod: &'a Pod,
    port: u16,
}

impl Authorize for Policies<'_> {
    fn request(&self, connection: &Connection<'_>, request: &Request<'_>) -> Verdict {
        let snapshot = self.shared.snapshot.load();
        let plan = snapshot.inbound(&self.pod.current().workload, self.port);
        plan.authorization.request(connection, request)
    }
}

/// Hands the bytes of HTTP over to the flow's tally, also when the connection is cut short.
struct Counted<'a> {
    traffic: Arc<Traffic>,
    tally: &'a Tally,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.tally.sent.set(self.traffic.total_sent());
        self.tally.received.set(self.traffic.total_received());
    }
}
