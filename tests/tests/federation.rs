//! Two trust domains that believe each other by their bundles: as files, and at a URL.
#![forbid(unsafe_code)]

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mtls_tests::client::{self, End, converse, ping, read_to_end};
use mtls_tests::process::Process;
use mtls_tests::servers::Authority;
use mtls_tests::world::{To, serve};
use mtls_tests::{Daemon, World, until};
use serde_json::{Value, json};

const PORT: u16 = 9000;
const SLEEP: &str = "a.example/ns/full/sa/sleep";
const HTTPBIN: &str = "spiffe://b.example/ns/full/sa/httpbin";

/// The two domains: node a's is `a.example`, node b's `b.example`. `federate` says how each is to know
/// the other: flag and value, by the node's letter.
fn two_domains(federate: impl Fn(&Path, &str) -> Vec<(&'static str, String)>) -> Result<World> {
    let mut world = World::without_daemons(&[])?;
    // Whom to expect at the other domain's servers is nothing that a WorkloadEntry says.
    let rule = json!({
        "host": To::Full.host(),
        "trafficPolicy": {"tls": {"mode": "ISTIO_MUTUAL", "subjectAltNames": [HTTPBIN]}},
    });
    world.mesh.put("networking.istio.io/v1", "DestinationRule", "full", "other", rule);
    world.mesh.mode("full", "httpbin", "STRICT");
    let directory = world.bed.directory.clone();
    world.start(|mut spec| {
        let letter = if spec.name.ends_with("-a") { "a" } else { "b" };
        spec.ca = directory.join(format!("ca-{letter}"));
        let mut spec = spec.with("--trust-domain", &format!("{letter}.example"));
        for (flag, value) in federate(&directory, letter) {
            spec = spec.with(flag, &value);
        }
        spec
    })?;
    Ok(world)
}

/// A SPIFFE bundle document of PEM certificates.
fn document(authorities: &[&Path], sequence: u64) -> Result<String> {
    let mut keys = Vec::new();
    for file in authorities {
        let pem = fs::read_to_string(file)?;
        let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        keys.push(json!({"kty": "EC", "use": "x509-svid", "x5c": [body]}));
    }
    let document = json!({"keys": keys, "spiffe_sequence": sequence, "spiffe_refresh_hint": 1});
    Ok(document.to_string())
}

fn put(file: &Path, text: &str) -> Result<()> {
    let beside = file.with_extension("new");
    fs::write(&beside, text)?;
    Ok(fs::rename(beside, file)?)
}

/// The certificate of a node's CA.
fn root(world: &World, letter: &str) -> Result<PathBuf> {
    let directory = world.bed.directory.join(format!("ca-{letter}"));
    let mut found = Vec::new();
    for entry in fs::read_dir(&directory)? {
        let path = entry?.path();
        let text = fs::read_to_string(&path).unwrap_or_default();
        if text.contains("BEGIN CERTIFICATE") {
            found.push(path);
        }
    }
    found.pop().with_context(|| format!("no certificate in {}", directory.display()))
}

/// What a daemon says of the other domain.
fn known(daemon: &Daemon, domain: &str) -> Result<Value> {
    let status = daemon.status()?;
    let all = status["federation"].as_array().context("federation")?;
    let one = all.iter().find(|it| it["trust_domain"] == domain).cloned();
    one.with_context(|| format!("no {domain}: {status}"))
}

fn wait_known(
    daemon: &Daemon,
    domain: &str,
    what: &str,
    is: impl Fn(&Value) -> bool,
) -> Result<()> {
    until(Duration::from_secs(15), what, || match known(daemon, domain) {
        Ok(known) if is(&known) => Ok(()),
        Ok(known) => Err(known.to_string()),
        Err(error) => Err(format!("{error:#}")),
    })
}

fn authorities(count: u64) -> impl Fn(&Value) -> bool {
    move |known| known["authorities"] == count
}

fn error(text: &'static str) -> impl Fn(&Value) -> bool {
    move |known| known["last_error"].as_str().is_some_and(|error| error.contains(text))
}

fn open(world: &World) -> Result<TcpStream> {
    world.pod("sleep-full").inside(|| {
        let mut stream = client::connect(To::Full.v4(PORT))?;
        ping(&mut stream, "canary")?;
        Ok(stream)
    })
}

fn talks(world: &World) -> Result<bool> {
    Ok(world.pod("sleep-full").inside(|| converse(To::Full.v4(PORT), "canary"))?.worked())
}

/// Waits until a connection is refused, with this in the sentence.
fn refused(world: &World, daemon: &Daemon, outcome: &str, why: &str) -> Result<()> {
    let mark = daemon.mark();
    ensure!(!talks(world)?, "it should be refused: {why}");
    let line = daemon.logged(mark, why, |line| line["outcome"] == outcome)?;
    let detail = line["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains(why), "{why}: {line}");
    Ok(())
}

#[test]
fn bundles_in_files_decide_who_is_believed() -> Result<()> {
    let mut world = two_domains(|directory, letter| {
        let other = if letter == "a" { "b" } else { "a" };
        let file = directory.join(format!("{other}.json"));
        vec![("--federated-bundle", format!("{other}.example={}", file.display()))]
    })?;
    let _echo = serve(world.pod("httpbin-full"), "echo", PORT)?;
    let directory = world.bed.directory.clone();
    let file = |letter: &str| directory.join(format!("{letter}.json"));
    let (root_a, root_b) = (root(&world, "a")?, root(&world, "b")?);

    // Never had: nobody is believed, by either side.
    wait_known(world.a(), "b.example", "no bundle", error("not there"))?;
    refused(&world, world.a(), "upstream_identity_refused", "bundle of its trust domain is empty")?;
    put(&file("b"), &document(&[&root_b], 1)?)?;
    wait_known(world.a(), "b.example", "b's bundle", authorities(1))?;
    refused(&world, world.b(), "peer_identity_refused", "bundle of its trust domain is empty")?;
    put(&file("a"), &document(&[&root_a], 1)?)?;
    wait_known(world.b(), "a.example", "a's bundle", authorities(1))?;
    let mark = world.b().mark();
    ensure!(talks(&world)?);
    let line = world.b().logged(mark, "inbound", |line| line["outcome"] == "ok")?;
    ensure!(line["source"]["identity"] == format!("spiffe://{SLEEP}"), "{line}");

    // Policies speak of the other domain's principals.
    for (principal, allowed) in [(SLEEP, true), ("b.example/ns/full/sa/sleep", false)] {
        let spec = json!({
            "selector": {"matchLabels": {"app": "httpbin"}},
            "rules": [{"from": [{"source": {"principals": [principal]}}]}],
        });
        world.change(|mesh| {
            mesh.put("security.istio.io/v1", "AuthorizationPolicy", "full", "who", spec);
        })?;
        ensure!(talks(&world)? == allowed, "{principal}");
    }
    world.change(|mesh| {
        mesh.remove("AuthorizationPolicy", "full", "who");
    })?;

    // The wrong root, an older document, rubbish.
    let stranger = Authority::new(&world.bed.directory, "stranger")?;
    put(&file("b"), &document(&[stranger.certificate()], 2)?)?;
    wait_known(world.a(), "b.example", "the next", |known| known["sequence"] == 2)?;
    refused(&world, world.a(), "upstream_identity_refused", "not signed by a CA that is trusted")?;
    put(&file("b"), &document(&[&root_b], 1)?)?;
    wait_known(world.a(), "b.example", "the older", error("older document is refused"))?;
    ensure!(!talks(&world)?);
    put(&file("b"), &document(&[&root_b], 3)?)?;
    wait_known(world.a(), "b.example", "a good one", |known| known["sequence"] == 3)?;
    ensure!(talks(&world)?);
    put(&file("b"), "{")?;
    wait_known(world.a(), "b.example", "rubbish", error("JWK"))?;
    ensure!(talks(&world)?, "the last good one stays");

    // What is taken away ends what it opened.
    let mut stream = open(&world)?;
    let mark = world.b().mark();
    put(&file("a"), &document(&[], 2)?)?;
    let (_, end) = read_to_end(&mut stream)?;
    ensure!(end == End::Broken, "an open connection goes on: {end:?}");
    let line =
        world.b().logged(mark, "the end", |line| line["outcome"] == "peer_identity_refused")?;
    ensure!(line["detail"].as_str().is_some_and(|it| it.contains("no longer in")), "{line}");
    refused(&world, world.b(), "peer_identity_refused", "bundle of its trust domain is empty")?;
    Ok(())
}

/// A web server with the bundle of b.example, in node a's own network.
fn endpoint(world: &World, directory: &Path, authority: &Authority) -> Result<Process> {
    let pair = authority.sign("endpoint", "subjectAltName=DNS:localhost\n", "1")?;
    let mut command = world.node(0).place.command("openssl")?;
    command.current_dir(directory).args(["s_server", "-accept", "8443", "-HTTP"]);
    command.arg("-cert").arg(&pair.certificate).arg("-key").arg(&pair.key);
    let server = Process::start("openssl s_server", command)?;
    server.stdout.find_after(0, Duration::from_secs(10), "that it accepts", |line| {
        line.contains("ACCEPT").then_some(())
    })?;
    Ok(server)
}

/// A file that the server sends as it is.
fn answer(directory: &Path, head: &str, body: &str) -> Result<()> {
    put(&directory.join("bundle.json"), &format!("HTTP/1.0 {head}\r\n\r\n{body}"))
}

#[test]
fn a_bundle_at_a_url_is_fetched_again_and_kept() -> Result<()> {
    let mut world = two_domains(|directory, letter| match letter {
        "a" => {
            let ca = directory.join("web.pem").display().to_string();
            let url = "b.example=https://localhost:8443/bundle.json".to_owned();
            vec![("--federated-endpoint", url), ("--federated-endpoint-ca", ca)]
        }
        _ => {
            let file = directory.join("a.json");
            vec![("--federated-bundle", format!("a.example={}", file.display()))]
        }
    })?;
    let _echo = serve(world.pod("httpbin-full"), "echo", PORT)?;
    let directory = world.bed.directory.clone();
    let (root_a, root_b) = (root(&world, "a")?, root(&world, "b")?);
    put(&directory.join("a.json"), &document(&[&root_a], 1)?)?;
    wait_known(world.b(), "a.example", "a's bundle", authorities(1))?;
    let web = Authority::new(&directory, "web")?;
    wait_known(world.a(), "b.example", "nobody there", error("cannot connect"))?;
    refused(&world, world.a(), "upstream_identity_refused", "bundle of its trust domain is empty")?;

    // A server that somebody else vouches for.
    let other = Authority::new(&directory, "otherweb")?;
    answer(&directory, "200 OK", &document(&[&root_b], 7)?)?;
    let mut server = endpoint(&world, &directory, &other)?;
    wait_known(world.a(), "b.example", "a stranger", error("certificate"))?;
    server.kill()?;
    drop(server);
    answer(&directory, "302 Found\r\nLocation: https://localhost:8443/other", "")?;
    let mut server = endpoint(&world, &directory, &web)?;
    wait_known(world.a(), "b.example", "a redirect", error("it answered 302"))?;
    answer(&directory, "200 OK", &document(&[&root_b], 7)?)?;
    wait_known(world.a(), "b.example", "the bundle", authorities(1))?;
    ensure!(talks(&world)?);
    ensure!(world.a().metric("mtls_federated_authorities", &["b.example"])? == 1.0);
    ensure!(world.a().reported("mtls_federated_bundle_age_seconds", &["b.example"])? < 15.0);

    // The document's own hint says when it is asked for again: every second.
    answer(&directory, "200 OK", &document(&[&root_b], 6)?)?;
    wait_known(world.a(), "b.example", "the older", error("older document"))?;
    answer(&directory, "200 OK", &document(&[&root_b], 8)?)?;
    wait_known(world.a(), "b.example", "the next", |known| known["sequence"] == 8)?;

    // Nobody there any more: what was had stays, after a restart, too.
    server.kill()?;
    wait_known(world.a(), "b.example", "nobody there", error("cannot connect"))?;
    ensure!(talks(&world)?);
    world.daemons[0].term()?;
    world.daemons[0].restart()?;
    ensure!(known(world.a(), "b.example")?["sequence"] == 8);
    ensure!(talks(&world)?);

    // It takes everything back.
    let mut stream = open(&world)?;
    let mark = world.a().mark();
    answer(&directory, "200 OK", &document(&[], 9)?)?;
    let _server = endpoint(&world, &directory, &web)?;
    let (_, end) = read_to_end(&mut stream)?;
    ensure!(end == End::Broken, "an open connection goes on: {end:?}");
    world.a().logged(mark, "the end", |line| line["outcome"] == "upstream_identity_refused")?;
    refused(&world, world.a(), "upstream_identity_refused", "bundle of its trust domain is empty")?;
    Ok(())
}

#[test]
fn the_own_trust_domain_is_not_federated() -> Result<()> {
    let world = World::without_daemons(&[])?;
    world.mesh.write()?;
    let spec = mtls_tests::DaemonSpec::new(&world.bed, 0);
    let (status, said) = spec.with("--federated-bundle", "cluster.local=/x.json").refused()?;
    ensure!(!status.success() && said.contains("this mesh's own trust domain"), "{said}");
    Ok(())
}
