//! An enrolled workload's own connection: resolve, connect from inside its namespace, shake hands
//! as it, relay.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::age::too_old;
use super::failure::Failure;
use super::live::{Certificates, InTheClear, Place};
use super::relay::{Tally, relay};
use super::worker::Worker;
use super::{Current, Pod, http_error, server_name};
use crate::mesh::{ClientTls, Origination, OutboundPlan, Workload};
use crate::node::dial;
use crate::telemetry::{Direction, FlowRecord, Security};
use crate::tls::connect::{ClientStream, connect};
use crate::tls::originate::late_refusal;
use crate::tls::{HandshakeError, OriginationError};

pub async fn serve(
    worker: &Worker,
    pod: &Pod,
    client: TcpStream,
    source: SocketAddr,
    place: &Place<'_>,
) {
    let current = pod.current().clone();
    let destination = match requested(worker, pod, &current.workload, &client) {
        Ok(destination) => destination,
        Err(failure) => {
            // Dropping the client resets it. There is no flow: nobody asked for anything.
            // On a host anybody can connect here, as often as they like: each is counted.
            if worker.refusals.passes() {
                let workload = current.workload.key();
                tracing::warn!(workload, %source, %failure, "connection refused; others are counted");
            }
            worker.shared.telemetry.refused(Direction::Outbound, &failure);
            return;
        }
    };
    let mut flow = FlowRecord::new(Direction::Outbound, current.workload.clone(), destination);
    flow.source = SocketAddr::new(shown_source(&current.workload, destination), source.port());
    flow.source_workload = Some(current.workload.clone());
    let tally = Tally::answering();
    let result = tokio::select! {
        result = run(worker, pod, &current, client, destination, &mut flow, &tally, place) => result,
        reason = place.stop.told() => Err(reason),
        () = too_old(place.end) => Err(Failure::TooOld),
    };
    flow.sent = tally.sent.get();
    flow.received = tally.received.get();
    flow.failure = result.err();
    worker.shared.telemetry.closed(&flow);
}

/// What the application asked for. Whoever was not redirected, or asks for the daemon itself, is
/// refused.
fn requested(
    worker: &Worker,
    pod: &Pod,
    workload: &Workload,
    client: &TcpStream,
) -> Result<SocketAddr, Failure> {
    let destination = worker
        .maps
        .borrow()
        .original_destination(client.as_fd())
        .map_err(|error| Failure::Internal(error.to_string()))?
        .ok_or(Failure::NoOriginalDestination)?;
    let own = destination.ip().is_loopback() || workload.addresses.contains(&destination.ip());
    let port = destination.port();
    if own && (port == pod.outbound_port || port == pod.inbound_port) {
        return Err(Failure::LoopRefused);
    }
    Ok(destination)
}

/// The redirected socket's own source is loopback; this is the one that its application sees.
fn shown_source(workload: &Workload, destination: SocketAddr) -> std::net::IpAddr {
    let same_family = |address: &&std::net::IpAddr| address.is_ipv4() == destination.is_ipv4();
    workload.addresses.iter().find(same_family).copied().unwrap_or(destination.ip())
}

enum Upstream {
    Plain(TcpStream, SocketAddr),
    Mutual(Box<ClientStream>, SocketAddr, Certificates),
    Originated(Box<ClientStream>, SocketAddr, Arc<Origination>),
}

