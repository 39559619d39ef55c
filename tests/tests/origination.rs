//! TLS that the daemon originates for applications that speak plaintext, to servers that require
//! client certificates of their own: Redis and nginx, as the distribution ships them.
#![forbid(unsafe_code)]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mtls_tests::client::converse;
use mtls_tests::curl::{self, Curl, curl};
use mtls_tests::process::Process;
use mtls_tests::servers::{Authority, nginx, nginx_open, redis, redis_cli};
use mtls_tests::world::To;
use mtls_tests::{Capture, Pod, PodSpec, World, wait};
use serde_json::{Value, json};

const HOST: &str = "db.example.com";
const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 96, 9, 1);
/// Outside the mesh's ranges.
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 30);
const REDIS: u16 = 6379;
const GOOD: u16 = 8443;
/// Declared to speak it, and the same server as [`GOOD`].
const HTTP2: u16 = 9443;
const GRPC: u16 = 9444;
const EXPIRED: u16 = 8444;
const OTHER_NAME: u16 = 8445;
const VERSION_1: u16 = 8446;
/// These ask for no client certificate.
const OPEN: u16 = 8447;
const OPEN_OTHER_NAME: u16 = 8448;

const API: &str = "networking.istio.io/v1";
/// For a change of files that no test measures.
const REREAD: Duration = Duration::from_secs(15);

/// A server outside the mesh, and the files of its client.
struct Outside {
    world: World,
    files: PathBuf,
    _servers: Vec<Process>,
}

fn outside() -> Result<Outside> {
    let db = PodSpec::new(1, "db", 30).at(Some(SERVER), None);
    let mut world = World::without_daemons(&[db])?;
    let files = world.bed.directory.join("tls");
    fs::create_dir_all(&files)?;
    let authority = Authority::new(&files, "ca")?;
    let other_authority = Authority::new(&files, "other-ca")?;
    let names = |host: &str| format!("subjectAltName=DNS:{host},DNS:dns.example.com\n");
    let good = authority.sign("server", &names(HOST), "2")?;
    let expired = authority.sign("expired", &names(HOST), "0")?;
    let signed = Instant::now();
    let other = authority.sign("other-name", "subjectAltName=DNS:other.example.com\n", "2")?;
    let version_1 = authority.sign("version-1", "", "2")?;
    authority.sign("client", "extendedKeyUsage=clientAuth\n", "2")?;
    other_authority.sign("other-client", "extendedKeyUsage=clientAuth\n", "2")?;
    authority.revocations(&other)?;
    let pod = world.pod("db");
    let ports = [(GOOD, &good), (EXPIRED, &expired), (OTHER_NAME, &other), (VERSION_1, &version_1)];
    let servers = vec![
        redis(pod, REDIS, &good, &authority)?,
        nginx(pod, &ports, &authority)?,
        nginx_open(pod, &files, &[(OPEN, &good), (OPEN_OTHER_NAME, &other)])?,
    ];
    // The daemon resolves by a file of this testbed's, and nobody else does.
    let hosts = files.join("hosts");
    fs::write(&hosts, format!("{SERVER} dns.example.com twin.example.com\n"))?;
    let bind = format!("mount --bind {} /etc/hosts && exec \"$@\"", hosts.display());
    service(&mut world, HOST, &[VIRTUAL]);
    world.mesh.write()?;
    for index in 0..2 {
        let spec = mtls_tests::DaemonSpec::new(&world.bed, index)
            .under(&["unshare", "--mount", "sh", "-c", &bind, "sh"]);
        world.daemons.push(spec.spawn()?);
    }
    for daemon in &mut world.daemons {
        daemon.ready()?;
    }
    // Certificates count in whole seconds.
    wait::until(Duration::from_secs(5), "a certificate's end", || {
        if signed.elapsed() > Duration::from_secs(2) {
            Ok(())
        } else {
            Err("still good".to_owned())
        }
    })?;
    Ok(Outside { world, files, _servers: servers })
}

