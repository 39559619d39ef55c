//! A stream whose first bytes have been looked at and are read again by whoever comes next.

/// Bytes already read, then the stream itself. Records what is read while `recording`.
pub struct Replay<S> {
    pub stream: S,
}
