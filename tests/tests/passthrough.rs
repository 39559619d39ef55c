//! TLS that is the application's own, and what the mesh's server shows to whoever asks.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Result, ensure};
use mtls_tests::openssl::{self, Pair};
use mtls_tests::process::{Process, output};
use mtls_tests::wait::until;
use mtls_tests::world::serve;
use mtls_tests::{Pod, World};
use serde_json::{Value, json};

const PORT: u16 = 9000;
const NAME: &str = "app.example";

/// The application's certificate, and the application.
fn application(world: &World) -> Result<(Pair, Process)> {
    let pair = openssl::self_signed(&world.bed.directory, NAME)?;
    let server = openssl::serve(world.pod("httpbin-full"), PORT, &pair)?;
    Ok((pair, server))
}

/// The far ends of the established connections that a pod's `openssl` has.
fn far_ends(pod: &Pod) -> Result<Vec<String>> {
    let mut command = pod.place.command("ss")?;
    command.args(["-Htnp", "state", "established", "sport", "=", &format!(":{PORT}")]);
    let output = output(command)?;
    ensure!(output.status.success(), "ss: {output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let own = text.lines().filter(|line| line.contains("\"openssl\""));
    Ok(own.filter_map(|line| line.split_whitespace().nth(3)).map(str::to_owned).collect())
}

#[test]
fn the_applications_own_tls_passes_permissive_untouched() -> Result<()> {
    let world = World::new()?;
    let (pair, _server) = application(&world)?;
    let (client, server) = (world.pod("sleep-legacy"), world.pod("httpbin-full"));
    for to in [server.v4(PORT), server.v6(PORT)] {
        let mark = world.b().mark();
        // From end to end: the certificate that curl verifies is the application's.
        let (exit, text) = openssl::https(client, to, NAME, &pair)?;
        ensure!(exit == 0 && text.contains("s_server"), "{to}: exit {exit}: {text}");
        let line = world.b().logged(mark, "inbound", |line| line["direction"] == "inbound")?;
        ensure!(line["security"] == "tls_passthrough" && line["outcome"] == "ok", "{line}");
        ensure!(line["mode"] == "PERMISSIVE" && line["tls"].is_null(), "{line}");
        ensure!(line["source"]["identity"].is_null(), "{line}");
    }
    // One that stays open, to see from where the application thinks that it comes.
    let mut command = client.place.command("openssl")?;
    command.args(["s_client", "-ign_eof", "-connect", &server.v4(PORT).to_string()]);
    let open = Process::start("openssl s_client", command)?;
    open.stdout.find_after(0, Duration::from_secs(10), "of a handshake", |line| {
        line.contains(NAME).then_some(())
    })?;
    // What the application itself sees is the client in either case (the file `without_interface`).
    let without = world.b().does_without("ingress_ifindex")?;
    let address = if without { "127.0.0.1".to_owned() } else { client.v4(0).ip().to_string() };
    until(Duration::from_secs(5), "the application's connection", || match far_ends(server) {
        // s_server listens on IPv6: the address may be v4-mapped.
        Ok(ends) if ends.len() == 1 && ends[0].contains(&address) => Ok(()),
        other => Err(format!("far ends {other:?}, not {address}")),
    })
}

#[test]
fn policy_judges_the_name_that_the_client_asks_for() -> Result<()> {
    let mut world = World::new()?;
    let (pair, _server) = application(&world)?;
    let to = world.pod("httpbin-full").v4(PORT);
    let outcome = |world: &World, name: &str| -> Result<Value> {
        let mark = world.b().mark();
        openssl::https(world.pod("sleep-legacy"), to, name, &pair)?;
        let line = world.b().logged(mark, "inbound", |line| line["direction"] == "inbound")?;
        Ok(line["outcome"].clone())
    };
    for (action, field) in [("DENY", "values"), ("ALLOW", "notValues")] {
        world.change(|mesh| {
            let when = json!({"key": "connection.sni", field: ["admin.example"]});
            let spec = json!({"action": action, "rules": [{"when": [when]}]});
            mesh.put("security.istio.io/v1", "AuthorizationPolicy", "full", "names", spec);
        })?;
        ensure!(outcome(&world, "admin.example")? == "authorization_denied", "{action}");
        ensure!(outcome(&world, NAME)? == "ok", "{action}");
    }
    Ok(())
}