/// A service outside the mesh: at a virtual address, or by its name alone.
fn service(world: &mut World, host: &str, addresses: &[Ipv4Addr]) {
    let mut ports: Vec<Value> =
        [REDIS, GOOD, EXPIRED, OTHER_NAME, VERSION_1, OPEN, OPEN_OTHER_NAME]
            .iter()
            .map(|port| json!({"number": port, "name": format!("port-{port}")}))
            .collect();
    for (number, protocol) in [(HTTP2, "HTTP2"), (GRPC, "GRPC")] {
        let name = format!("port-{number}");
        ports.push(json!(
            {"number": number, "name": name, "protocol": protocol, "targetPort": GOOD}
        ));
    }
    let mut spec = json!({"hosts": [host], "ports": ports, "location": "MESH_EXTERNAL"});
    if addresses.is_empty() {
        spec["resolution"] = json!("DNS");
    } else {
        spec["resolution"] = json!("STATIC");
        spec["addresses"] = json!(addresses);
        spec["endpoints"] = json!([{"address": SERVER}]);
    }
    world.mesh.put(API, "ServiceEntry", "full", &object_of(host), spec);
}

/// What the objects of a host are called.
fn object_of(host: &str) -> String {
    host.replace('*', "any")
}

impl Outside {
    fn client(&self) -> &Pod {
        self.world.pod("sleep-full")
    }

    fn file(&self, name: &str) -> String {
        self.files.join(name).display().to_string()
    }

    fn mutual(&self) -> Value {
        json!({
            "mode": "MUTUAL",
            "clientCertificate": self.file("client.pem"),
            "privateKey": self.file("client.key"),
            "caCertificates": self.file("ca.pem"),
        })
    }

    fn rule(&mut self, host: &str, tls: &Value) -> Result<()> {
        let spec = json!({"host": host, "trafficPolicy": {"tls": tls}});
        self.world.change(|mesh| {
            mesh.put(API, "DestinationRule", "full", &object_of(host), spec);
        })
    }

    fn get(&self, host: &str, to: SocketAddr) -> Result<Curl> {
        curl(self.client(), host, to, "/", "canary")
    }

    fn ping(&self) -> Result<String> {
        redis_cli(self.client(), (VIRTUAL, REDIS).into(), &["PING"])
    }

    /// Redis' client gets no answer, HTTP's a 503, and both are logged as `code`.
    fn check_refused(&self, port: u16, code: &str) -> Result<()> {
        let mark = self.world.a().mark();
        let got = self.get(HOST, (VIRTUAL, port).into())?;
        ensure!(got.code == 503 && got.body.contains(code), "not {code}: {got:?}");
        let line = self.world.a().logged(mark, code, |line| line["outcome"] == code)?;
        ensure!(line["detail"].is_string() && line["fault"] != "us", "{line}");
        Ok(())
    }

    /// The page that the server at `port` has for who comes so, over TLS that the daemon originated.
    fn check_page(&self, port: u16, page: &str) -> Result<()> {
        let mark = self.world.a().mark();
        let got = self.get(HOST, (VIRTUAL, port).into())?;
        ensure!(got.code == 200 && got.body == page, "{port}: not {page:?}: {got:?}");
        let end = format!(":{port}");
        let line = self.world.a().logged(mark, page, |line| {
            line["destination"]["address"].as_str().is_some_and(|it| it.ends_with(&end))
        })?;
        ensure!(line["security"] == "originated_tls", "{line}");
        Ok(())
    }

    fn check_redis_refused(&self, code: &str) -> Result<()> {
        let mark = self.world.a().mark();
        let said = self.ping()?;
        ensure!(!said.contains("PONG"), "{code}: {said}");
        self.world.a().logged(mark, code, |line| line["outcome"] == code)?;
        Ok(())
    }

