//! What a traffic policy has besides TLS: load balancing, connection pools. Nothing here uses it;
//! it is read over with a warning, and what Istio would refuse is refused, so that a rule that is
//! good here is good there.

use super::error::{Code, Report};
use super::field::{Field, Fields};
use super::yaml::Value;

const NOT_TLS: [&str; 6] = [
    "loadBalancer",
    "connectionPool",
    "outlierDetection",
    "tunnel",
    "proxyProtocol",
    "retryBudget",
];

/// Checks and skips everything but TLS.
pub(super) fn read_over(fields: &mut Fields<'_>, report: &mut Report) {
    for name in NOT_TLS {
        if fields.is_null(name) {
            // Without a value it opens nothing, unlike an empty `tls`.
            fields.ignore(report, &[name]);
            continue;
        }
        let Some(field) = fields.take(report, name) else { continue };
        field.warn(report, Code::WarnIgnored, "is not used here");
        let Some(mut inner) = field.fields(report) else { continue };
        match name {
            "loadBalancer" => load_balancer(&mut inner, report),
            "connectionPool" => connection_pool(&field, &mut inner, report),
            "outlierDetection" => {
                for share in ["maxEjectionPercent", "minHealthPercent"] {
                    within(&mut inner, share, 0.0..=100.0, report);
                }
            }
            _ => {}
        }
    }
}

fn load_balancer(fields: &mut Fields<'_>, report: &mut Report) {
    if let Some(field) = fields.take(report, "simple") {
        const KNOWN: [&str; 6] =
            ["UNSPECIFIED", "RANDOM", "PASSTHROUGH", "ROUND_ROBIN", "LEAST_REQUEST", "LEAST_CONN"];
        if let Some(text) = field.string(report)
            && !KNOWN.contains(&text)
        {
            field.error(report, Code::FieldValue, format!("{text:?} is no way to balance load"));
        }
        if fields.has("consistentHash") {
            field.error(report, Code::FieldValue, "only one of simple and consistentHash");
        }
    }
    if let Some(mut warmup) = fields.take(report, "warmup").and_then(|f| f.fields(report)) {
        warmup.need(report, "duration");
        within(&mut warmup, "minimumPercent", 0.0..=100.0, report);
        within(&mut warmup, "aggression", 1.0..=f64::INFINITY, report);
    }
}

fn connection_pool(field: &Field<'_>, fields: &mut Fields<'_>, report: &mut Report) {
    const TCP: [&str; 1] = ["maxConnections"];
    const HTTP: [&str; 4] =
        ["http1MaxPendingRequests", "http2MaxRequests", "maxRequestsPerConnection", "maxRetries"];
    if fields.is_empty() {
        field.error(report, Code::FieldValue, "must set tcp or http, or be left out");
    }
    for (part, limits) in [("tcp", &TCP[..]), ("http", &HTTP[..])] {
        let Some(mut inner) = fields.take(report, part).and_then(|f| f.fields(report)) else {
            continue;
        };
        for limit in limits {
            within(&mut inner, limit, 0.0..=f64::from(i32::MAX), report);
        }
    }
}

/// The field, if it is there, is a number in `range`.
fn within(
    fields: &mut Fields<'_>,
    name: &'static str,
    range: std::ops::RangeInclusive<f64>,
    report: &mut Report,
) {
    let Some(field) = fields.take(report, name) else { return };
    let inside = match field.node.value {
        Value::Float(number) => range.contains(&number),
        #[expect(clippy::cast_precision_loss, reason = "compared with small bounds")]
        Value::Integer(number) => range.contains(&(number as f64)),
        _ => false,
    };
    if !inside {
        let (low, high) = (range.start(), range.end());
        field.error(report, Code::FieldValue, format!("must be a number from {low} to {high}"));
    }
}
