//! Configuration changes while the daemon runs.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mtls_tests::World;
use mtls_tests::client::converse;
use mtls_tests::wait::{eventually, patience, until};
use mtls_tests::world::serve;

const PORT: u16 = 9000;

fn plaintext_works(world: &World) -> Result<bool> {
    let to = world.pod("httpbin-full").v4(PORT);
    Ok(world.pod("sleep-legacy").inside(|| converse(to, "plaintext"))?.worked())
}

#[test]
fn a_good_change_is_in_force_for_new_connections_within_a_second() -> Result<()> {
    let mut world = World::new()?;
    let _echo = serve(world.pod("httpbin-full"), "echo", PORT)?;
    ensure!(plaintext_works(&world)?, "PERMISSIVE is the default");
    for _ in 0..3 {
        for (mode, works) in [("STRICT", false), ("PERMISSIVE", true)] {
            world.mesh.mode("full", "httpbin", mode);
            let started = Instant::now();
            world.mesh.write()?;
            until(Duration::from_secs(10), &format!("{mode} to be in force"), || {
                match plaintext_works(&world) {
                    Ok(now) if now == works => Ok(()),
                    other => Err(format!("plaintext works: {other:?}")),
                }
            })?;
            let took = started.elapsed();
            ensure!(took < patience(Duration::from_secs(1)), "{mode} was in force after {took:?}");
        }
    }
    Ok(())
}

#[test]
fn a_bad_object_is_refused_with_its_place_and_closes_only_what_it_selects() -> Result<()> {
    let mut world = World::new()?;
    let _echo = serve(world.pod("httpbin-full"), "echo", PORT)?;
    world.change(|mesh| {
        mesh.mode("full", "httpbin", "STRICT");
    })?;
    ensure!(!plaintext_works(&world)?);
    let refused = world.b().metric("mtls_config_reloads_total", &["result=\"refused\""])?;
    let mark = world.b().process.stderr.len();

    // Line 7 holds a mode that does not exist.
    world.mesh.write_file(
        "broken.yaml",
        "apiVersion: security.istio.io/v1\n\
         kind: PeerAuthentication\n\
         metadata:\n\
         \x20 name: broken\n\
         \x20 namespace: full\n\
         spec:\n\
         \x20 mtls: {mode: SOMETIMES}\n",
    )?;
    let line = world.b().said(mark, "about broken.yaml, line 7 and SOMETIMES", |line| {
        line.contains("broken.yaml:7") && line.contains("SOMETIMES")
    })?;
    ensure!(line.contains("mode"), "the field is named: {line}");
    eventually(Duration::from_secs(5), "the refusal to be counted", || {
        world
            .b()
            .metric("mtls_config_reloads_total", &["result=\"refused\""])
            .is_ok_and(|now| now > refused)
    })?;
    ensure!(world.b().metric("mtls_config_refused_objects", &[])? == 1.0, "one object");
    ensure!(!plaintext_works(&world)?, "what was in force stays");
    let status = world.b().status()?;
    ensure!(status.to_string().contains("broken.yaml"), "status shows the refusal: {status}");

    // A good change beside the bad file is in force; what the bad one selects stays closed.
    let port = 9001;
    let _other = serve(world.pod("httpbin-partial"), "echo", port)?;
    let to = world.pod("httpbin-partial").v4(port);
    let from = world.pod("sleep-legacy").clone();
    let works = || from.inside(|| converse(to, "plaintext")).is_ok_and(|talk| talk.worked());
    ensure!(works(), "PERMISSIVE is the default");
    world.mesh.mode("partial", "httpbin", "STRICT");
    world.mesh.mode("full", "httpbin", "PERMISSIVE");
    world.mesh.write()?;
    eventually(Duration::from_secs(10), "STRICT in the other namespace", || !works())?;

    // Mended, it is as if it had never been.
    world.mesh.remove_file("broken.yaml")?;
    eventually(Duration::from_secs(10), "the mended configuration", || {
        plaintext_works(&world).unwrap_or(false)
    })?;
    // Counted once it is in force everywhere.
    eventually(Duration::from_secs(5), "nothing to be refused", || {
        world.b().metric("mtls_config_refused_objects", &[]).is_ok_and(|count| count == 0.0)
    })
}

#[test]
fn a_new_file_that_nobody_can_read_is_counted_until_it_is_gone() -> Result<()> {
    let world = World::new()?;
    let refused = |expected: f64| {
        let what = format!("{expected} to be refused");
        eventually(Duration::from_secs(10), &what, || {
            let count = world.b().metric("mtls_config_refused_objects", &[]);
            count.is_ok_and(|count| count == expected)
        })
    };
    refused(0.0)?;
    world.mesh.write_file("new.yaml", "kind: X\nspec: [\n")?;
    refused(1.0)?;
    world.mesh.remove_file("new.yaml")?;
    refused(0.0)?;
    // Nor can anybody say what a directory holds that is not there.
    let (place, aside) = (world.mesh.directory(), world.mesh.directory().with_extension("aside"));
    std::fs::rename(place, &aside)?;
    refused(1.0)?;
    std::fs::rename(&aside, place)?;
    refused(0.0)
}

#[test]
fn a_workload_added_while_running_is_enrolled_and_one_removed_is_left_alone() -> Result<()> {
    let mut world =
        World::with(&[mtls_tests::PodSpec::new(0, "late", 40)], |_, _| {}, |spec| spec)?;
    let _echo = serve(world.pod("httpbin-full"), "echo", PORT)?;
    let (node, late) = (world.node(0).clone(), world.pod("late").clone());
    world.change(|mesh| {
        mesh.mode("full", "httpbin", "STRICT");
    })?;
    let to = world.pod("httpbin-full").v4(PORT);
    ensure!(!late.inside(|| converse(to, "not yet"))?.worked());
    world.change(|mesh| {
        mesh.enrol(&node, &late, "late", "late", "late");
    })?;
    let mark = world.b().mark();
    eventually(Duration::from_secs(5), "the late pod to have an identity", || {
        late.inside(|| converse(to, "now")).is_ok_and(|talk| talk.worked())
    })?;
    world.b().logged(mark, "with the late pod's identity", |line| {
        line["source"]["identity"] == "spiffe://cluster.local/ns/late/sa/late"
    })?;
    world.change(|mesh| {
        mesh.remove("NodeWorkload", "late", "late");
    })?;
    eventually(Duration::from_secs(5), "the late pod to be let go", || {
        late.inside(|| converse(to, "in the clear, refused")).is_ok_and(|talk| !talk.worked())
    })?;
    let listening = late.inside(mtls_tests::client::listening_ports)?;
    ensure!(listening.is_empty(), "listeners were left in the pod: {listening:?}");
    Ok(())
}