    fn check_works(&self) -> Result<()> {
        let mark = self.world.a().mark();
        let said = self.ping()?;
        ensure!(said.contains("PONG"), "{said} {}", self.world.a().words());
        // The line of another connection may come late.
        let redis = format!(":{REDIS}");
        let line = self.world.a().logged(mark, "redis", |line| {
            line["destination"]["address"].as_str().is_some_and(|it| it.ends_with(&redis))
        })?;
        ensure!(line["security"] == "originated_tls" && line["bytes_received"] == 7, "{line}");
        let got = self.get(HOST, (VIRTUAL, GOOD).into())?;
        let expected = format!("client CN=client for {HOST}");
        ensure!(got.code == 200 && got.body == expected, "{got:?}");
        Ok(())
    }
}

#[test]
fn plaintext_clients_reach_servers_that_require_client_certificates() -> Result<()> {
    let mut outside = outside()?;
    // No rule: what the application sends is what the server gets. It wants TLS.
    let said = outside.ping()?;
    ensure!(!said.contains("PONG"), "{said}");
    let got = outside.get(HOST, (VIRTUAL, GOOD).into())?;
    ensure!(got.code == 400 && got.body.contains("plain HTTP request"), "{got:?}");
    // An application's own TLS is passed on untouched.
    let files = ["ca.pem", "client.pem", "client.key"].map(|name| outside.file(name));
    let own = ["--tls", "--sni", HOST, "--cacert", &files[0], "--cert", &files[1], "--key"];
    let arguments = [&own[..], &[&files[2], "PING"]].concat();
    let said = redis_cli(outside.client(), (VIRTUAL, REDIS).into(), &arguments)?;
    ensure!(said.contains("PONG"), "{said}");

    outside.rule(HOST, &outside.mutual())?;
    outside.check_works()?;
    outside.check_refused(EXPIRED, "upstream_certificate_expired")?;
    outside.check_refused(OTHER_NAME, "upstream_name_refused")?;
    outside.check_refused(VERSION_1, "upstream_certificate_unusable")?;
    let got = outside.get(HOST, (VIRTUAL, VERSION_1).into())?;
    ensure!(got.body.contains("openssl x509"), "the answer says what to do: {got:?}");

    // Names that the rule gives replace the host.
    let mut named = outside.mutual();
    named["subjectAltNames"] = json!(["other.example.com"]);
    outside.rule(HOST, &named)?;
    ensure!(outside.get(HOST, (VIRTUAL, OTHER_NAME).into())?.code == 200, "the name is listed");
    outside.check_refused(GOOD, "upstream_name_refused")?;

    let simple = json!({"mode": "SIMPLE", "caCertificates": outside.file("ca.pem")});
    outside.rule(HOST, &simple)?;
    outside.check_redis_refused("client_certificate_required")?;
    outside.rule(HOST, &json!({"mode": "SIMPLE"}))?;
    outside.check_refused(GOOD, "upstream_ca_unknown")?;
    outside.rule(HOST, &json!({"mode": "SIMPLE", "credentialName": "secret"}))?;
    outside.check_refused(GOOD, "credential_unavailable")?;
    Ok(())
}

