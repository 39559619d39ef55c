//! Host names of rules and services: short names, wildcards, which of two is more specific.

use std::sync::Arc;

/// The cluster's DNS suffix, which short names are completed with. Istio's default; it is not the
/// trust domain.
const DOMAIN_SUFFIX: &str = "svc.cluster.local";

/// A rule's host in the rule's own namespace (policy.md 2.1.1): without a dot it is a short name.
pub fn resolve_short_name(host: &str, namespace: &str) -> Arc<str> {
    if host.contains('.') || host.starts_with('*') {
        host.into()
    } else {
        format!("{host}.{namespace}.{DOMAIN_SUFFIX}").into()
    }
}

/// A DNS name, or `*`, or `*.` and a DNS name.
pub fn is_valid(host: &str) -> bool {
    if host == "*" {
        return true;
    }
    let name = host.strip_prefix("*.").unwrap_or(host);
    is_dns_name(name)
}

/// Labels of 1-63 characters, 253 in all. Underscores are allowed, as resolvers allow them.
pub fn is_dns_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

/// Every name of `a` is a name of `b`.
pub fn subset_of(a: &str, b: &str) -> bool {
    match (a.strip_prefix('*'), b.strip_prefix('*')) {
        (Some(a), Some(b)) => a.ends_with(b),
        (Some(_), None) => false,
        (None, Some(b)) => a.ends_with(b),
        (None, None) => a == b,
    }
}

/// The names of `a` and `b` overlap.
pub fn matches(a: &str, b: &str) -> bool {
    match (a.strip_prefix('*'), b.strip_prefix('*')) {
        (Some(a), Some(b)) => a.ends_with(b) || b.ends_with(a),
        (Some(a), None) => b.ends_with(a),
        (None, Some(b)) => a.ends_with(b),
        (None, None) => a == b,
    }
}

/// Of `hosts`, the one that `host` falls under: an exact one, else the longest wildcard
/// (policy.md 2.1.3).
pub fn most_specific<'h>(host: &str, hosts: impl Iterator<Item = &'h str>) -> Option<&'h str> {
    hosts
        .filter(|candidate| subset_of(host, candidate))
        .max_by_key(|candidate| (*candidate == host, candidate.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_2_1_1_short_names_resolve_in_the_rules_namespace() {
        for (host, expected) in [
            ("reviews", "reviews.foo.svc.cluster.local"),
            ("reviews.bar", "reviews.bar"),
            ("*", "*"),
            ("*.bar.svc.cluster.local", "*.bar.svc.cluster.local"),
        ] {
            assert_eq!(&*resolve_short_name(host, "foo"), expected);
        }
    }

    #[test]
    fn rule_2_1_3_exact_beats_wildcard_and_the_longest_wildcard_wins() {
        let hosts = ["*", "*.com", "*.foo.com", "a.foo.com"];
        for (host, expected) in [
            ("a.foo.com", Some("a.foo.com")),
            ("b.foo.com", Some("*.foo.com")),
            ("b.com", Some("*.com")),
            ("b.org", Some("*")),
            ("*.foo.com", Some("*.foo.com")),
            ("*.b.foo.com", Some("*.foo.com")),
        ] {
            assert_eq!(most_specific(host, hosts.into_iter()), expected, "{host}");
        }
        assert_eq!(most_specific("b.org", ["*.com", "a.org"].into_iter()), None);
    }
}
