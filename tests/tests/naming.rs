//! Secure naming on the wire: a server must hold the identity that the client's configuration
//! says is at its address, and both must be of one mesh.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use mtls_tests::client::{Conversation, End, converse};
use mtls_tests::curl::curl;
use mtls_tests::demo::SLEEP;
use mtls_tests::process::Process;
use mtls_tests::world::{To, event, serve};
use mtls_tests::{DaemonSpec, Mesh, World, openssl};
use serde_json::json;

const PORT: u16 = 9000;

/// The shared topology, for which the two daemons may have configurations of their own.
struct Split {
    world: World,
    /// What node a believes.
    client: Mesh,
    echo: Process,
}

/// `configure` changes what node b believes; `run` changes how the daemons run.
fn split(
    configure: impl FnOnce(&mut Mesh, &World),
    run: impl Fn(usize, DaemonSpec) -> DaemonSpec,
) -> Result<Split> {
    let mut world = World::without_daemons(&[])?;
    let client = world.mesh.copy_for(&world.bed.directory.join("config-a"))?;
    let mut server = world.mesh.copy_for(&world.bed.directory.join("config-b"))?;
    configure(&mut server, &world);
    for (index, mesh) in [&client, &server].into_iter().enumerate() {
        mesh.write()?;
        let mut spec = run(index, DaemonSpec::new(&world.bed, index));
        spec.config = mesh.directory().to_owned();
        world.daemons.push(spec.spawn()?);
    }
    for daemon in &mut world.daemons {
        daemon.ready()?;
    }
    let echo = serve(world.pod("httpbin-full"), "echo", PORT)?;
    Ok(Split { world, client, echo })
}

/// The server's pod under the account `other`, of which node a knows nothing.
fn another_account(mesh: &mut Mesh, world: &World) {
    let pod = world.pod("httpbin-full");
    mesh.enrol(world.node(1), pod, "full", "httpbin", "other");
}

impl Split {
    /// The client gets 503 for HTTP and a reset for anything else; the client's daemon names
    /// `outcome`, the server's one of `inbound`; the application hears nothing.
    fn check_refused(&self, outcome: &str, inbound: &[&str]) -> Result<()> {
        let client = self.world.pod("sleep-full");
        let heard = self.echo.stdout.len();
        for to in [To::Full.v4(PORT), self.world.pod("httpbin-full").v4(PORT)] {
            let (a, b) = (self.world.a().mark(), self.world.b().mark());
            let got = curl(client, &To::Full.host(), to, "/", "canary")?;
            ensure!((got.exit, got.code) == (0, 503), "{to}: {got:?}");
            ensure!(got.body.contains(outcome), "the answer names the reason: {got:?}");
            let line = self.world.a().logged(a, "outbound", |l| l["direction"] == "outbound")?;
            ensure!(line["outcome"] == outcome, "{line}");
            ensure!(line["fault"] == "server" && line["detail"].is_string(), "{line}");
            let line = self.world.b().logged(b, "inbound", |l| l["direction"] == "inbound")?;
            let named = line["outcome"].as_str().is_some_and(|code| inbound.contains(&code));
            ensure!(named, "not one of {inbound:?}: {line}");

            let talk = client.inside(|| converse(to, "not HTTP"))?;
            ensure!(talk == Conversation::Ended(End::Broken), "{to}: {talk:?}");
        }
        let events = self.echo.stdout.json_after(heard);
        ensure!(events.is_empty(), "the application was reached: {events:?}");
        Ok(())
    }

    /// Works, and both ends are who they are said to be.
    fn check_works(&self, source: &str, destination: &str) -> Result<()> {
        let mark = self.world.b().mark();
        let talk = self.world.pod("sleep-full").inside(|| converse(To::Full.v4(PORT), "hello"))?;
        ensure!(talk.worked(), "{talk:?}");
        let line = self.world.b().logged(mark, "inbound", |l| l["direction"] == "inbound")?;
        ensure!(line["source"]["identity"] == source, "{line}");
        ensure!(line["destination"]["identity"] == destination, "{line}");
        ensure!(line["security"] == "mutual_tls", "{line}");
        Ok(())
    }

    /// Changes what node a believes.
    fn change(&mut self, change: impl FnOnce(&mut Mesh)) -> Result<()> {
        let before = self.world.a().generation()?;
        change(&mut self.client);
        self.client.write()?;
        self.world.a().reloaded_after(before)
    }
}