#[test]
fn what_else_is_refused_has_a_code_of_its_own() -> Result<()> {
    let mut outside = outside()?;
    // The server's CA has revoked the one certificate, and not the other.
    let mut listed = outside.mutual();
    listed["caCrl"] = json!(outside.file("revoked.crl"));
    listed["subjectAltNames"] = json!([HOST, "other.example.com"]);
    outside.rule(HOST, &listed)?;
    outside.check_works()?;
    outside.check_refused(OTHER_NAME, "upstream_certificate_revoked")?;

    // The server trusts another CA for clients, and says so after the handshake.
    let mut stranger = outside.mutual();
    stranger["clientCertificate"] = json!(outside.file("other-client.pem"));
    stranger["privateKey"] = json!(outside.file("other-client.key"));
    outside.rule(HOST, &stranger)?;
    outside.check_redis_refused("client_certificate_refused")?;

    // Only an HTTP request tells which of a wildcard's hosts is meant.
    let wild = "*.example.com";
    outside.world.change(|mesh| {
        mesh.remove("ServiceEntry", "full", HOST);
        mesh.remove("DestinationRule", "full", HOST);
    })?;
    service(&mut outside.world, wild, &[VIRTUAL]);
    outside.rule(wild, &outside.mutual())?;
    outside.check_redis_refused("server_name_missing")?;
    ensure!(outside.get(HOST, (VIRTUAL, GOOD).into())?.code == 200, "a request names it");

    // A rule that cannot be read, and was never good.
    outside.world.change(|mesh| {
        mesh.remove("DestinationRule", "full", &object_of(wild));
    })?;
    outside.rule(wild, &json!({"mode": "SOMETIMES"}))?;
    let mark = outside.world.a().mark();
    let got = outside.get(HOST, (VIRTUAL, GOOD).into())?;
    ensure!(got.code == 503 && got.body.contains("rule_refused"), "{got:?}");
    let refused = |line: &Value| line["outcome"] == "rule_refused";
    let line = outside.world.a().logged(mark, "the refusal", refused)?;
    ensure!(
        line["fault"] == "policy" && line["detail"].to_string().contains("full/any."),
        "{line}"
    );
    outside.check_redis_refused("rule_refused")
}

/// The server is verified as the rule says, and sees no certificate.
#[test]
fn simple_verifies_the_server_alone() -> Result<()> {
    let mut outside = outside()?;
    let capture = Capture::start(outside.world.node(0))?;
    let mut simple = json!({"mode": "SIMPLE", "caCertificates": outside.file("ca.pem")});
    outside.rule(HOST, &simple)?;
    outside.check_page(OPEN, &format!("anybody for {HOST}"))?;
    outside.check_refused(OPEN_OTHER_NAME, "upstream_name_refused")?;
    simple["subjectAltNames"] = json!(["other.example.com"]);
    outside.rule(HOST, &simple)?;
    outside.check_page(OPEN_OTHER_NAME, &format!("anybody for {HOST}"))?;
    outside.check_refused(OPEN, "upstream_name_refused")?;
    ensure!(!capture.flows_to((SERVER, OPEN).into())?.is_empty(), "nothing crossed");
    ensure!(!capture.saw("canary")?, "plaintext crossed");
    Ok(())
}

#[test]
fn sni_is_what_the_server_is_asked_for_and_the_name_that_it_must_have() -> Result<()> {
    let mut outside = outside()?;
    let mut tls = outside.mutual();
    tls["sni"] = json!("dns.example.com");
    outside.rule(HOST, &tls)?;
    outside.check_page(GOOD, "client CN=client for dns.example.com")?;
    tls["sni"] = json!("elsewhere.example.com");
    outside.rule(HOST, &tls)?;
    outside.check_refused(GOOD, "upstream_name_refused")?;
    // Names that are listed are the ones that count.
    tls["subjectAltNames"] = json!([HOST]);
    outside.rule(HOST, &tls)?;
    outside.check_page(GOOD, "client CN=client for elsewhere.example.com")
}

#[test]
fn insecure_skip_verify_asks_nothing_of_the_server() -> Result<()> {
    let mut outside = outside()?;
    let mut tls = outside.mutual();
    tls["caCertificates"] = json!(outside.file("other-ca.pem"));
    outside.rule(HOST, &tls)?;
    outside.check_refused(OTHER_NAME, "upstream_ca_unknown")?;
    // Both at once contradict each other, and the rule from before stays in force.
    tls["insecureSkipVerify"] = json!(true);
    outside.rule(HOST, &tls)?;
    outside.check_refused(OTHER_NAME, "upstream_ca_unknown")?;
    tls.as_object_mut().context("a rule")?.remove("caCertificates");
    outside.rule(HOST, &tls)?;
    for port in [GOOD, OTHER_NAME, EXPIRED] {
        outside.check_page(port, &format!("client CN=client for {HOST}"))?;
    }
    let simple = json!({"mode": "SIMPLE", "insecureSkipVerify": true});
    outside.rule(HOST, &simple)?;
    outside.check_page(OPEN_OTHER_NAME, &format!("anybody for {HOST}"))
}

