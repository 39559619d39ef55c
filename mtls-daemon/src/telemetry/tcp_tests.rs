use super::*;
use crate::telemetry::testing::{flow, service};

#[test]
fn label_sets_are_bounded_and_the_rest_is_counted_together() {
    let metrics = TcpMetrics { max: 2, ..TcpMetrics::default() };
    for host in ["a.test", "b.test", "c.test", "d.test"] {
        let mut flow = flow(Direction::Outbound);
        flow.service = Some(service("team", "any", host));
        metrics.counters(&flow).opened();
    }
    let sets = metrics.read();
    assert_eq!(sets.len(), 3, "two of their own and one for all others");
    let overflow = sets
        .iter()
        .find(|(labels, _)| labels.destination_service == Name::Static(UNKNOWN))
        .expect("the common label set");
    assert_eq!(overflow.1.opened.load(Relaxed), 2);
    assert_eq!(overflow.0.reporter, "source");
}

#[test]
fn a_label_set_that_was_there_first_is_found_when_there_are_too_many() {
    let metrics = TcpMetrics { max: 1, ..TcpMetrics::default() };
    let flow = flow(Direction::Outbound);
    let first = metrics.counters(&flow);
    assert!(Arc::ptr_eq(&first, &metrics.counters(&flow)));
}

#[test]
fn a_slow_scrape_holds_no_lock() {
    let metrics = Arc::new(TcpMetrics::default());
    metrics.counters(&flow(Direction::Outbound)).opened();
    // What a scrape works on does not keep a new label set from being counted.
    let scraped = metrics.list();
    assert!(metrics.sets.try_write().is_ok());
    metrics.counters(&flow(Direction::Inbound)).opened();
    assert_eq!((scraped.len(), metrics.list().len()), (1, 2));
}

#[test]
fn a_cluster_service_has_a_short_name_and_a_service_entry_its_host() {
    let cases = [
        ("team", "web", "web.team.svc.cluster.local", "web"),
        ("team", "web", "web.example.com", "web.example.com"),
        ("team", "web", "web.teammates.example.com", "web.teammates.example.com"),
    ];
    for (namespace, name, host, expected) in cases {
        assert_eq!(&**short_name(&service(namespace, name, host)), expected, "{host}");
    }
}
