//! Protocols that are not HTTP, with real servers and clients: a database and a mail server that
//! speak first, an application with TLS of its own, and bytes that are no protocol at all. Between
//! clients and servers that are enrolled or not, in every mode.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use mtls_tests::client::converse;
use mtls_tests::daemon::LOG;
use mtls_tests::demo::SLEEP;
use mtls_tests::late::Late;
use mtls_tests::openssl::{self, Pair};
use mtls_tests::packet::Flow;
use mtls_tests::process::Process;
use mtls_tests::world::serve;
use mtls_tests::{Capture, Pod, PodSpec, World, mariadb, smtp};

const TLS_PORT: u16 = 9000;
const OPAQUE_PORT: u16 = 9001;
/// In no service, so that nobody has said what is spoken there.
const WORD_PORT: u16 = 9100;
/// How long a STRICT port waits for a client that says nothing; the test waits as long, often.
const WAIT: &str = "2s";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// The server speaks first.
    Database,
    /// The server speaks first.
    Mail,
    /// TLS from the first byte, without the mesh's ALPN.
    OwnTls,
    /// The client speaks first, in bytes that are neither TLS nor HTTP.
    Opaque,
    /// The client speaks first, in a word that could begin HTTP and does not, and awaits the answer.
    Word,
}

impl Protocol {
    const ALL: [Self; 5] = [Self::Database, Self::Mail, Self::OwnTls, Self::Opaque, Self::Word];

    fn port(self) -> u16 {
        match self {
            Self::Database => mariadb::PORT,
            Self::Mail => smtp::PORT,
            Self::OwnTls => TLS_PORT,
            Self::Opaque => OPAQUE_PORT,
            Self::Word => WORD_PORT,
        }
    }

    /// What the server says before it has heard anything.
    fn greeting(self) -> Option<&'static str> {
        match self {
            Self::Database => Some(mariadb::GREETING),
            Self::Mail => Some(smtp::GREETING),
            Self::OwnTls | Self::Opaque | Self::Word => None,
        }
    }

    /// Whether a real client had a whole conversation, which held `canary`; and its own words.
    fn talk(self, servers: &Servers, client: &Pod, to: SocketAddr, canary: &str) -> Result<Talk> {
        Ok(match self {
            Self::Database => {
                let answer = mariadb::query(client, to, &format!("SELECT '{canary}'"), &[])?;
                Talk { worked: answer.worked && answer.rows == canary, said: answer.said }
            }
            Self::Mail => {
                let sent = smtp::send(client, &servers.directory, to, canary)?;
                Talk { worked: sent.exit == 0, said: format!("exit {}: {}", sent.exit, sent.said) }
            }
            Self::OwnTls => {
                let (exit, text) = openssl::https(client, to, NAME, &servers.pair)?;
                Talk { worked: exit == 0 && text.contains("s_server"), said: text }
            }
            Self::Word => {
                let talk = client.inside(|| converse(to, canary))?;
                Talk { worked: talk.worked(), said: format!("{talk:?}") }
            }
            Self::Opaque => {
                let bytes = format!("\0\u{1}{canary}\0\n");
                let talk = client.inside(|| converse(to, &bytes))?;
                Talk { worked: talk.worked(), said: format!("{talk:?}") }
            }
        })
    }
}

struct Talk {
    worked: bool,
    said: String,
}

/// The name in the applications' own certificate.
const NAME: &str = "app.example";

/// One server of each protocol in each of two pods.
struct Servers {
    directory: std::path::PathBuf,
    pair: Pair,
    mail: Vec<Process>,
    _others: Vec<Process>,
}

impl Servers {
    fn start(world: &World, pods: &[&str]) -> Result<Self> {
        let directory = world.bed.directory.clone();
        let pair = openssl::self_signed(&directory, NAME)?;
        let (mut mail, mut others) = (Vec::new(), Vec::new());
        for pod in pods {
            let pod = world.pod(pod);
            others.push(mariadb::serve(&world.bed, pod, &pair)?);
            mail.push(smtp::serve(pod)?);
            others.push(openssl::serve(pod, TLS_PORT, &pair)?);
            others.push(serve(pod, "echo", OPAQUE_PORT)?);
            others.push(serve(pod, "echo", WORD_PORT)?);
        }
        Ok(Self { directory, pair, mail, _others: others })
    }
}

