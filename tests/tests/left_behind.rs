//! When all is over, nothing is left: no rule, route, listener, pin, cgroup, namespace or process.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Result, ensure};
use mtls_tests::client::{converse, listening_ports};
use mtls_tests::world::{To, serve};
use mtls_tests::{DaemonSpec, Pod, World, leftovers, process};

/// Rules, routes and sysctls of a pod, as text.
fn routing(pod: &Pod) -> Result<String> {
    let mut text = String::new();
    for family in ["-4", "-6"] {
        for what in [&["rule", "list"][..], &["route", "list", "table", "all"]] {
            let mut command = Command::new("ip");
            command.args(["-n", &pod.netns, family]).args(what);
            let output = process::output(command)?;
            // Neighbours' lifetimes and counters are not settings.
            text.push_str(&String::from_utf8_lossy(&output.stdout));
        }
    }
    let sysctls = pod.inside(|| {
        let mut values = String::new();
        for name in ["ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"] {
            values.push_str(&std::fs::read_to_string(format!("/proc/sys/net/{name}"))?);
        }
        Ok(values)
    })?;
    Ok(text + &sysctls)
}

fn lines(text: &str) -> BTreeSet<&str> {
    text.lines().collect()
}

#[test]
fn a_pod_is_as_it_was_before_the_daemon_came() -> Result<()> {
    let mut world = World::without_daemons(&[])?;
    let names = ["sleep-full", "httpbin-full", "httpbin-partial"];
    let look = |world: &World| {
        names.iter().map(|name| routing(world.pod(name))).collect::<Result<Vec<_>>>()
    };
    let before = look(&world)?;
    world.mesh.write()?;
    for index in 0..2 {
        world.daemons.push(DaemonSpec::new(&world.bed, index).start()?);
    }
    let traces = !world.b().does_without("ingress_ifindex")?;
    ensure!((look(&world)? != before) == traces, "enrolment leaves traces to look for: {traces}");
    let _echo = serve(world.pod("httpbin-full"), "echo", 9000)?;
    let talk = world.pod("sleep-full").inside(|| converse(To::Full.v4(9000), "hello"))?;
    ensure!(talk.worked(), "{talk:?}");

    // Dropping a daemon ends it and runs its cleanup.
    world.daemons.clear();
    for (before, after) in before.iter().zip(look(&world)?) {
        let (before, after) = (lines(before), lines(&after));
        let gone: Vec<_> = before.difference(&after).collect();
        let left: Vec<_> = after.difference(&before).collect();
        assert!(gone.is_empty() && left.is_empty(), "left: {left:?}, gone: {gone:?}");
    }
    let ports = world.pod("sleep-full").inside(listening_ports)?;
    ensure!(ports.is_empty(), "{ports:?}");
    let prefix = world.bed.prefix.clone();
    let pins: Vec<String> =
        leftovers::remains(&prefix).into_iter().filter(|what| what.starts_with("pins")).collect();
    assert_eq!(pins, Vec::<String>::new());
    drop(world);
    assert_eq!(leftovers::remains(&prefix), Vec::<String>::new());
    Ok(())
}

#[test]
fn cleanup_may_be_run_twice_and_for_a_node_that_never_was() -> Result<()> {
    let mut world = World::new()?;
    for daemon in &mut world.daemons {
        daemon.term()?;
        daemon.cleanup()?;
        daemon.cleanup()?;
    }
    leftovers::cleanup_node(&format!("{}-never", world.bed.prefix), &world.daemons[0].spec.run)
}