/// Inside the mesh: the client that could speak mTLS does not.
#[test]
fn disable_sends_what_the_application_sends() -> Result<()> {
    let mut world = World::new()?;
    let echo = 9000;
    world.serve("httpbin-full", "echo", echo)?;
    let to = To::Full.v4(echo);
    let talk = |world: &World, canary: &str| -> Result<(bool, Value)> {
        let capture = Capture::start(world.node(0))?;
        let mark = world.b().mark();
        let talk = world.pod("sleep-full").inside(|| converse(to, canary))?;
        ensure!(talk.worked(), "{canary}: {talk:?}");
        let line = world.b().logged(mark, canary, |line| line["direction"] == "inbound")?;
        ensure!(!capture.flows_to(world.pod("httpbin-full").v4(echo))?.is_empty(), "{line}");
        Ok((capture.saw(canary)?, line["security"].clone()))
    };
    ensure!(talk(&world, "canary-without-a-rule")? == (false, json!("mutual_tls")));
    world.change(|mesh| {
        mesh.destination_rule("full", "httpbin", &To::Full.host(), "DISABLE");
    })?;
    ensure!(talk(&world, "canary-disabled")? == (true, json!("plaintext")));
    // The server's mode is not the client's to choose.
    world.change(|mesh| {
        mesh.mode("full", "httpbin", "STRICT");
    })?;
    let refused = world.pod("sleep-full").inside(|| converse(to, "canary-refused"))?;
    ensure!(!refused.worked(), "{refused:?}");
    Ok(())
}

#[test]
fn a_name_that_nobody_resolves_is_refused_by_name() -> Result<()> {
    let mut outside = outside()?;
    let (host, address) = ("gone.example.com", Ipv4Addr::new(10, 96, 9, 2));
    let spec = json!({
        "hosts": [host],
        "addresses": [address],
        "ports": [{"number": GOOD, "name": "tcp"}],
        "location": "MESH_EXTERNAL",
        "resolution": "DNS",
    });
    outside.world.change(|mesh| {
        mesh.put(API, "ServiceEntry", "full", host, spec);
    })?;
    let mark = outside.world.a().mark();
    let got = outside.get(host, (address, GOOD).into())?;
    ensure!(got.code == 503 && got.body.contains("name_not_resolved"), "{got:?}");
    let refused = |line: &Value| line["outcome"] == "name_not_resolved";
    let line = outside.world.a().logged(mark, "the refusal", refused)?;
    ensure!(line["detail"].as_str().is_some_and(|it| it.contains(host)), "{line}");
    Ok(())
}

#[test]
fn files_are_read_again_when_they_change() -> Result<()> {
    let mut outside = outside()?;
    // As a mounted ConfigMap: a link that is swapped in one step.
    let files = outside.files.clone();
    let swap = |from: &str| swap_link(&files, from);
    swap("ca.pem")?;
    let mut rule = outside.mutual();
    rule["caCertificates"] = json!(outside.file("current.pem"));
    outside.rule(HOST, &rule)?;
    outside.check_works()?;
    let eventually = |outside: &Outside, code: u16, says: &str| {
        wait::until(REREAD, &format!("{code} {says}"), || {
            let got = outside.get(HOST, (VIRTUAL, GOOD).into()).map_err(|e| format!("{e:#}"))?;
            let right = got.code == code && got.body.contains(says);
            if right { Ok(()) } else { Err(format!("{got:?}")) }
        })
    };
    swap("other-ca.pem")?;
    eventually(&outside, 503, "upstream_ca_unknown")?;
    swap("no-such-file.pem")?;
    eventually(&outside, 503, "tls_file_unusable")?;
    outside.check_redis_refused("tls_file_unusable")?;
    swap("ca.key")?;
    eventually(&outside, 503, "holds no certificate")?;
    swap("ca.pem")?;
    eventually(&outside, 200, "CN=client")?;
    outside.check_works()
}

