//! A peer that comes back resumes its TLS session, and is judged as if it had not.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use mtls_tests::World;
use mtls_tests::client::converse;
use mtls_tests::world::To;
use serde_json::{Value, json};

const PORT: u16 = 9000;
const SLEEP: &str = "spiffe://cluster.local/ns/full/sa/sleep";

/// A connection's line on both nodes; it need not have worked.
fn lines(world: &World) -> Result<(bool, Value, Value)> {
    let (a, b) = (world.a().mark(), world.b().mark());
    let talk = world.pod("sleep-full").inside(|| converse(To::Full.v4(PORT), "hello"))?;
    let outbound = world.a().logged(a, "it", |line| line["direction"] == "outbound")?;
    let inbound = world.b().logged(b, "it", |line| line["direction"] == "inbound")?;
    Ok((talk.worked(), outbound, inbound))
}

#[test]
fn a_resumed_client_keeps_its_name_and_is_denied_by_a_new_policy_before_a_byte_passes() -> Result<()>
{
    let mut world = World::new()?;
    let echo = mtls_tests::world::serve(world.pod("httpbin-full"), "echo", PORT)?;
    for round in 0..4 {
        let (worked, outbound, inbound) = lines(&world)?;
        ensure!(worked, "{outbound} {inbound}");
        for line in [&outbound, &inbound] {
            ensure!(line["tls"]["resumed"] == (round > 0), "round {round}: {line}");
            ensure!(line["security"] == "mutual_tls" && line["outcome"] == "ok", "{line}");
            ensure!(line["source"]["identity"] == SLEEP, "{line}");
        }
    }

    let heard = echo.stdout.len();
    world.change(|mesh| {
        let spec = json!({
            "action": "DENY",
            "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/full/sa/sleep"]}}]}],
        });
        mesh.put("security.istio.io/v1", "AuthorizationPolicy", "full", "no-sleep", spec);
    })?;
    let (worked, _, inbound) = lines(&world)?;
    ensure!(!worked, "{inbound}");
    ensure!(inbound["tls"]["resumed"] == true, "{inbound}");
    ensure!(inbound["outcome"] == "authorization_denied", "{inbound}");
    ensure!(inbound["bytes_sent"] == 0, "{inbound}");
    // Of the ends of those before it, it may hear late.
    let accepted = |event: &serde_json::Value| event["event"] == "accepted";
    ensure!(!echo.stdout.json_after(heard).iter().any(accepted), "the application heard of it");

    world.change(|mesh| {
        mesh.remove("AuthorizationPolicy", "full", "no-sleep");
    })?;
    ensure!(lines(&world)?.0);
    Ok(())
}

#[test]
fn it_can_be_switched_off_on_either_side() -> Result<()> {
    let world = World::with(
        &[],
        |_, _| {},
        |spec| {
            let side = if spec.name.ends_with("-b") { "off" } else { "on" };
            spec.with("--session-resumption", side)
        },
    )?;
    let _echo = mtls_tests::world::serve(world.pod("httpbin-full"), "echo", PORT)?;
    for _ in 0..3 {
        let (worked, outbound, inbound) = lines(&world)?;
        ensure!(worked && outbound["tls"]["resumed"] == false, "{outbound}");
        ensure!(inbound["tls"]["resumed"] == false, "{inbound}");
    }
    Ok(())
}
