//! Prometheus metrics, under Istio's standard TCP names where there is one.
pub struct Metrics {}