/// What is expected of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    MutualTls,
    /// As the application sent it, in the clear or in its own TLS.
    AsItIs,
    /// Refused, and nothing that the server says is heard.
    Refused,
}

/// The rule: mTLS where both can and the server may; a STRICT server is for those alone.
fn expected(client: bool, server: bool, mode: &str) -> Expected {
    match (client, server, mode) {
        (true, true, "PERMISSIVE" | "STRICT") => Expected::MutualTls,
        (false, true, "STRICT") => Expected::Refused,
        _ => Expected::AsItIs,
    }
}

#[test]
fn every_protocol_works_or_is_refused_between_all_kinds_of_peers_in_every_mode() -> Result<()> {
    let mut world = World::with(&[], |_, _| {}, |spec| spec.with("--mtls-wait", WAIT))?;
    let servers = Servers::start(&world, &["httpbin-full", "httpbin-legacy"])?;
    let capture = Capture::start(world.node(0))?;
    let mut differing = Vec::new();
    for mode in ["PERMISSIVE", "STRICT", "DISABLE"] {
        world.change(|mesh| {
            mesh.namespace_mode("istio-system", mode);
        })?;
        for (client, enrolled) in [("sleep-full", true), ("sleep-legacy", false)] {
            for (server, serves) in [("httpbin-full", true), ("httpbin-legacy", false)] {
                let expected = expected(enrolled, serves, mode);
                // All at once: refusals take their time.
                let results: Vec<Result<()>> = std::thread::scope(|scope| {
                    let threads: Vec<_> = Protocol::ALL
                        .map(|protocol| {
                            let (world, capture, servers) = (&world, &capture, &servers);
                            scope.spawn(move || {
                                check(world, capture, servers, protocol, client, server, expected)
                            })
                        })
                        .into_iter()
                        .collect();
                    threads.into_iter().map(|it| it.join().expect("no panic")).collect()
                });
                for (protocol, result) in Protocol::ALL.into_iter().zip(results) {
                    if let Err(error) = result {
                        differing.push(format!(
                            "{mode}, {client} to {server}, {protocol:?}, {expected:?}: {error:#}"
                        ));
                    }
                }
            }
        }
    }
    ensure!(differing.is_empty(), "{}", differing.join("\n"));
    Ok(())
}

fn check(
    world: &World,
    capture: &Capture,
    servers: &Servers,
    protocol: Protocol,
    client: &str,
    server: &str,
    expected: Expected,
) -> Result<()> {
    let (client, to) = (world.pod(client), world.pod(server).v4(protocol.port()));
    let canary = format!("canary{:?}{}{}", protocol, capture.flows()?.len(), client.name.len());
    let (mark, before) = (world.b().mark(), capture.flows_to(to)?.len());
    let mails: Vec<usize> = servers.mail.iter().map(|mail| mail.stdout.len()).collect();
    let talk = protocol.talk(servers, client, to, &canary)?;
    ensure!(
        talk.worked == (expected != Expected::Refused),
        "worked: {}: {}",
        talk.worked,
        talk.said
    );
    if protocol == Protocol::Mail && talk.worked {
        let took = servers.mail.iter().zip(mails).any(|(mail, mark)| {
            mail.stdout
                .find_after(mark, Duration::from_secs(1), "the mail", |line| {
                    line.contains(&canary).then_some(())
                })
                .is_ok()
        });
        ensure!(took, "no server has the message");
    }

    let flows: Vec<Flow> = capture.flows_to(to)?.into_iter().skip(before).collect();
    let [flow] = &flows[..] else { anyhow::bail!("{} connections crossed", flows.len()) };
    let sees = |text: &str| flow.holds(text.as_bytes());
    let readable = sees(&canary)?;
    match expected {
        Expected::MutualTls => {
            ensure!(!readable, "the canary crossed in the clear");
            if let Some(greeting) = protocol.greeting() {
                ensure!(!sees(greeting)?, "the greeting crossed in the clear");
            }
            let line = world.b().logged(mark, "inbound", |line| {
                line["direction"] == "inbound" && line["destination"]["address"] == to.to_string()
            })?;
            ensure!(line["security"] == "mutual_tls" && line["outcome"] == "ok", "{line}");
            ensure!(line["source"]["identity"] == SLEEP, "{line}");
        }
        Expected::AsItIs => {
            ensure!(readable == (protocol != Protocol::OwnTls), "readable on the wire: {readable}");
            if protocol == Protocol::OwnTls {
                // Nobody between the two ends: what crossed starts with the client's own hello.
                ensure!(flow.to_server.bytes()?.starts_with(&[0x16, 0x03]), "not TLS");
                ensure!(!flow.holds(b"istio")?, "the mesh's ALPN crossed");
            }
        }
        Expected::Refused => {
            let heard = flow.to_client.bytes()?;
            // Its own TLS meets the mesh's server, which shows who it is before it asks.
            ensure!(protocol == Protocol::OwnTls || heard.is_empty(), "heard {heard:?}");
        }
    }
    Ok(())
}

