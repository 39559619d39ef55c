//! What becomes of an inbound connection once its mode is settled: requests that are judged one by
//! one where it is HTTP and somebody needs that, bytes that are judged as one connection elsewhere.

use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Shared;
use super::authorize::Parties;
use super::failure::Failure;
use super::http::{self, Authorize, Connecting, Traffic, detect};
use super::inbound::Inbound;
use super::relay::{Side, Tally, relay};
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
        let is_http = needed
            && !settled.opaque
            && match plan.protocol {
                PortProtocol::Tcp => false,
                PortProtocol::Http => true,
                PortProtocol::Auto if settled.announced_http => true,
                PortProtocol::Auto => {
                    self.speaks_http(&mut client, &settled.parties, &mut application).await?
                }
            };
        if is_http {
            return self.requests(client, settled, application, flow, tally).await;
        }
        flow.verdict = Some(self.place.admit(&self.worker.shared, settled.parties)?);
        let mut application = match application {
            Some(stream) => stream,
            None => self.reach_application().await?,
        };
        self.worker.shared.telemetry.opened(flow);
        relay(&mut client, &mut application, self.destination, tally).await
    }

    /// Whether the client of a port that nobody declared speaks HTTP. A silent one may be waiting
    /// for the server's greeting: after a while the application is reached, and whoever speaks first
    /// decides.
    async fn speaks_http<C: Side>(
        &self,
        client: &mut Replay<C>,
        parties: &Parties,
        application: &mut Option<TcpStream>,
    ) -> Result<bool, Failure> {
        let timeouts = &self.worker.shared.timeouts;
        if application.is_none() {
            if let Ok(answer) = timeout(timeouts.detect, begins_http(client)).await {
                return answer;
            }
            if !parties.judge(&self.worker.shared.snapshot.load()).allowed {
                // Policy allows requests at most, so a greeting would not be delivered.
                let answer = timeout(timeouts.mtls, begins_http(client)).await;
                return answer.unwrap_or(Ok(false));
            }
            *application = Some(self.reach_application().await?);
        }
        let Some(application) = application else { return Ok(false) };
        tokio::select! {
            biased;
            answer = begins_http(client) => answer,
            _ = application.readable() => Ok(false),
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
        let authorize = Policies { shared, parties: &settled.parties };
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
            traffic: counted.traffic.clone(),
            head_time: shared.timeouts.head,
        };
        http::serve(client, context).await
    }
}

/// Waits until the client's first bytes are known to be HTTP or not. All of them stay in `client`.
async fn begins_http<C: Side>(client: &mut Replay<C>) -> Result<bool, Failure> {
    loop {
        if let Some(answer) = detect::is_http(client.peeked()) {
            return Ok(answer);
        }
        if client.peek_more().await.map_err(Failure::ClientReset)? == 0 {
            return Ok(false);
        }
    }
}

/// The policies in force at the moment of each request.
struct Policies<'a> {
    shared: &'a Shared,
    parties: &'a Parties,
}

impl Authorize for Policies<'_> {
    fn request(&self, connection: &Connection<'_>, request: &Request<'_>) -> Verdict {
        let snapshot = self.shared.snapshot.load();
        let plan = snapshot.inbound(&self.parties.workload, self.parties.destination.port());
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
