//! A connection to an enrolled workload: settle the mode, authenticate, reach the application with
//! the client's own address, relay.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::age::too_old;
use super::authorize::Parties;
use super::carry::Settled;
use super::failure::Failure;
use super::live::{Certificates, InTheClear, Place};
use super::relay::Tally;
use super::worker::Worker;
use super::{Current, Pod};
use crate::identity::SpiffeId;
use crate::mesh::{InboundPlan, PeerKnowledge, Workload};
use crate::node::dial;
use crate::policy::inbound::{FirstBytes, Handling, Refusal, handling};
use crate::policy::{Mode, PortProtocol};
use crate::telemetry::{Direction, FlowRecord, Security};
use crate::tls::Replay;
use crate::tls::accept::{Kind, accept, first_bytes};
use crate::tls::hello::Hello;

pub async fn serve(
    worker: &Worker,
    pod: &Pod,
    client: TcpStream,
    peer: SocketAddr,
    place: &Place<'_>,
) {
    let current = pod.current().clone();
    // sk_lookup selected this socket without touching the addresses: its own is the one that the
    // client asked for.
    let destination = match client.local_addr() {
        Ok(address) => canonical(address),
        Err(error) => return tracing::debug!(%error, %peer, "gone before it was accepted"),
    };
    if destination.port() == pod.inbound_port && destination.ip().is_loopback() {
        worker.shared.telemetry.refused(Direction::Inbound, &Failure::LoopRefused);
        return;
    }
    let source = canonical(peer);
    let _port = pod.client_ports.hold(source);
    // The workload's own connection to itself through a service comes from loopback (dial).
    // (On the host it does not, and whoever does may be anybody.)
    let source = match pod.on_host {
        true => source,
        false => SocketAddr::new(own_if_loopback(source.ip(), &current.workload), source.port()),
    };
    let mut flow = FlowRecord::new(Direction::Inbound, current.workload.clone(), destination);
    flow.source = source;
    flow.endpoint = Some(destination);
    flow.destination_workload = Some(current.workload.clone());
    let tally = Tally::default();
    let inbound = Inbound { worker, pod, current: &current, source, destination, place };
    let result = tokio::select! {
        result = inbound.run(client, &mut flow, &tally) => result,
        reason = place.stop.told() => Err(reason),
        () = too_old(place.end) => Err(Failure::TooOld),
    };
    flow.sent = tally.sent.get();
    flow.received = tally.received.get();
    flow.failure = result.err();
    worker.shared.telemetry.closed(&flow);
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn own_if_loopback(source: IpAddr, workload: &Workload) -> IpAddr {
    if !source.is_loopback() {
        return source;
    }
    let same_family = |address: &&IpAddr| address.is_ipv4() == source.is_ipv4();
    workload.addresses.iter().find(same_family).copied().unwrap_or(source)
}

pub struct Inbound<'a> {
    pub worker: &'a Worker,
    pub pod: &'a Pod,
    pub current: &'a Current,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub place: &'a Place<'a>,
}

