//! What a server's certificate looks like to `openssl`, which shares no code with the daemon.
#![forbid(unsafe_code)]

use anyhow::{Result, ensure};
use mtls_tests::client::converse;
use mtls_tests::world::{To, serve};
use mtls_tests::{World, openssl};

const PORT: u16 = 9000;

/// The lines of `openssl x509 -text` for the server's certificate under STRICT, without blanks
/// around them. A conversation through the mesh works with it.
fn shown(key_type: Option<&str>) -> Result<Vec<String>> {
    let mut world = World::with(
        &[],
        |_, _| {},
        |spec| match key_type {
            Some(key_type) => spec.with("--key-type", key_type),
            None => spec,
        },
    )?;
    let _echo = serve(world.pod("httpbin-full"), "echo", PORT)?;
    world.change(|mesh| {
        mesh.mode("full", "httpbin", "STRICT");
    })?;
    let to = world.pod("httpbin-full").v4(PORT);
    let seen = openssl::look(world.pod("sleep-legacy"), to, &["-alpn", "istio"])?;
    let client = world.pod("sleep-full");
    let talk = client.inside(|| converse(To::Full.v4(PORT), "through the mesh"))?;
    ensure!(talk.worked(), "{talk:?}");
    Ok(seen.text_of_certificate()?.lines().map(|line| line.trim().to_owned()).collect())
}

/// Every line is there, and each of the pairs directly one after the other.
fn has(lines: &[String], single: &[&str], pairs: &[[&str; 2]]) -> Result<()> {
    for line in single {
        ensure!(lines.iter().any(|found| found == line), "no line {line:?} in {lines:#?}");
    }
    for pair in pairs {
        ensure!(lines.windows(2).any(|found| found == pair), "not {pair:?} in {lines:#?}");
    }
    Ok(())
}

/// Istio's profile, whatever the key's kind.
const PROFILE: [[&str; 2]; 4] = [
    ["X509v3 Key Usage: critical", "Digital Signature, Key Encipherment"],
    ["X509v3 Extended Key Usage:", "TLS Web Server Authentication, TLS Web Client Authentication"],
    ["X509v3 Basic Constraints: critical", "CA:FALSE"],
    ["X509v3 Subject Alternative Name: critical", "URI:spiffe://cluster.local/ns/full/sa/httpbin"],
];

#[test]
fn rsa_2048_gives_istios_own_certificate() -> Result<()> {
    let lines = shown(Some("rsa-2048"))?;
    let single = [
        "Version: 3 (0x2)",
        "Subject:",
        "Public Key Algorithm: rsaEncryption",
        "Public-Key: (2048 bit)",
        "Exponent: 65537 (0x10001)",
        // The CA is a new one: it signs with a key of the same kind.
        "Signature Algorithm: sha256WithRSAEncryption",
    ];
    has(&lines, &single, &PROFILE)?;
    // Older versions of openssl put blanks around the sign.
    let issuer = lines.iter().any(|line| line.replace(' ', "") == "Issuer:O=cluster.local");
    ensure!(issuer, "{lines:#?}");
    Ok(())
}

#[test]
fn p_256_is_the_default() -> Result<()> {
    let lines = shown(None)?;
    let single = ["Version: 3 (0x2)", "Subject:", "ASN1 OID: prime256v1"];
    has(&lines, &single, &PROFILE)
}
