//! Policy that tightens: what is open in the clear ends, and no moment lets plaintext through.
#![forbid(unsafe_code)]

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mtls_tests::client::{self, End, ping, read_to_end};
use mtls_tests::world::{SERVICE_PORT, To, serve};
use mtls_tests::{Capture, Pod, World};

const ECHO: u16 = 9000;

fn open(from: &Pod, to: std::net::SocketAddr) -> Result<TcpStream> {
    from.inside(|| {
        let mut stream = client::connect(to)?;
        ping(&mut stream, "open before the change")?;
        Ok(stream)
    })
}

#[test]
fn strict_ends_the_plaintext_that_the_daemon_relays_and_nothing_else() -> Result<()> {
    let mut world = World::new()?;
    let server = world.pod("httpbin-full").clone();
    let _echo = serve(&server, "echo", ECHO)?;
    let mut plaintext = open(world.pod("sleep-legacy"), server.v4(ECHO))?;
    let mut mutual = open(world.pod("sleep-full"), To::Full.v4(ECHO))?;
    let mark = world.b().mark();
    world.change(|mesh| {
        mesh.namespace_mode("full", "STRICT");
    })?;
    let (_, end) = read_to_end(&mut plaintext)?;
    assert_eq!(end, End::Broken, "plaintext goes on under STRICT");
    let line = world.b().logged(mark, "the end", |line| line["outcome"] == "policy_changed")?;
    assert_eq!((&line["fault"], &line["security"]), (&"policy".into(), &"plaintext".into()));
    ping(&mut mutual, "mTLS goes on")
}

#[test]
fn a_rule_that_wants_mtls_ends_the_plaintext_that_a_client_sends() -> Result<()> {
    let mut world = World::new()?;
    let _echo = serve(world.pod("httpbin-legacy"), "echo", ECHO)?;
    let mut plaintext = open(world.pod("sleep-full"), To::Legacy.v4(ECHO))?;
    let mut other = open(world.pod("sleep-full"), world.pod("httpbin-legacy").v4(ECHO))?;
    let mark = world.a().mark();
    world.change(|mesh| {
        mesh.destination_rule("legacy", "force", &To::Legacy.host(), "ISTIO_MUTUAL");
    })?;
    let (_, end) = read_to_end(&mut plaintext)?;
    assert_eq!(end, End::Broken);
    world.a().logged(mark, "the end", |line| line["outcome"] == "policy_changed")?;
    ping(&mut other, "the rule is about the service, not about this address")
}

#[test]
fn a_restart_under_strict_lets_no_plaintext_through_at_any_moment() -> Result<()> {
    let mut world = World::with(
        &[],
        |mesh, _| {
            mesh.namespace_mode("istio-system", "STRICT");
        },
        |spec| spec,
    )?;
    let server = world.pod("httpbin-full").clone();
    let echo = serve(&server, "echo", ECHO)?;
    let (client, legacy) = (world.pod("sleep-full").clone(), world.pod("sleep-legacy").clone());
    let capture = Capture::start(world.node(0))?;
    let over = AtomicBool::new(false);
    let attempts = |from: &Pod, to: std::net::SocketAddr, text: &str| -> Result<u32> {
        from.inside(|| {
            let mut made = 0;
            while !over.load(Ordering::Relaxed) {
                let timeout = Duration::from_millis(200);
                if let Ok(mut stream) = TcpStream::connect_timeout(&to, timeout) {
                    stream.write_all(text.as_bytes()).ok();
                    made += 1;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(made)
        })
    };
    std::thread::scope(|scope| -> Result<()> {
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(scope.spawn(|| attempts(&client, server.v4(ECHO), "canary-outbound")));
            clients.push(scope.spawn(|| attempts(&legacy, server.v4(ECHO), "legacy-inbound")));
        }
        let restarts = (|| {
            for index in [0, 1, 0, 1] {
                world.daemons[index].kill9()?;
                world.daemons[index].restart()?;
            }
            Ok(())
        })();
        over.store(true, Ordering::Relaxed);
        let mut made = 0;
        for client in clients {
            made += client.join().expect("no panic")?;
        }
        ensure!(made > 100, "only {made} connections were tried meanwhile");
        restarts
    })?;
    ensure!(!capture.saw("canary-outbound")?, "an enrolled client's plaintext was on the wire");
    // Whoever the application has seen came with an identity, from the enrolled client.
    let legacy = world.pod("sleep-legacy").v4(0).ip().to_string();
    let strangers = echo
        .stdout
        .json_after(0)
        .into_iter()
        .filter(|event| event["event"] == "accepted" && event["peer"].to_string().contains(&legacy))
        .count();
    assert_eq!(strangers, 0, "plaintext clients reached a STRICT application");
    Ok(())
}

#[test]
fn a_reset_is_noticed_while_the_other_side_does_not_read() -> Result<()> {
    let world = World::new()?;
    // It writes for ever and never reads: the client's bytes pile up behind it.
    let drip = serve(world.pod("httpbin-full"), "drip", ECHO)?;
    let mark = drip.stdout.len();
    world.pod("sleep-full").inside(|| {
        let mut stream = client::connect(To::Full.v4(ECHO))?;
        // Its end before it is relayed would be another story.
        mtls_tests::world::event(&drip, mark, "accepted")?;
        stream.set_nonblocking(true)?;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(500) {
            let _full = stream.write(&[b'x'; 65536]);
        }
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        Ok(())
    })?;
    let closed = mtls_tests::world::event(&drip, mark, "closed")?;
    assert_eq!(closed["end"], "reset", "{closed}");
    Ok(())
}

#[test]
fn a_server_that_answers_and_hangs_up_is_heard_by_a_client_that_still_sends() -> Result<()> {
    let world = World::new()?;
    let _server = serve(world.pod("httpbin-full"), "reject", ECHO)?;
    let answer = world.pod("sleep-full").inside(|| {
        let mut stream = client::connect(To::Full.v4(ECHO))?;
        let mut sender = stream.try_clone()?;
        let sending = std::thread::spawn(move || while sender.write_all(&[b'x'; 65536]).is_ok() {});
        let (answer, _) = read_to_end(&mut stream)?;
        stream.shutdown(std::net::Shutdown::Both).ok();
        sending.join().expect("no panic");
        Ok(answer)
    })?;
    assert_eq!(String::from_utf8_lossy(&answer), mtls_tests::apps::REJECTION);
    let (client, to) = (world.pod("sleep-full"), To::Full.v4(SERVICE_PORT));
    let next = mtls_tests::curl::curl(client, "httpbin", to, "/headers", "the next one")?;
    assert_eq!(next.code, 200, "{next:?}");
    Ok(())
}
