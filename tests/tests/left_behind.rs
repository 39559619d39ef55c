//! When all is over, nothing is left: no rule, route, listener, pin, cgroup, namespace or process.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use mtls_tests::client::{converse, listening_ports};
use mtls_tests::world::{To, serve};
use mtls_tests::{DaemonSpec, World, leftovers, settings};

#[test]
fn a_pod_is_as_it_was_before_the_daemon_came() -> Result<()> {
    let mut world = World::without_daemons(&[])?;
    let names = ["sleep-full", "httpbin-full", "httpbin-partial"];
    let look = |world: &World| {
        let places = names.iter().map(|name| &world.pod(name).place);
        places.map(|place| settings::of(&place.netns)).collect::<Result<Vec<_>>>()
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
        settings::same(before, &after)?;
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
