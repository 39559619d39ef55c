use std::future::{pending, ready};
use std::sync::mpsc;
use std::thread;

use super::*;

const LONG: Duration = Duration::from_secs(30);

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime").block_on(future)
}

#[test]
fn nothing_open_is_drained_at_once() {
    let (drain, watch) = channel();
    assert!(!watch.is_draining());
    assert_eq!(block_on(drain.drained(LONG)), Ok(()));
    assert!(watch.is_draining());
}

#[test]
fn the_drain_waits_for_guards_on_other_threads() {
    let (drain, watch) = channel();
    let (held, holds) = mpsc::channel();
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (watch, held) = (watch.clone(), held.clone());
            thread::spawn(move || {
                let guard = watch.guard();
                held.send(()).expect("the test waits");
                block_on(watch.draining());
                drop(guard);
            })
        })
        .collect();
    for _ in 0..3 {
        holds.recv_timeout(LONG).expect("every thread holds a guard");
    }
    assert_eq!(block_on(drain.drained(LONG)), Ok(()));
    for thread in threads {
        thread.join().expect("no panic");
    }
}

#[test]
fn what_is_open_after_the_drain_time_is_named_and_told_to_end() {
    let (drain, watch) = channel();
    let inbound = watch.named("inbound full/server");
    let same = watch.named("inbound full/server");
    let outbound = watch.named("outbound full/client");
    let open = (inbound.guard(), same.guard(), outbound.guard());
    let told = thread::spawn(move || {
        block_on(inbound.closing());
        drop(open);
    });
    let still = block_on(drain.drained(Duration::from_millis(20))).expect_err("three are open");
    assert_eq!(still.to_string(), "2 inbound full/server, 1 outbound full/client");
    told.join().expect("told to end");
    assert_eq!(block_on(drain.drained(LONG)), Ok(()), "and nothing is left");
}

#[test]
fn a_second_signal_ends_at_once() {
    let (drain, watch) = channel();
    let guard = watch.named("inbound full/server").guard();
    let told = thread::spawn(move || {
        block_on(watch.closing());
        drop(guard);
    });
    let ended = block_on(until_drained(&drain, LONG, ready("SIGINT")));
    assert_eq!(ended, Ended::Forced(StillOpen(vec![("inbound full/server".into(), 1)])));
    told.join().expect("told to end");
}

#[test]
fn an_undisturbed_drain_ends_by_itself() {
    let (drain, _watch) = channel();
    assert_eq!(block_on(until_drained(&drain, LONG, pending())), Ended::Drained);
}

#[test]
fn closing_is_never_taken_back() {
    let (drain, watch) = channel();
    drain.close();
    drain.start();
    block_on(watch.closing());
}

#[test]
fn groups_of_listeners_that_are_gone_are_forgotten() {
    let (_drain, watch) = channel();
    for index in 0..100 {
        drop(watch.named(&format!("inbound full/{index}")));
    }
    let groups = watch.open.groups.lock().expect("not poisoned").len();
    assert!(groups <= 2, "{groups} groups");
}

#[test]
fn signals_are_caught_and_named() {
    block_on(async {
        let mut signals = Signals::new().expect("handlers");
        for (signal, name) in
            [(nix::sys::signal::SIGTERM, "SIGTERM"), (nix::sys::signal::SIGINT, "SIGINT")]
        {
            nix::sys::signal::raise(signal).expect("raised");
            let caught = tokio::time::timeout(LONG, signals.next()).await;
            assert_eq!(caught, Ok(name));
        }
    });
}
