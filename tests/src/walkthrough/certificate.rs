//! What `openssl` sees of a server that it asks with the mesh's ALPN, on the application's own port.

use anyhow::{Context, Result};

use crate::openssl;
use crate::walkthrough::{Family, Town};
use crate::world::TARGET_PORT;

/// `openssl s_client -alpn istio` in `sleep.<from>`, connected to `httpbin.<to>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    pub from: &'static str,
    pub to: &'static str,
}

/// The certificate as `openssl x509 -text` prints it.
///
/// # Errors
/// When the server shows none.
pub fn ask(town: &Town, question: Question, family: Family) -> Result<String> {
    let server = town.behind(question.to).first().copied().context("a server")?;
    let to = match family {
        Family::V4 => server.v4(TARGET_PORT),
        Family::V6 => server.v6(TARGET_PORT),
    };
    openssl::look(town.client(question.from), to, &["-alpn", "istio"])?.text_of_certificate()
}

/// What a certificate says of one kind of key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    P256,
    Rsa2048,
}

/// Lines that the text must hold, in this order, for the identity of `httpbin` in `namespace`.
pub fn lines(trust_domain: &str, namespace: &str, key: Key) -> Vec<String> {
    let mut lines: Vec<String> = ["Version: 3 (0x2)"].map(str::to_owned).into();
    lines.push(format!("Issuer: O = {trust_domain}"));
    match key {
        Key::P256 => lines.extend(["id-ecPublicKey", "(256 bit)", "prime256v1"].map(str::to_owned)),
        Key::Rsa2048 => {
            lines.extend(["rsaEncryption", "(2048 bit)", "Exponent: 65537"].map(str::to_owned))
        }
    }
    lines.extend(
        [
            "X509v3 Key Usage: critical",
            match key {
                Key::P256 => "Digital Signature",
                Key::Rsa2048 => "Digital Signature, Key Encipherment",
            },
            "X509v3 Extended Key Usage:",
            "TLS Web Server Authentication, TLS Web Client Authentication",
            "X509v3 Basic Constraints: critical",
            "CA:FALSE",
            "X509v3 Subject Alternative Name: critical",
        ]
        .map(str::to_owned),
    );
    lines.push(format!("URI:spiffe://{trust_domain}/ns/{namespace}/sa/httpbin"));
    lines
}

/// The first of `lines` that `text` lacks; the order does not matter, as extensions have none.
pub fn missing<'a>(text: &str, lines: &'a [String]) -> Option<&'a str> {
    // Older versions of openssl put blanks around the sign.
    let plain = |text: &str| text.replace(" = ", "=");
    let text = plain(text);
    let has = |line: &str| text.lines().any(|of| of.contains(&plain(line)));
    lines.iter().map(String::as_str).find(|line| !has(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_is_found_however_openssl_writes_it() {
        let wanted = ["Issuer: O = cluster.local".to_owned()];
        assert_eq!(missing("  Issuer: O = cluster.local\n", &wanted), None);
        assert_eq!(missing("  Issuer: O=cluster.local\n", &wanted), None);
        assert_eq!(missing("  Issuer: O=other\n", &wanted), Some(wanted[0].as_str()));
    }
}
