//! One JSON line a connection.
#[derive(Clone)]
pub struct AccessLog {}
