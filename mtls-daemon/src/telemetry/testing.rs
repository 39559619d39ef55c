//! Flows for the tests of this module and its neighbours.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::{Direction, FlowRecord, Security};
use crate::identity::{SpiffeId, TrustDomain};
use crate::mesh::{Service, Workload};

/// `spiffe://cluster.local/ns/<namespace>/sa/<name>`.
pub(crate) fn id(namespace: &str, name: &str) -> SpiffeId {
    let domain = TrustDomain::parse("cluster.local").expect("a trust domain");
    SpiffeId::istio(&domain, namespace, name).expect("an ID")
}

pub(crate) fn workload(namespace: &str, name: &str) -> Arc<Workload> {
    Arc::new(Workload {
        namespace: namespace.into(),
        name: name.into(),
        service_account: name.into(),
        id: id(namespace, name),
        labels: BTreeMap::new(),
        addresses: vec!["10.0.0.2".parse().expect("an address")],
        ports: BTreeMap::new(),
        speaks_mtls: true,
    })
}

pub(crate) fn service(namespace: &str, name: &str, host: &str) -> Arc<Service> {
    Arc::new(Service {
        namespace: namespace.into(),
        name: name.into(),
        hosts: vec![host.into()],
        addresses: Vec::new(),
        ports: Vec::new(),
        endpoints: Vec::new(),
        external: false,
        subject_alt_names: Vec::new(),
    })
}

/// A flow that knows only what every flow knows: the enrolled workload is `full/client` outbound and
/// `full/server` inbound.
pub(crate) fn flow(direction: Direction) -> FlowRecord {
    let own = match direction {
        Direction::Outbound => workload("full", "client"),
        Direction::Inbound => workload("full", "server"),
    };
    FlowRecord {
        direction,
        workload: own,
        source: "10.0.0.1:40000".parse().expect("an address"),
        source_workload: None,
        source_id: None,
        destination: "10.0.0.2:80".parse().expect("an address"),
        endpoint: None,
        destination_workload: None,
        destination_id: None,
        service: None,
        mode: None,
        security: Security::None,
        because: None,
        tls: None,
        started: Instant::now(),
        sent: 0,
        received: 0,
        handshake: None,
        failure: None,
        opened: false,
    }
}