#[test]
fn inside_the_mesh_it_travels_in_mutual_tls() -> Result<()> {
    let world = World::new()?;
    let (pair, _server) = application(&world)?;
    let mark = world.b().mark();
    let (client, to) = (world.pod("sleep-full"), world.pod("httpbin-full").v4(PORT));
    let (exit, text) = openssl::https(client, to, NAME, &pair)?;
    ensure!(exit == 0 && text.contains("s_server"), "exit {exit}: {text}");
    let line = world.b().logged(mark, "inbound", |line| line["direction"] == "inbound")?;
    ensure!(line["security"] == "mutual_tls" && line["outcome"] == "ok", "{line}");
    Ok(())
}

#[test]
fn strict_wants_a_certificate_of_the_mesh_from_any_tls_client() -> Result<()> {
    let mut world = World::new()?;
    world.change(|mesh| {
        mesh.mode("full", "httpbin", "STRICT");
    })?;
    let (pair, _server) = application(&world)?;
    let (client, to) = (world.pod("sleep-legacy"), world.pod("httpbin-full").v4(PORT));
    let mark = world.b().mark();
    let (exit, text) = openssl::https(client, to, NAME, &pair)?;
    // It is not the application that answers: its certificate would have been verified.
    ensure!(exit != 0 && !text.contains("s_server"), "exit {exit}: {text}");
    world.b().logged(mark, "inbound", |line| line["direction"] == "inbound")?;

    let mark = world.b().mark();
    let seen = openssl::look(client, to, &[])?;
    ensure!(seen.text.contains("alert certificate required"), "{}", seen.text);
    let line = world.b().logged(mark, "inbound", |line| line["direction"] == "inbound")?;
    ensure!(line["outcome"] == "peer_identity_refused" && line["fault"] == "client", "{line}");
    let detail = line["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains("it presented none"), "{line}");
    ensure!(far_ends(world.pod("httpbin-full"))?.is_empty(), "the application was reached");
    Ok(())
}

#[test]
fn the_server_shows_its_svid_on_the_applications_port() -> Result<()> {
    let mut world = World::new()?;
    let echo = serve(world.pod("httpbin-full"), "echo", PORT)?;
    let to = world.pod("httpbin-full").v4(PORT);
    for mode in ["PERMISSIVE", "STRICT"] {
        world.change(|mesh| {
            mesh.mode("full", "httpbin", mode);
        })?;
        let heard = echo.stdout.len();
        let seen = openssl::look(world.pod("sleep-legacy"), to, &["-alpn", "istio"])?;
        // Answering `istio` would end Envoy's choice of HTTP/2: mesh servers answer none.
        ensure!(seen.text.contains("No ALPN negotiated"), "{mode}: {}", seen.text);
        ensure!(seen.text.contains("TLSv1.3"), "{mode}: {}", seen.text);
        ensure!(seen.text.contains("alert certificate required"), "{mode}: {}", seen.text);
        let certificate = seen.certificate()?;
        let lines: Vec<&str> = certificate.lines().map(str::trim).collect();
        ensure!(lines.contains(&"subject="), "an empty subject: {certificate}");
        ensure!(
            lines.iter().any(|line| line.starts_with("issuer=") && line.contains("cluster.local")),
            "{certificate}"
        );
        ensure!(lines.contains(&"X509v3 Subject Alternative Name: critical"), "{certificate}");
        ensure!(lines.contains(&"URI:spiffe://cluster.local/ns/full/sa/httpbin"), "{certificate}");
        // PERMISSIVE may open a connection to the application before a slow client's first bytes.
        for event in echo.stdout.json_after(heard) {
            let opened = mode == "PERMISSIVE" && event["event"] == "accepted";
            ensure!(opened || event["bytes"] == 0, "{mode}: the application got {event}");
        }
    }
    Ok(())
}