#[expect(clippy::too_many_arguments, reason = "one call; a structure would only rename them")]
async fn run(
    worker: &Worker,
    pod: &Pod,
    current: &Current,
    mut client: TcpStream,
    destination: SocketAddr,
    flow: &mut FlowRecord,
    tally: &Tally,
    place: &Place<'_>,
) -> Result<(), Failure> {
    match open(worker, pod, current, &client, destination, flow).await {
        Ok(Upstream::Plain(mut server, endpoint)) => {
            let workload = current.workload.clone();
            let what = InTheClear::Outbound { workload, destination, endpoint };
            place.in_the_clear(&worker.shared, what)?;
            worker.shared.telemetry.opened(flow);
            let result = relay(&mut client, &mut server, endpoint, tally).await;
            http_error::answer_for_server(client, &result, tally).await;
            result
        }
        Ok(Upstream::Mutual(mut server, endpoint, certificates)) => {
            if let Err(failure) = place.certified(certificates) {
                http_error::refuse(client, &failure).await;
                return Err(failure);
            }
            worker.shared.telemetry.opened(flow);
            let result = relay(&mut client, &mut *server, endpoint, tally).await;
            http_error::answer_for_server(client, &result, tally).await;
            result
        }
        Ok(Upstream::Originated(mut server, endpoint, origination)) => {
            worker.shared.telemetry.opened(flow);
            let result = relay(&mut client, &mut *server, endpoint, tally).await;
            let result = result.map_err(|failure| match failure {
                Failure::UpstreamHandshake { address, error } => {
                    let error = late_refusal(&origination.settings, error);
                    Failure::Origination { address, error }
                }
                other => other,
            });
            http_error::answer_for_server(client, &result, tally).await;
            result
        }
        Err(failure) => {
            http_error::refuse(client, &failure).await;
            Err(failure)
        }
    }
}

/// Endpoints of a service that one connection tries.
const ENDPOINTS: usize = 3;
/// How long each may take while others are left: time for one SYN to be lost.
const NEXT_AFTER: Duration = Duration::from_secs(3);

