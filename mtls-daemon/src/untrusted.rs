//! Where bytes of strangers come first, as functions of those bytes alone: each holds for any input,
//! and `fuzz/` and the tests below look for one for which it does not.

use rcgen::{PublicKeyData, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateDer;

use crate::ca::authenticate::token_review;
use crate::ca::{bearer, csr, token};
use crate::identity::SpiffeId;
use crate::identity::revocations::normal_serial;
use crate::mesh::Objects;
use crate::policy::parse::Limits;
use crate::proxy::http::detect::{self, Spoken};
use crate::proxy::http::framing::Body;
use crate::proxy::http::head;
use crate::tls::hello::{Scan, Seen};
use crate::tls::svid::parse_svid;

/// The first bytes of an HTTP/1 connection: its head, and the body that the head announces.
///
/// # Panics
/// A head reads differently in pieces than as a whole, or passes for HTTP here and for another
/// protocol where that is decided.
pub fn http_head(bytes: &[u8]) {
    let whole = head::end(bytes, &mut 0);
    let mut scanned = 0;
    let mut pieces = Ok(None);
    for length in 0..=bytes.len().min(512) {
        pieces = head::end(&bytes[..length], &mut scanned);
        if !matches!(pieces, Ok(None)) {
            break;
        }
    }
    if bytes.len() <= 512 || !matches!(pieces, Ok(None)) {
        assert!(whole == pieces || pieces.is_err(), "{whole:?} as a whole, {pieces:?} in pieces");
    }
    let spoken = detect::spoken(bytes);
    let Ok(Some(end)) = whole else { return };
    let Ok(head) = head::check(&bytes[..end]) else { return };
    assert_eq!(spoken, Spoken::Http1, "a request that is not taken for one");
    let Some(mut body) = Body::of(head.framing) else { return };
    let mut rest = &bytes[end..];
    while let Ok((count, false)) = body.take(&rest[..rest.len().min(7)]) {
        if count == 0 {
            break;
        }
        rest = &rest[count..];
    }
}

/// The first bytes of any connection: a ClientHello or not.
///
/// # Panics
/// It reads differently in pieces than as a whole.
pub fn client_hello(bytes: &[u8]) {
    let whole = Scan::default().look(bytes);
    let mut scan = Scan::default();
    let mut pieces = Seen::Incomplete;
    for length in (0..bytes.len()).step_by(13).chain([bytes.len()]) {
        pieces = scan.look(&bytes[..length]);
        if !matches!(pieces, Seen::Incomplete) {
            break;
        }
    }
    let kind = |seen: &Seen| std::mem::discriminant(seen);
    assert_eq!(kind(&whole), kind(&pieces));
}

/// A file of policies.
///
/// # Panics
/// Never: what is wrong with it is said.
pub fn policy_yaml(bytes: &[u8]) {
    Objects::default().add_file("fuzzed.yaml", bytes, &Limits::default());
}

/// What a certificate authority and its nodes are sent: a CSR, a certificate, a token, an API server's
/// answer about one.
///
/// # Panics
/// A key or an identity comes out that does not stand the same question again.
pub fn ca_input(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let pem = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", bytes));
    for csr in [&*text, &pem] {
        if let Ok(key) = csr::public_key(csr) {
            let der = key.subject_public_key_info();
            assert_eq!(SubjectPublicKeyInfo::from_der(&der).ok(), Some(key));
        }
    }
    if let Ok(facts) = parse_svid(&[CertificateDer::from(bytes)]) {
        assert_eq!(SpiffeId::parse(facts.id.as_str()).ok(), Some(facts.id));
    }
    if let Ok(token) = bearer::token(Some(text.lines())) {
        assert!(text.contains(token));
    }
    for join in text.lines().chain([&*text]) {
        if let Ok((id, secret)) = token::parse(join) {
            assert_eq!(join, format!("{}{id}.{secret}", token::PREFIX));
            assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric()) && id.len() <= 32);
        }
    }
    if let Ok(review) = serde_json::from_slice(bytes)
        && let Ok(account) = token_review::account(&review, token_review::AUDIENCE)
    {
        assert!(!account.namespace.contains(':') && !account.name.contains(':'));
    }
    let serial = normal_serial(&text);
    assert_eq!(normal_serial(&serial), serial);
}

#[cfg(test)]
#[path = "untrusted_tests.rs"]
mod tests;
