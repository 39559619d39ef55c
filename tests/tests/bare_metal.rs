//! Two hosts and a CA in network namespaces of their own, and no Kubernetes: nodes join with tokens, their
//! units get SVIDs and talk mTLS, all the while the certificates change, and for a while without the CA.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mtls_tests::curl::{self, Curl};
use mtls_tests::host::Unit;
use mtls_tests::process::Process;
use mtls_tests::wait::{patience, until};
use mtls_tests::world::serve;
use mtls_tests::{Ca, Capture, Daemon, Mesh, World};

const WEB: u16 = 8080;
const CANARY: &str = "canary-of-metal";

/// `client` on host a, `web` on host b. Dropped in this order.
struct Metal {
    _server: Process,
    client: Unit,
    web: Unit,
    ca: Ca,
    world: World,
}

fn lifetime(seconds: u64) -> Duration {
    patience(Duration::from_secs(seconds))
}

impl Metal {
    fn new(lifetime: Duration) -> Result<Self> {
        let mut world = World::of(&[Ca::pod(0)], |bed| Mesh::new(bed.config_directory()))?;
        let client = Unit::new(&world.bed, 0, "client", &[])?;
        let web = Unit::new(&world.bed, 1, "web", &[WEB])?;
        for unit in [&client, &web] {
            unit.enrol(&mut world.mesh, &world.bed);
        }
        world.mesh.namespace_mode("metal", "STRICT");
        let ca = Ca::start(&world.bed, &[])?;
        let lifetime = format!("{}s", lifetime.as_secs());
        world.start(|spec| {
            // A node may run what its token names, and nothing else.
            let own = if spec.name.ends_with("-a") { "metal/client" } else { "metal/web" };
            ca.joined(spec.with("--svid-lifetime", &lifetime), &[own])
        })?;
        let server = serve(&web.pod, "http", WEB)?;
        Ok(Self { _server: server, client, web, ca, world })
    }

    fn to(&self) -> SocketAddr {
        self.web.v4(WEB)
    }

    fn get(&self) -> Result<Curl> {
        curl::curl(&self.client.pod, "web.example", self.to(), "/", CANARY)
    }

    /// Whether a request crossed so. (What the daemons say to the CA began before any capture.)
    fn in_the_clear(&self, capture: &Capture) -> Result<bool> {
        let flows = capture.flows_to(self.to())?;
        ensure!(!flows.is_empty(), "nothing crossed at all");
        flows.iter().try_fold(false, |seen, flow| Ok(seen | flow.holds(CANARY.as_bytes())?))
    }

    /// As an operator brings them to nodes whose own certificates are worth nothing any more.
    fn new_tokens(&self) -> Result<()> {
        for (daemon, own) in self.world.daemons.iter().zip(["metal/client", "metal/web"]) {
            let name = &daemon.spec.name;
            let file = self.world.bed.directory.join("nodes-files").join(format!("{name}.token"));
            std::fs::write(file, self.ca.token(name, &[own])?)?;
        }
        Ok(())
    }

    /// Requests one after the other, from the unit, each on a connection of its own.
    fn requests(&self) -> Result<Process> {
        let mut command = self.client.pod.place.command("sh")?;
        let seconds = patience(Duration::from_secs(10)).as_secs();
        command.args(["-c", &format!(
            "while sleep 0.1; do curl --silent --noproxy '*' --max-time {seconds} --output /dev/null \
             --write-out '%{{http_code}} %{{exitcode}}\\n' http://{}/; done",
            self.to(),
        )]);
        Process::start("requests of the unit", command)
    }
}

/// The serial of the one SVID that a node's unit has.
fn serial(daemon: &Daemon) -> Result<String> {
    let status = daemon.status()?;
    let serial = status["svids"][0]["serial"].as_str();
    Ok(serial.with_context(|| format!("no SVID in {status}"))?.to_owned())
}

#[test]
fn nodes_join_and_certificates_change_without_a_failed_request() -> Result<()> {
    let metal = Metal::new(lifetime(10))?;
    let capture = Capture::start(metal.world.node(0))?;
    let (out, into) = (metal.world.a().mark(), metal.world.b().mark());
    let answer = metal.get()?;
    ensure!(answer.code == 200, "{answer:?}");
    for (daemon, mark) in [(metal.world.a(), out), (metal.world.b(), into)] {
        let line = daemon.logged(mark, "the connection", |_| true)?;
        ensure!(line["security"] == "mutual_tls", "{line}");
        for name in ["client", "web"] {
            ensure!(line.to_string().contains(&format!("/ns/metal/sa/{name}")), "{line}");
        }
    }
    // Each with the token that the CA gave for it, and each once.
    let nodes = metal.ca.command(&["nodes"])?;
    for node in &metal.world.bed.nodes {
        ensure!(nodes.contains(&node.name), "{nodes}");
    }
    let requests = metal.requests()?;
    let mut seen = [BTreeSet::new(), BTreeSet::new()];
    until(lifetime(60), "three certificates of each node's unit", || {
        for (serials, daemon) in seen.iter_mut().zip(&metal.world.daemons) {
            serials.insert(serial(daemon).map_err(|error| format!("{error:#}"))?);
        }
        let (enough, count) =
            (seen.iter().all(|serials| serials.len() >= 3), requests.stdout.len());
        if enough && count > 20 { Ok(()) } else { Err(format!("{seen:?}, {count} requests")) }
    })?;
    let lines = requests.stdout.all();
    let failed: Vec<&String> = lines.iter().filter(|line| *line != "200 0").collect();
    ensure!(failed.is_empty(), "{failed:?} of {}", lines.len());
    ensure!(!metal.in_the_clear(&capture)?, "plaintext crossed");
    Ok(())
}

