//! What an operator sees: the access log, metrics, the daemon's own log.

pub mod access;
mod federation;
mod flag;
pub mod flow;
mod line;
pub mod logs;
pub mod metrics;
pub mod requests;
mod tcp;

pub use flow::{Direction, FlowRecord, Security};

use std::io;
use std::sync::Arc;

use crate::proxy::failure::Failure;

/// Where finished connections are reported. Cheap to clone, shared by all threads.
#[derive(Clone)]
pub struct Telemetry {
    pub metrics: Arc<metrics::Metrics>,
    pub access: access::AccessLog,
}

impl Telemetry {
    /// Opens the access log at `sink` (its thread starts here) and empty metrics.
    ///
    /// # Errors
    /// The sink cannot be opened; the error names the file.
    pub fn new(node: &str, sink: &access::Sink) -> io::Result<Self> {
        let metrics = Arc::new(metrics::Metrics::new(node));
        let access = access::AccessLog::open(sink, node, metrics.access_log_dropped.clone())?;
        Ok(Self { metrics, access })
    }

    /// Counts a connection whose peer and policy are settled: its labels are those of this moment.
    pub fn opened(&self, flow: &mut FlowRecord) {
        self.metrics.opened(flow);
    }

    /// Counts a connection that was ended before anything was known of it.
    pub fn refused(&self, direction: Direction, failure: &Failure) {
        self.metrics.failed(direction, failure);
    }

    /// Counts the end of a connection and writes its access log line. Never blocks the data path.
    pub fn closed(&self, flow: &FlowRecord) {
        self.metrics.closed(flow);
        self.access.write(flow);
    }
}

#[cfg(test)]
pub(crate) mod testing;
