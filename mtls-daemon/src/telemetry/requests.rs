//! Requests of one inbound connection, as they are logged and counted.

use std::sync::Arc;

use super::FlowRecord;
use crate::identity::SpiffeId;
use crate::mesh::Workload;
use crate::proxy::http::{Denied, Finished, Report};

/// Hears of the requests of one connection.
pub struct Requests {
    workload: Arc<Workload>,
    source: std::net::SocketAddr,
    client: Option<SpiffeId>,
}

impl super::Telemetry {
    /// Whoever reports the requests of `flow`, whose peer and policy are settled.
    pub fn requests(&self, flow: &FlowRecord) -> Requests {
        Requests {
            workload: flow.workload.clone(),
            source: flow.source,
            client: flow.source_id.clone(),
        }
    }
}

impl Report for Requests {
    fn finished(&self, _finished: &Finished) {}

    fn denied(&self, denied: &Denied<'_>) {
        let client = self.client.as_ref().map_or("none", SpiffeId::as_str);
        tracing::info!(workload = %self.workload.key(), source = %self.source, client,
            method = denied.method, path = denied.path, host = denied.host,
            verdict = %denied.verdict, "request denied");
    }
}