impl Inbound<'_> {
    async fn run(
        &self,
        client: TcpStream,
        flow: &mut FlowRecord,
        tally: &Tally,
    ) -> Result<(), Failure> {
        let (plan, knowledge) = {
            let snapshot = self.worker.shared.snapshot.load();
            flow.source_workload = snapshot.workload_at(self.source.ip()).cloned();
            (
                snapshot.inbound(&self.current.workload, self.destination.port()),
                snapshot.peer_knowledge(self.source.ip()),
            )
        };
        flow.mode = Some(plan.mode.mode);
        flow.because = Some(plan.mode.because.clone());
        let client = Replay::new(client);
        match plan.mode.mode {
            Mode::Disable => self.disabled(client, &plan, flow, tally).await,
            Mode::Strict => self.strict(client, &plan, flow, tally).await,
            Mode::Permissive => self.permissive(client, &plan, knowledge, flow, tally).await,
        }
    }

    /// Nothing is terminated. TLS on a port that is declared HTTP is a protocol error (policy.md 1.8).
    async fn disabled(
        &self,
        mut client: Replay<TcpStream>,
        plan: &InboundPlan,
        flow: &mut FlowRecord,
        tally: &Tally,
    ) -> Result<(), Failure> {
        if plan.protocol == PortProtocol::Http {
            // An HTTP client speaks first: waiting for it delays nothing.
            let limit = self.worker.shared.timeouts.mtls;
            match timeout(limit, first_bytes(&mut client)).await {
                Ok(Ok(kind)) => return self.handle(&kind, client, None, plan, flow, tally).await,
                Ok(Err(error)) => return Err(Failure::ClientReset(error)),
                Err(_) => {}
            }
        }
        self.plaintext(client, None, plan, None, flow, tally).await
    }

    /// Any TLS client whose certificate verifies, whatever its ALPN (policy.md 1.10); nobody else.
    async fn strict(
        &self,
        mut client: Replay<TcpStream>,
        plan: &InboundPlan,
        flow: &mut FlowRecord,
        tally: &Tally,
    ) -> Result<(), Failure> {
        let limit = self.worker.shared.timeouts.mtls;
        match timeout(limit, first_bytes(&mut client)).await {
            Err(_) => Err(Failure::DetectTimeout),
            Ok(Err(error)) => Err(Failure::ClientReset(error)),
            // Nothing was sent, so nothing was refused: somebody looked whether the port is open.
            Ok(Ok(Kind::Closed)) => Ok(()),
            Ok(Ok(kind)) => self.handle(&kind, client, None, plan, flow, tally).await,
        }
    }

    /// Mesh mTLS is terminated, everything else is relayed as it is. What is known of the source
    /// sets only how long its first bytes are awaited before the application is reached.
    async fn permissive(
        &self,
        mut client: Replay<TcpStream>,
        plan: &InboundPlan,
        knowledge: PeerKnowledge,
        flow: &mut FlowRecord,
        tally: &Tally,
    ) -> Result<(), Failure> {
        let shared = &self.worker.shared;
        let timeouts = &shared.timeouts;
        let limit = match knowledge {
            PeerKnowledge::SpeaksMtls => timeouts.mtls,
            PeerKnowledge::Unknown => timeouts.detect,
            // Bytes that are there already are looked at, none are waited for.
            PeerKnowledge::Plaintext if has_bytes(client.get_ref()) => timeouts.detect,
            PeerKnowledge::Plaintext => Duration::ZERO,
        };
        let mut application = None;
        let kind = match timeout(limit, first_bytes(&mut client)).await {
            Ok(kind) => kind.map_err(Failure::ClientReset)?,
            // Some of a ClientHello came: the rest will, and decides.
            Err(_) if !client.peeked().is_empty() => {
                match timeout(timeouts.mtls, first_bytes(&mut client)).await {
                    Ok(kind) => kind.map_err(Failure::ClientReset)?,
                    Err(_) => Kind::NotTls,
                }
            }
            // HTTP's clients speak first, however late.
            Err(_) if plan.protocol == PortProtocol::Http => {
                first_bytes(&mut client).await.map_err(Failure::ClientReset)?
            }
            // No greeting would be delivered, and no application is reached for nothing.
            Err(_) if !self.parties(None, None).judge(&shared.snapshot.load()).allowed => {
                match timeout(timeouts.mtls, first_bytes(&mut client)).await {
                    Ok(kind) => kind.map_err(Failure::ClientReset)?,
                    Err(_) => Kind::NotTls,
                }
            }
            Err(_) => {
                // A silent client: perhaps the server speaks first. Whoever does decides.
                let stream = self.reach_application().await?;
                let kind = tokio::select! {
                    biased;
                    kind = first_bytes(&mut client) => Some(kind.map_err(Failure::ClientReset)?),
                    _ = stream.readable() => None,
                };
                application = Some(stream);
                kind.unwrap_or(Kind::NotTls)
            }
        };
        self.handle(&kind, client, application, plan, flow, tally).await
    }

    /// What the policy's table says about these first bytes.
    async fn handle(
        &self,
        kind: &Kind,
        client: Replay<TcpStream>,
        application: Option<TcpStream>,
        plan: &InboundPlan,
        flow: &mut FlowRecord,
        tally: &Tally,
    ) -> Result<(), Failure> {
        let first = match kind {
            Kind::Tls(hello) => FirstBytes::Tls { mesh_alpn: hello.alpn.mesh },
            Kind::NotTls | Kind::Closed => FirstBytes::Plaintext,
        };
        match (handling(plan.mode.mode, plan.protocol, first), kind) {
            (Handling::Terminate, Kind::Tls(hello)) => {
                self.mutual(client, hello, plan, application, flow, tally).await
            }
            (Handling::PassTls, _) => {
                flow.security = Security::TlsPassthrough;
                // Policy asks for the name also where the TLS is not the mesh's.
                let sni = match kind {
                    Kind::Tls(hello) => hello.sni.as_deref(),
                    Kind::NotTls | Kind::Closed => None,
                };
                self.plaintext(client, sni, plan, application, flow, tally).await
            }
            (Handling::Plaintext, _) => {
                self.plaintext(client, None, plan, application, flow, tally).await
            }
            (Handling::Refuse(Refusal::ForeignTls | Refusal::TlsIsNotHttp), _) => {
                Err(Failure::ForeignTlsOnHttpPort)
            }
            // Only a ClientHello can be terminated.
            (Handling::Refuse(Refusal::Plaintext) | Handling::Terminate, _) => {
                Err(Failure::PlaintextRefused { because: plan.mode.because.to_string() })
            }
        }
    }

    async fn mutual(
        &self,
        client: Replay<TcpStream>,
        hello: &Hello,
        plan: &InboundPlan,
        application: Option<TcpStream>,
        flow: &mut FlowRecord,
        tally: &Tally,
    ) -> Result<(), Failure> {
        let timeouts = &self.worker.shared.timeouts;
        let own = match self.current.identity.current() {
            Some(own) => own,
            None => self
                .current
                .identity
                .wait(timeouts.identity)
                .await
                .ok_or_else(|| Failure::no_identity(&self.current.identity))?,
        };
        flow.destination_id = Some(self.current.workload.id.clone());
        let begun = Instant::now();
        let shaken =
            match timeout(timeouts.handshake, accept(client, &own, hello.alpn.answer)).await {
                Ok(result) => result.map_err(Failure::ClientHandshake)?,
                Err(_) => return Err(Failure::DetectTimeout),
            };
        let (client, peer, summary) = shaken;
        flow.handshake = Some(begun.elapsed());
        flow.security = Security::MutualTls;
        flow.source_id = Some(peer.id().clone());
        flow.tls = Some(summary);
        self.place
            .certified(Certificates { own: own.certificate().clone(), peer: peer.clone() })?;
        // Its key does not stay for as long as its connections do.
        drop(own);
        let settled = Settled {
            parties: self.parties(Some(peer.id().clone()), hello.sni.as_deref()),
            peer: Some(&peer),
            announced_http: hello.alpn.http.is_some(),
            opaque: false,
        };
        self.carry(Replay::new(client), settled, plan, application, flow, tally).await
    }

    async fn plaintext(
        &self,
        client: Replay<TcpStream>,
        sni: Option<&str>,
        plan: &InboundPlan,
        application: Option<TcpStream>,
        flow: &mut FlowRecord,
        tally: &Tally,
    ) -> Result<(), Failure> {
        if flow.security == Security::None {
            flow.security = Security::Plaintext;
        }
        // Also the application's own TLS: it has no identity of the mesh, which STRICT wants.
        let workload = self.current.workload.clone();
        let what = InTheClear::Inbound { workload, port: self.destination.port() };
        self.place.in_the_clear(&self.worker.shared, what)?;
        let settled = Settled {
            parties: self.parties(None, sni),
            peer: None,
            announced_http: false,
            opaque: flow.security == Security::TlsPassthrough,
        };
        self.carry(client, settled, plan, application, flow, tally).await
    }

    fn parties(&self, client: Option<SpiffeId>, sni: Option<&str>) -> Parties {
        Parties {
            workload: self.current.workload.clone(),
            destination: self.destination,
            client,
            source: self.source.ip(),
            sni: sni.map(Into::into),
        }
    }

    pub async fn reach_application(&self) -> Result<TcpStream, Failure> {
        let address = self.destination;
        let (namespace, maps) = (&self.pod.namespace, &self.worker.maps);
        let dial = async {
            // (On the host its addresses are others', too.)
            let hairpin = self.current.workload.addresses.contains(&self.source.ip());
            if hairpin && !self.pod.on_host {
                dial::application_hairpin(namespace, maps, self.source.ip(), address).await
            } else {
                let ports = &self.pod.client_ports;
                let on_host = self.pod.on_host;
                dial::application(namespace, maps, ports, on_host, self.source, address).await
            }
        };
        let connected = timeout(self.worker.shared.timeouts.connect, dial).await;
        match connected {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(dial::DialError::Source(error))) => Err(Failure::SourceBind(error)),
            Ok(Err(dial::DialError::Socket(error))) => {
                Err(Failure::Internal(format!("cannot open a socket: {error}")))
            }
            Ok(Err(dial::DialError::Connect(error))) => {
                Err(Failure::UpstreamConnect { address, error })
            }
            Err(_) => {
                Err(Failure::UpstreamConnect { address, error: io::ErrorKind::TimedOut.into() })
            }
        }
    }
}

/// Whether the client has sent something already. Asks the kernel, not the runtime, which has not
/// heard of the socket yet.
fn has_bytes(client: &TcpStream) -> bool {
    let mut byte = [std::mem::MaybeUninit::uninit()];
    SockRef::from(client).peek(&mut byte).is_ok_and(|count| count > 0)
}