/// One of a service's endpoints. One that cannot be reached has heard nothing, so that another may
/// serve as well.
async fn open(
    worker: &Worker,
    pod: &Pod,
    current: &Current,
    client: &TcpStream,
    destination: SocketAddr,
    flow: &mut FlowRecord,
) -> Result<Upstream, Failure> {
    let first = fastrand::usize(..);
    let mut tried = 0;
    loop {
        let mut endpoints = 1;
        let plan = {
            let snapshot = worker.shared.snapshot.load();
            snapshot.outbound(&current.workload, destination, &mut |count| {
                endpoints = count;
                first.wrapping_add(tried) % count
            })
        };
        tried += 1;
        let more = tried < endpoints.min(ENDPOINTS);
        let limit = worker.shared.timeouts.connect;
        let limit = if more { limit.min(NEXT_AFTER) } else { limit };
        match open_one(worker, pod, current, client, destination, plan, limit, flow).await {
            Err(failure @ Failure::UpstreamConnect { .. }) if more => {
                tracing::debug!(%failure, "another endpoint is tried");
            }
            result => return result,
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "one call; a structure would only rename them")]
async fn open_one(
    worker: &Worker,
    pod: &Pod,
    current: &Current,
    client: &TcpStream,
    destination: SocketAddr,
    plan: OutboundPlan,
    limit: Duration,
    flow: &mut FlowRecord,
) -> Result<Upstream, Failure> {
    let timeouts = &worker.shared.timeouts;
    let (address, tls) = match plan {
        OutboundPlan::Connect { address, tls, service, workload } => {
            flow.endpoint = Some(address);
            flow.service = service;
            flow.destination_workload = workload;
            (address, tls)
        }
        OutboundPlan::RulesDisagree { address, service, others } => {
            let names = [&service].into_iter().chain(&others).map(|service| service.display_name());
            let services = names.collect::<Vec<_>>().join(" and ");
            flow.service = Some(service);
            return Err(Failure::RulesDisagree { address, services });
        }
        OutboundPlan::NoEndpoint { service } => {
            let (name, unresolved) = (service.display_name(), service.unresolved.clone());
            flow.service = Some(service);
            return Err(match unresolved {
                Some(why) => Failure::NotResolved(name, why.to_string()),
                None => Failure::NoEndpoint(name),
            });
        }
        OutboundPlan::NoSuchPort { service } => {
            let name = service.display_name();
            flow.service = Some(service);
            return Err(Failure::NoSuchServicePort(name, destination.port()));
        }
        OutboundPlan::NotExported { service } => {
            let name = service.display_name();
            flow.service = Some(service);
            return Err(Failure::NotExported(name, current.workload.namespace.to_string()));
        }
    };
    let (expected, sni, because) = match tls {
        ClientTls::Plaintext { because } => {
            flow.because = Some(because);
            let server = reach(worker, pod, &current.workload, address, limit).await?;
            flow.security = Security::Plaintext;
            return Ok(Upstream::Plain(server, address));
        }
        ClientTls::IstioMutual { expected, sni, because } => (expected, sni, because),
        ClientTls::Refused { because } => return Err(Failure::RuleRefused(because.to_string())),
        ClientTls::Originate { origination, because } => {
            flow.because = Some(because);
            return originate(worker, pod, current, client, address, origination, limit, flow)
                .await;
        }
    };
    flow.because = Some(because);
    flow.source_id = Some(current.workload.id.clone());
    let own = match current.identity.current() {
        Some(own) => own,
        None => current
            .identity
            .wait(timeouts.identity)
            .await
            .ok_or_else(|| Failure::no_identity(&current.identity))?,
    };
    let server = reach(worker, pod, &current.workload, address, limit).await?;
    let begun = Instant::now();
    let shake = connect(server, &own, &expected, &sni);
    let (server, peer, summary) = match timeout(timeouts.handshake, shake).await {
        Ok(result) => result.map_err(|error| Failure::UpstreamHandshake { address, error })?,
        Err(_) => {
            let error = std::io::Error::from(std::io::ErrorKind::TimedOut).into();
            return Err(Failure::UpstreamHandshake { address, error });
        }
    };
    flow.handshake = Some(begun.elapsed());
    flow.security = Security::MutualTls;
    flow.destination_id = Some(peer.id().clone());
    flow.tls = Some(summary);
    let certificates = Certificates { own: own.certificate().clone(), peer };
    Ok(Upstream::Mutual(Box::new(server), address, certificates))
}

/// TLS as the rule says, for an application that speaks plaintext (policy.md 2.3).
#[expect(clippy::too_many_arguments, reason = "one call; a structure would only rename them")]
async fn originate(
    worker: &Worker,
    pod: &Pod,
    current: &Current,
    client: &TcpStream,
    address: SocketAddr,
    origination: Arc<Origination>,
    limit: Duration,
    flow: &mut FlowRecord,
) -> Result<Upstream, Failure> {
    let (timeouts, originations) = (&worker.shared.timeouts, &worker.shared.originations);
    let failed = |error| Failure::Origination { address, error };
    let settings = &origination.settings;
    // Before anybody is called: a rule that cannot be kept needs no server.
    if let Some(problem) = originations.problem(settings) {
        return Err(failed(problem));
    }
    let name = server_name::of(client, &origination.ask_for).await;
    let name = name.ok_or_else(|| failed(OriginationError::NoServerName))?;
    let server = reach(worker, pod, &current.workload, address, limit).await?;
    let begun = Instant::now();
    let shake = originations.connect(server, settings, &name, origination.http2);
    let (server, summary) = match timeout(timeouts.handshake, shake).await {
        Ok(result) => result.map_err(failed)?,
        Err(_) => {
            let error: HandshakeError = std::io::Error::from(std::io::ErrorKind::TimedOut).into();
            return Err(failed(OriginationError::Handshake(error)));
        }
    };
    flow.handshake = Some(begun.elapsed());
    flow.security = Security::OriginatedTls;
    flow.tls = Some(summary);
    Ok(Upstream::Originated(Box::new(server), address, origination))
}

async fn reach(
    worker: &Worker,
    pod: &Pod,
    workload: &Arc<Workload>,
    address: SocketAddr,
    limit: Duration,
) -> Result<TcpStream, Failure> {
    let failed = |error| Failure::UpstreamConnect { address, error };
    // (On the host every connection to a declared port is the daemon's to take.)
    let hairpin = !pod.on_host && workload.addresses.contains(&address.ip());
    let dial = dial::outbound(&pod.namespace, &worker.maps, address, hairpin);
    match timeout(limit, dial).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(dial::DialError::Connect(error))) => Err(failed(error)),
        Ok(Err(error)) => Err(Failure::Internal(format!("cannot open a socket: {error}"))),
        Err(_) => Err(failed(std::io::ErrorKind::TimedOut.into())),
    }
}