#[test]
fn a_databases_own_tls_passes_untouched_after_its_greeting() -> Result<()> {
    let world = World::new()?;
    let pair = openssl::self_signed(&world.bed.directory, NAME)?;
    let server = world.pod("httpbin-full");
    let _database = mariadb::serve(&world.bed, server, &pair)?;
    let trust = format!("--ssl-ca={}", pair.certificate.display());
    for (client, security) in [("sleep-full", "mutual_tls"), ("sleep-legacy", "plaintext")] {
        let mark = world.b().mark();
        let to = server.v6(mariadb::PORT);
        let statement = "SHOW STATUS LIKE 'Ssl_version'";
        let answer = mariadb::query(world.pod(client), to, statement, &["--ssl", &trust])?;
        ensure!(answer.worked && answer.rows.contains("TLSv1"), "{client}: {answer:?}");
        let line = world.b().logged(mark, "inbound", |line| line["direction"] == "inbound")?;
        ensure!(line["security"] == security && line["outcome"] == "ok", "{client}: {line}");
    }
    Ok(())
}

#[test]
fn a_local_greeting_never_beats_a_remote_peer_whose_hello_is_late() -> Result<()> {
    // In the mesh, and run by nobody's daemon: openssl speaks for it, as late as it is told to.
    let world = World::with(
        &[PodSpec::new(0, "slow", 30)],
        |mesh, bed| drop(mesh.workload(bed.pod("slow"), "full", "sleep", "sleep", true)),
        |spec| spec,
    )?;
    let directory = &world.bed.directory;
    let ca = openssl::mesh_ca(directory);
    let svid = openssl::svid(directory, "slow", &ca, SLEEP)?;
    let (client, server) = (world.pod("slow"), world.pod("httpbin-full"));
    let pair = openssl::self_signed(directory, NAME)?;
    let _database = mariadb::serve(&world.bed, server, &pair)?;
    let mail = smtp::serve(server)?;
    // The default for peers that nobody knows is a tenth of a second.
    for milliseconds in [0, 50, 150, 400, 900] {
        let delay = Duration::from_millis(milliseconds);
        let mark = world.b().mark();
        let late = Late::new(client, server.v4(mariadb::PORT), &svid, delay)?;
        let answer = mariadb::query(client, late.address, "SELECT 'through mTLS'", &[])?;
        ensure!(answer.rows == "through mTLS", "after {delay:?}: {answer:?}");
        let early = late.early()?;
        ensure!(early.is_empty(), "after {delay:?} the greeting came first: {early:?}");

        let late = Late::new(client, server.v4(smtp::PORT), &svid, delay)?;
        let canary = format!("late{milliseconds}");
        let sent = smtp::send(client, directory, late.address, &canary)?;
        ensure!(sent.exit == 0, "after {delay:?}: {sent:?}");
        ensure!(late.early()?.is_empty(), "after {delay:?} the greeting came first");
        mail.stdout.find_after(0, LOG, "the mail", |line| line.contains(&canary).then_some(()))?;
        for port in [mariadb::PORT, smtp::PORT] {
            let address = server.v4(port).to_string();
            let line = world.b().logged(mark, "inbound", |line| {
                line["direction"] == "inbound" && line["destination"]["address"] == address
            })?;
            ensure!(line["security"] == "mutual_tls" && line["outcome"] == "ok", "{line}");
            ensure!(line["source"]["identity"] == SLEEP, "{line}");
        }
    }
    Ok(())
}
