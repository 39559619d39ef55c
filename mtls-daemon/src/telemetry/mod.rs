//! What an operator sees: the access log, metrics, the daemon's own log.

pub mod access;
pub mod flow;
pub mod logs;
pub mod metrics;

pub use flow::{Direction, FlowRecord, Security};

use std::sync::Arc;

/// Where finished connections are reported. Cheap to clone, shared by all threads.
#[derive(Clone)]
pub struct Telemetry {
    pub metrics: Arc<metrics::Metrics>,
    pub access: access::AccessLog,
}

impl Telemetry {
    /// Counts a connection whose peer and policy are settled.
    pub fn opened(&self, _flow: &FlowRecord) {
        todo!()
    }

    /// Counts the end of a connection and writes its access log line. Never blocks the data path.
    pub fn closed(&self, _flow: &FlowRecord) {
        todo!()
    }
}