/// Nothing breaks until certificates expire; then nothing is sent. The nodes' own have the same life here, so
/// that after it they need new tokens.
#[test]
fn a_ca_that_is_away_breaks_nothing_until_certificates_expire() -> Result<()> {
    let life = lifetime(20);
    let mut metal = Metal::new(life)?;
    ensure!(metal.get()?.code == 200);
    metal.ca.stop()?;
    let (away, before) = (Instant::now(), serial(metal.world.a())?);
    // The oldest certificate in use may be half its life old.
    while away.elapsed() < life / 2 - lifetime(3) {
        let answer = metal.get()?;
        ensure!(answer.code == 200, "after {:?} without the CA: {answer:?}", away.elapsed());
    }
    metal.ca.restart()?;
    until(life, "new certificates", || match serial(metal.world.a()) {
        Ok(now) if now != before => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    ensure!(metal.get()?.code == 200, "it was away and is back");

    metal.ca.stop()?;
    let capture = Capture::start(metal.world.node(0))?;
    until(life * 2, "the certificates to expire", || match metal.get() {
        Ok(answer) if answer.code != 200 => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    until(life, "the daemon to say so", || {
        let status = metal.world.a().status().map_err(|error| format!("{error:#}"))?;
        let error = &status["svids"][0]["last_error"];
        if error.is_string() { Ok(()) } else { Err(status["svids"].to_string()) }
    })?;
    ensure!(metal.get()?.code != 200, "an expired certificate was used");
    metal.ca.restart()?;
    metal.new_tokens()?;
    // Asked again after at most 150 s, and much sooner after so few failures.
    until(lifetime(120), "traffic to flow again", || match metal.get() {
        Ok(answer) if answer.code == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    ensure!(!metal.in_the_clear(&capture)?, "plaintext crossed");
    Ok(())
}

/// What its token does not name, a node does not get, whatever its configuration says.
#[test]
fn a_node_gets_what_its_token_names_and_nothing_else() -> Result<()> {
    let mut metal = Metal::new(lifetime(60))?;
    let other = Unit::new(&metal.world.bed, 0, "other", &[])?;
    let mark = metal.ca.mark();
    let before = metal.world.daemons.iter().map(Daemon::generation).collect::<Result<Vec<_>>>()?;
    other.enrol(&mut metal.world.mesh, &metal.world.bed);
    metal.world.mesh.write()?;
    for (daemon, before) in metal.world.daemons.iter().zip(before) {
        daemon.reloaded_after(before)?;
    }
    let line = metal.ca.audited(mark, "the refusal", |line| line["verdict"] == "refused")?;
    ensure!(line.to_string().contains("metal/sa/other"), "{line}");
    let answer = curl::curl(&other.pod, "web.example", metal.to(), "/", CANARY)?;
    ensure!(answer.code != 200, "{answer:?}");
    ensure!(metal.get()?.code == 200, "the others are served");
    Ok(())
}

/// A unit's identity, and a node with all that it obtained, are cut off, and come back when that is undone;
/// the node with a new token and new certificates.
#[test]
fn what_is_revoked_is_cut_off() -> Result<()> {
    let metal = Metal::new(lifetime(30))?;
    ensure!(metal.get()?.code == 200);
    let node = metal.world.bed.nodes[0].name.clone();
    for what in [["--identity", "metal/client"], ["--node", &node]] {
        metal.ca.revoke(&what)?;
        let cut = || match metal.get() {
            Ok(answer) if answer.code != 200 => Ok(()),
            other => Err(format!("{other:?}")),
        };
        // (docs/ca.md: within 10 s)
        until(Duration::from_secs(10), "the unit to be refused", cut)?;
        metal.ca.revoke(&[&what[..], &["--undo"]].concat())?;
        metal.new_tokens()?;
        until(lifetime(90), "the unit to be served again", || match metal.get() {
            Ok(answer) if answer.code == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
    }
    Ok(())
}