#[test]
fn a_server_under_another_account_is_refused_unless_a_rule_names_it() -> Result<()> {
    let mut split = split(another_account, |_, spec| spec)?;
    split.check_refused("upstream_identity_refused", &["tls_handshake_failed"])?;
    let other = "spiffe://cluster.local/ns/full/sa/other";
    let httpbin = "spiffe://cluster.local/ns/full/sa/httpbin";
    let line = split.world.a().logged(0, "a refusal", |line| line["outcome"] != "ok")?;
    let detail = line["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains(other) && detail.contains(httpbin), "it names both: {line}");

    let rule = |mesh: &mut Mesh, names: &[&str]| {
        let tls = json!({"mode": "ISTIO_MUTUAL", "subjectAltNames": names});
        let spec = json!({"host": To::Full.host(), "trafficPolicy": {"tls": tls}});
        mesh.put("networking.istio.io/v1", "DestinationRule", "full", "names", spec);
    };
    split.change(|mesh| rule(mesh, &[other]))?;
    split.check_works(SLEEP, other)?;
    // It replaces the list: the right one for the address is none that the rule names.
    split.change(|mesh| rule(mesh, &["spiffe://cluster.local/ns/full/sa/third", httpbin]))?;
    let got = curl(split.world.pod("sleep-full"), "x", To::Full.v4(PORT), "/", "canary")?;
    ensure!(got.code == 503 && got.body.contains("upstream_identity_refused"), "{got:?}");
    Ok(())
}

#[test]
fn a_rule_that_names_another_refuses_the_right_one() -> Result<()> {
    let mut split = split(|_, _| {}, |_, spec| spec)?;
    let httpbin = "spiffe://cluster.local/ns/full/sa/httpbin";
    split.check_works(SLEEP, httpbin)?;
    split.change(|mesh| {
        let names = ["spiffe://cluster.local/ns/full/sa/third"];
        let tls = json!({"mode": "ISTIO_MUTUAL", "subjectAltNames": names});
        let spec = json!({"host": To::Full.host(), "trafficPolicy": {"tls": tls}});
        mesh.put("networking.istio.io/v1", "DestinationRule", "full", "names", spec);
    })?;
    let got = curl(split.world.pod("sleep-full"), "x", To::Full.v4(PORT), "/", "canary")?;
    ensure!(got.code == 503 && got.body.contains("upstream_identity_refused"), "{got:?}");
    Ok(())
}

#[test]
fn names_of_one_trust_domain_are_accepted_both_ways_when_both_say_so() -> Result<()> {
    let split = split(
        |_, _| {},
        |index, spec| match index {
            0 => spec
                .with("--trust-domain", "old.example")
                .with("--trust-domain-alias", "cluster.local"),
            _ => spec.with("--trust-domain-alias", "old.example"),
        },
    )?;
    let old = "spiffe://old.example/ns/full/sa/sleep";
    split.check_works(old, "spiffe://cluster.local/ns/full/sa/httpbin")?;
    // And the other way: node b's client, node a's server.
    let _echo = serve(split.world.pod("sleep-full"), "echo", PORT)?;
    let (mark, to) = (split.world.a().mark(), split.world.pod("sleep-full").v4(PORT));
    let talk = split.world.pod("httpbin-full").inside(|| converse(to, "hello"))?;
    ensure!(talk.worked(), "{talk:?}");
    let line = split.world.a().logged(mark, "inbound", |l| l["direction"] == "inbound")?;
    ensure!(line["destination"]["identity"] == old, "{line}");
    ensure!(line["source"]["identity"] == "spiffe://cluster.local/ns/full/sa/httpbin", "{line}");
    Ok(())
}

#[test]
fn a_client_that_does_not_know_the_servers_trust_domain_refuses_it() -> Result<()> {
    let split = split(
        |_, _| {},
        |index, spec| match index {
            0 => spec.with("--trust-domain", "old.example"),
            _ => spec.with("--trust-domain-alias", "old.example"),
        },
    )?;
    split.check_refused("upstream_identity_refused", &["tls_handshake_failed"])
}

#[test]
fn a_mesh_with_another_root_is_refused_on_both_sides() -> Result<()> {
    let split = split(
        |_, _| {},
        |index, mut spec| {
            spec.ca = spec.ca.with_file_name(format!("ca-{index}"));
            spec
        },
    )?;
    split.check_refused("upstream_identity_refused", &["tls_handshake_failed"])?;
    let line = split.world.a().logged(0, "a refusal", |line| line["outcome"] != "ok")?;
    let detail = line["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains("not signed by a CA that is trusted"), "{line}");

    // The client always looks first. One that does not look meets the server's own refusal.
    let directory = &split.world.bed.directory;
    let ca = openssl::self_signed(directory, "foreign-root")?;
    let forged = openssl::svid(directory, "forged", &ca, SLEEP)?;
    let (certificate, key) = (forged.certificate.to_string_lossy(), forged.key.to_string_lossy());
    let (mark, heard) = (split.world.b().mark(), split.echo.stdout.len());
    let seen = openssl::look(
        split.world.pod("sleep-legacy"),
        split.world.pod("httpbin-full").v4(PORT),
        &["-alpn", "istio", "-cert", &certificate, "-key", &key],
    )?;
    ensure!(seen.text.contains("alert"), "{}", seen.text);
    let line = split.world.b().logged(mark, "inbound", |l| l["direction"] == "inbound")?;
    ensure!(line["outcome"] == "peer_identity_refused" && line["fault"] == "client", "{line}");
    let detail = line["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains(SLEEP) && detail.contains("not signed by a CA"), "{line}");
    // A ClientHello that comes late finds the application already connected to (its greeting might have
    // been awaited), and not one byte of it arrives there.
    if !split.echo.stdout.json_after(heard).is_empty() {
        let closed = event(&split.echo, heard, "closed")?;
        ensure!(closed["bytes"] == 0, "the application heard of it: {closed}");
    }
    Ok(())
}

#[test]
fn a_server_that_does_not_know_the_clients_trust_domain_refuses_it() -> Result<()> {
    // Both share a CA, so that only the name is foreign.
    let split = split(
        |_, _| {},
        |index, spec| match index {
            0 => spec
                .with("--trust-domain", "old.example")
                .with("--trust-domain-alias", "cluster.local"),
            _ => spec,
        },
    )?;
    // Its answer comes after the client's handshake is over, in any order with the first bytes.
    for _ in 0..5 {
        split.check_refused("upstream_tls_failed", &["peer_identity_refused"])?;
    }
    Ok(())
}