fn swap_link(files: &Path, from: &str) -> Result<()> {
    let partial = files.join("swap");
    symlink(files.join(from), &partial)?;
    Ok(fs::rename(partial, files.join("current.pem"))?)
}

#[test]
fn servers_are_found_by_name_and_by_their_own_address() -> Result<()> {
    let mut outside = outside()?;
    // By name: the daemon knows what it stands for, and the client connects to the same address.
    let by_name = "dns.example.com";
    service(&mut outside.world, by_name, &[]);
    outside.rule(by_name, &outside.mutual())?;
    let to: SocketAddr = (SERVER, GOOD).into();
    let got = outside.get(by_name, to)?;
    ensure!(got.body == format!("client CN=client for {by_name}"), "{got:?}");
    let said = redis_cli(outside.client(), (SERVER, REDIS).into(), &["PING"])?;
    ensure!(said.contains("PONG"), "{said}");

    // Another service at the same address, without that rule: neither is guessed.
    service(&mut outside.world, "twin.example.com", &[]);
    outside.world.apply()?;
    let got = outside.get(by_name, to)?;
    ensure!(got.code == 503 && got.body.contains("rules_disagree"), "{got:?}");
    outside.world.change(|mesh| {
        mesh.remove("ServiceEntry", "full", "twin.example.com");
    })?;
    ensure!(outside.get(by_name, to)?.code == 200, "one rule is left");

    // A name that stands for nothing any more keeps its last good answer; a new one is refused.
    service(&mut outside.world, "gone.example.com", &[]);
    outside.rule("gone.example.com", &outside.mutual())?;
    ensure!(outside.get(by_name, to)?.code == 200, "the other name still works");
    let status = outside.world.a().status()?;
    let warned = status["config"]["warnings"].to_string();
    ensure!(warned.contains("gone.example.com has no address"), "{warned}");
    Ok(())
}

/// The third walkthrough's database: a headless service inside the cluster, one unnamed TCP port.
#[test]
fn a_headless_database_gets_the_clients_own_certificate() -> Result<()> {
    let mut outside = outside()?;
    let host = "mongo.mongo.svc.cluster.local";
    let spec = json!({
        "hosts": [host],
        "ports": [{"number": REDIS, "name": "unnamed"}],
        "location": "MESH_INTERNAL",
        "resolution": "STATIC",
        "endpoints": [{"address": SERVER}],
    });
    outside.world.change(|mesh| {
        mesh.put(API, "ServiceEntry", "mongo", "mongo", spec);
    })?;
    let to: SocketAddr = (SERVER, REDIS).into();
    let said = redis_cli(outside.client(), to, &["PING"])?;
    ensure!(!said.contains("PONG"), "without a rule: {said}");
    let mut tls = outside.mutual();
    tls["subjectAltNames"] = json!([HOST]);
    outside.rule(host, &tls)?;
    let said = redis_cli(outside.client(), to, &["PING"])?;
    ensure!(said.contains("PONG"), "{said} {}", outside.world.a().words());
    Ok(())
}

/// A server that speaks HTTP/2 only to those who offer it in the handshake.
#[test]
fn http2_is_offered_to_servers_of_ports_that_are_declared_so() -> Result<()> {
    let mut outside = outside()?;
    outside.rule(HOST, &outside.mutual())?;
    let ask = |port: u16, more: &[&str]| {
        let to = SocketAddr::from((VIRTUAL, port));
        let url = format!("http://{to}/");
        curl::run(outside.client(), &[more, &[url.as_str()]].concat())
    };
    for port in [HTTP2, GRPC] {
        let got = ask(port, &["--http2-prior-knowledge"])?;
        ensure!(got.code == 200 && got.body.contains("CN=client"), "{port}: {got:?}");
    }
    let got = ask(GOOD, &["--http2-prior-knowledge"])?;
    ensure!(got.code != 200, "nobody said that it speaks HTTP/2: {got:?}");
    ensure!(ask(GOOD, &[])?.code == 200, "HTTP/1 as ever");
    Ok(())
}
