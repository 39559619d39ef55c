//! One daemon a node, and one node a namespace.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use mtls_tests::client::converse;
use mtls_tests::daemon::START;
use mtls_tests::wait::until;
use mtls_tests::world::{To, serve};
use mtls_tests::{DaemonSpec, World};

const PORT: u16 = 9000;

#[test]
fn a_second_daemon_of_the_same_name_or_state_refuses_and_disturbs_nobody() -> Result<()> {
    let world = World::new()?;
    let _echo = serve(world.pod("httpbin-full"), "echo", PORT)?;
    let same = DaemonSpec::new(&world.bed, 0).with("--http-address", "off");
    // The same name with another state directory; the same state directory under another name.
    let mut name_only = same.clone();
    name_only.state = world.bed.directory.join("state-elsewhere");
    let mut state_only = same.clone();
    state_only.name = format!("{}-other", world.bed.prefix);
    for (what, spec) in [("both", same), ("name", name_only), ("state", state_only)] {
        let (status, words) = spec.refused()?;
        ensure!(status.code() == Some(73), "{what}: {status}: {words}");
        let holder = world.a().process.pid().to_string();
        ensure!(words.contains(&holder), "{what}: the refusal says who is there: {words}");
    }
    let talk = world.pod("sleep-full").inside(|| converse(To::Full.v4(PORT), "undisturbed"))?;
    ensure!(talk.worked(), "{talk:?}");
    Ok(())
}

#[test]
fn a_namespace_that_another_node_enrolled_is_refused() -> Result<()> {
    let world = World::new()?;
    let _echo = serve(world.pod("httpbin-full"), "echo", PORT)?;
    let mut rival = DaemonSpec::new(&world.bed, 0).with("--http-address", "off");
    rival.name = format!("{}-rival", world.bed.prefix);
    rival.state = world.bed.directory.join("state-rival");
    rival.config = world.bed.directory.join("config-rival");
    std::fs::create_dir_all(&rival.config)?;
    // The same objects, but for the name of the node that should enrol them.
    let text = std::fs::read_to_string(world.bed.config_directory().join("mesh.yaml"))?;
    let text = text.replace(&world.node(0).name, &rival.name);
    std::fs::write(rival.config.join("mesh.yaml"), text)?;

    let netns = world.pod("sleep-full").netns.clone();
    let mut rival = rival.spawn()?;
    let said = until(START, "the rival to be refused, and to say of what", || {
        let words = rival.process.stderr.all();
        let about = words.iter().find(|line| line.contains(&netns) && line.contains("enrolled"));
        about.cloned().ok_or_else(|| words.join("\n"))
    })?;
    ensure!(said.contains(&world.node(0).name), "it names the node that has it: {said}");
    let mark = world.a().mark();
    let talk = world.pod("sleep-full").inside(|| converse(To::Full.v4(PORT), "undisturbed"))?;
    ensure!(talk.worked(), "{talk:?}");
    world.a().logged(mark, "by the first daemon", |line| line["direction"] == "outbound")?;
    rival.kill9()
}
