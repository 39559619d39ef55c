use super::*;
use crate::identity::TrustDomain;

fn slot(account: &str) -> IdentitySlot {
    let domain = TrustDomain::parse("cluster.local").unwrap();
    IdentitySlot::new(SpiffeId::istio(&domain, "foo", account).unwrap(), Arc::default())
}

fn fail(slot: &IdentitySlot, times: u32) {
    for _ in 0..times {
        assert!(slot.begin());
        slot.finish(Err("the CA is on holiday".to_owned()));
    }
}

fn wait(slot: &IdentitySlot) -> Duration {
    slot.due(Instant::now(), SystemTime::now()).unwrap().wait
}

#[test]
fn retries_double_up_to_the_cap_and_differ_by_a_tenth() {
    let seconds = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 150.0, 150.0];
    for (failures, expected) in seconds.into_iter().enumerate() {
        let failures = u32::try_from(failures).unwrap();
        let waits: Vec<f64> =
            (0..200).map(|_| retry_after(failures, LONGEST_RETRY).wait.as_secs_f64()).collect();
        let (least, most) = (
            waits.iter().fold(f64::MAX, |a, b| a.min(*b)),
            waits.iter().fold(0.0, |a: f64, b| a.max(*b)),
        );
        assert!(least >= 0.9 * expected && most <= expected, "{failures}: {least} {most}");
        assert!(most - least > 0.05 * expected, "nodes do not ask together");
    }
    assert!(retry_after(u32::MAX, LONGEST_RETRY).wait <= LONGEST_RETRY);
    assert_eq!(retry_after(3, Duration::from_secs(4)).failures, 4);
    assert_eq!(retry_after(3, Duration::from_secs(1)).failures, 3, "cut short");
}

#[test]
fn a_retry_comes_well_before_the_end_of_the_svid() {
    for (left, cap) in [(10_000, 150.0), (400, 100.0), (40, 10.0), (4, 1.0), (1, 0.5), (0, 0.5)] {
        let most = longest_retry(Some(Duration::from_secs(left)));
        let wait = retry_after(20, most).wait.as_secs_f64();
        assert!(wait <= cap && wait >= 0.9 * cap, "{left}: {wait}");
    }
}

#[test]
fn half_life_differs_by_a_hundredth() {
    let now = SystemTime::now();
    let waits: Vec<f64> = (0..200)
        .map(|_| half_life(now + Duration::from_secs(1000), now).duration_since(now).unwrap())
        .map(|it| it.as_secs_f64())
        .collect();
    assert!(waits.iter().all(|wait| (490.0..=510.0).contains(wait)), "{waits:?}");
    let first = waits[0];
    assert!(waits.iter().any(|wait| (wait - first).abs() > 1.0));
}

#[test]
fn news_cut_a_backoff_short() {
    let slot = slot("web");
    fail(&slot, 12);
    assert!(wait(&slot) > Duration::from_secs(100));
    // As new roots do.
    slot.renew(Duration::from_secs(2));
    assert!(wait(&slot) <= Duration::from_secs(2));
    // As a revoked serial does.
    fail(&slot, 1);
    slot.renew(Duration::ZERO);
    assert_eq!(wait(&slot), Duration::ZERO);
    // As an issuer does that is back.
    fail(&slot, 1);
    assert!(wait(&slot) > Duration::from_secs(100));
    slot.retry();
    assert_eq!(wait(&slot), Duration::ZERO);
}

#[tokio::test]
async fn whoever_waits_cuts_a_backoff_short_to_a_second() {
    let slot = slot("web");
    fail(&slot, 12);
    assert!(wait(&slot) > Duration::from_secs(100));
    let waiting = slot.wait(Duration::from_secs(60));
    let looking = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(wait(&slot) <= IN_DEMAND);
        // The store is woken, and another failure is no reason to let them wait.
        slot.wake.notified().await;
        fail(&slot, 1);
        let again = wait(&slot);
        assert!(again <= IN_DEMAND, "{again:?}");
    };
    tokio::select! {
        _ = waiting => panic!("there is no SVID"),
        () = looking => {}
    }
    fail(&slot, 1);
    assert!(wait(&slot) > Duration::from_secs(100), "nobody waits any more");
}

#[tokio::test]
async fn what_is_waited_for_goes_first() {
    let (idle, wanted) = (slot("aaa"), slot("zzz"));
    let urgency = |slot: &IdentitySlot| slot.due(Instant::now(), SystemTime::now()).unwrap();
    assert!(urgency(&idle) == urgency(&wanted));
    let waiting = wanted.wait(Duration::from_secs(60));
    let looking = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(urgency(&wanted) < urgency(&idle));
    };
    tokio::select! {
        _ = waiting => panic!("there is no SVID"),
        () = looking => {}
    }
    assert!(urgency(&idle) == urgency(&wanted));
}

#[test]
fn an_end_that_comes_near_is_said_once_and_the_end_once() {
    let (life, at) = (Duration::from_secs(100), Duration::from_secs);
    assert!(Warned::Nothing.next(at(26), life).is_none());
    let near = Warned::Nothing.next(at(24), life);
    assert!(near == Some(Warned::EndsSoon));
    assert!(Warned::EndsSoon.next(at(1), life).is_none());
    assert!(Warned::EndsSoon.next(at(0), life) == Some(Warned::HasEnded));
    assert!(Warned::HasEnded.next(at(0), life).is_none());
}
