//! What `mtls-demo` shows beside the walkthroughs' own transcripts.

pub mod report;

/// The identity of the shared topology's enrolled client.
pub const SLEEP: &str = "spiffe://cluster.local/ns/full/sa/sleep";
