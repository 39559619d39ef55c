use super::*;

#[test]
fn every_condition_has_to_be_met() {
    let (readiness, start) = Readiness::starting();
    let kernel = readiness.condition("kernel programs");
    let svids = readiness.condition("SVID of full/server");
    start.met();
    assert_eq!(readiness.awaited(), ["SVID of full/server", "kernel programs"]);
    kernel.met();
    assert!(!readiness.is_ready());
    svids.met();
    assert!(readiness.is_ready());
    assert!(readiness.awaited().is_empty());
}

#[test]
fn nothing_is_ready_before_the_start_is_over() {
    let (readiness, start) = Readiness::starting();
    readiness.condition("kernel programs").met();
    assert!(!readiness.is_ready());
    start.met();
    assert!(readiness.is_ready());
}

#[test]
fn a_condition_that_was_given_up_is_awaited_for_ever() {
    let (readiness, start) = Readiness::starting();
    drop(readiness.condition("kernel programs"));
    start.met();
    assert_eq!(readiness.awaited(), ["kernel programs"]);
}

#[test]
fn a_drain_makes_it_unready_again() {
    let (readiness, start) = Readiness::starting();
    start.met();
    let _drain = readiness.condition("shutting down");
    assert_eq!(readiness.awaited(), ["shutting down"]);
}

#[tokio::test]
async fn whoever_waits_is_woken() {
    let (readiness, start) = Readiness::starting();
    let waiting = readiness.clone();
    let waiter = tokio::spawn(async move { waiting.ready().await });
    start.met();
    tokio::time::timeout(Duration::from_secs(30), waiter).await.expect("woken").expect("no panic");
}

/// A check that finds what the test says.
fn checked(readiness: &Readiness) -> Arc<Mutex<Vec<String>>> {
    let wrong = Arc::new(Mutex::new(Vec::new()));
    let found = wrong.clone();
    readiness.check(Box::new(move || found.lock().expect("not poisoned").clone()));
    wrong
}

fn set(wrong: &Mutex<Vec<String>>, reasons: &[&str]) {
    *wrong.lock().expect("not poisoned") = reasons.iter().map(|&it| it.to_owned()).collect();
}

#[test]
fn what_a_check_finds_is_awaited_as_long_as_it_finds_it() {
    let (readiness, start) = Readiness::starting();
    let wrong = checked(&readiness);
    set(&wrong, &["workload full/server is refused", "SVID of full/client"]);
    assert_eq!(
        readiness.awaited(),
        ["SVID of full/client", "the start of the daemon", "workload full/server is refused"]
    );
    start.met();
    assert!(!readiness.is_ready());
    set(&wrong, &[]);
    assert!(readiness.is_ready());
    set(&wrong, &["SVID of full/client has expired"]);
    assert_eq!(readiness.awaited(), ["SVID of full/client has expired"], "after it was ready");
}

#[tokio::test]
async fn whoever_waits_is_woken_when_the_checks_find_nothing() {
    let (readiness, start) = Readiness::starting();
    let wrong = checked(&readiness);
    set(&wrong, &["SVID of full/client"]);
    start.met();
    let waiting = readiness.clone();
    let waiter = tokio::spawn(async move { waiting.report(Duration::from_millis(50)).await });
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(!waiter.is_finished());
    set(&wrong, &[]);
    tokio::time::timeout(Duration::from_secs(30), waiter).await.expect("woken").expect("no panic");
}
