//! No private key in anything that is printed or served.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::KeyPair;
use rustls_pki_types::PrivateKeyDer;

use super::ca::Authority;
use super::source::{SourceError, SvidSource};
use super::{Bundle, KeyType, SpiffeId, Svid, SvidStore, TrustDomain};
use crate::tls::TlsIdentity;

/// So many bytes of a key in a row are no accident.
const WINDOW: usize = 6;

/// Ways in which the bytes of a key could come out.
struct Spellings(Vec<String>);

impl Spellings {
    fn of(key: &PrivateKeyDer<'_>) -> Self {
        let pem = KeyPair::try_from(key.secret_der()).unwrap().serialize_pem();
        let mut spellings = vec!["privatekey".to_owned()];
        let body = pem.lines().filter(|line| !line.starts_with("-----"));
        spellings.extend(body.map(|line| line.to_lowercase()));
        // All of the encoding: also what stands around the secret number has no business there.
        for window in key.secret_der().windows(WINDOW) {
            let all = |each: fn(&u8) -> String, between| {
                window.iter().map(each).collect::<Vec<_>>().join(between)
            };
            spellings.push(all(|byte| byte.to_string(), ","));
            for between in ["", ":", ","] {
                spellings.push(all(|byte| format!("{byte:02x}"), between));
            }
        }
        Self(spellings)
    }

    /// The first spelling that `text` contains, whatever its spaces, line ends and case.
    fn found_in(&self, text: &str) -> Option<&str> {
        let text: String = text.split_whitespace().collect::<String>().to_lowercase();
        self.0.iter().map(String::as_str).find(|&spelling| text.contains(spelling))
    }
}

fn id() -> SpiffeId {
    SpiffeId::istio(&domain(), "foo", "web").unwrap()
}

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

fn svid() -> (Svid, Bundle) {
    let (authority, _) =
        Authority::generate(&domain(), KeyType::default(), SystemTime::now()).unwrap();
    let svid = authority
        .issue(&id(), KeyType::default(), Duration::from_secs(60), SystemTime::now())
        .unwrap();
    let anchors = vec![authority.certificate().clone()];
    (svid, Bundle { trust_domain: domain(), anchors })
}

/// Gives out one SVID whose key the test knows.
struct Known(Svid, Bundle);

impl SvidSource for Known {
    fn issue(&self, id: &SpiffeId) -> Result<Svid, SourceError> {
        let Svid { chain, key, serial, not_before, not_after, .. } = &self.0;
        Ok(Svid {
            id: id.clone(),
            chain: chain.clone(),
            key: key.clone_key(),
            serial: serial.clone(),
            not_before: *not_before,
            not_after: *not_after,
        })
    }

    fn bundle(&self) -> Result<Bundle, SourceError> {
        Ok(self.1.clone())
    }

    fn name(&self) -> &'static str {
        "test"
    }
}

#[test]
fn a_key_is_found_however_it_is_spelled() {
    let (svid, _) = svid();
    let keys = Spellings::of(&svid.key);
    let der = svid.key.secret_der();
    let hex = |between| der.iter().map(|b| format!("{b:02X}")).collect::<Vec<_>>().join(between);
    let pem = KeyPair::try_from(der).unwrap().serialize_pem();
    let body = pem.lines().nth(1).unwrap();
    for text in [
        format!("{der:?}"),
        format!("{der:#?}"),
        format!("{der:02x?}"),
        hex(""),
        hex(":"),
        hex(" "),
    ] {
        assert!(keys.found_in(&text).is_some(), "{text}");
    }
    for text in ["-----BEGIN PRIVATE KEY-----", body, &serde_json::to_string(der).unwrap()] {
        assert!(keys.found_in(text).is_some(), "{text}");
    }
    assert_eq!(keys.found_in("spiffe://cluster.local/ns/foo/sa/web 01ab"), None);
}

#[test]
fn an_identity_prints_no_key() {
    let (svid, bundle) = svid();
    let identity = TlsIdentity::new(&svid, &[bundle]).unwrap();
    let keys = Spellings::of(&svid.key);
    for text in [
        format!("{svid:?}"),
        format!("{svid:#?}"),
        format!("{identity:?}"),
        format!("{identity:#?}"),
    ] {
        assert_eq!(keys.found_in(&text), None, "{text}");
        assert!(text.contains("ns/foo/sa/web"), "{text}");
    }
}

#[test]
fn a_key_that_does_not_fit_is_not_printed_in_the_error() {
    let ((mut svid, bundle), (other, _)) = (svid(), svid());
    svid.key = other.key.clone_key();
    let error = TlsIdentity::new(&svid, &[bundle]).unwrap_err();
    let keys = Spellings::of(&svid.key);
    for text in [error.to_string(), format!("{error:?}")] {
        assert_eq!(keys.found_in(&text), None, "{text}");
    }
}

#[tokio::test]
async fn a_slot_and_its_status_print_no_key() {
    let (svid, bundle) = svid();
    let keys = Spellings::of(&svid.key);
    let store = SvidStore::new(
        Arc::new(Known(svid, bundle)),
        Vec::new(),
        crate::tls::HandshakeSettings::plain(),
    );
    let slot = store.slot(&id());
    let running = tokio::spawn(store.clone().run());
    let held = slot.wait(Duration::from_secs(10)).await.expect("an SVID");
    let status = store.status();
    assert_eq!(status[0].serial.as_deref(), Some(held.serial()));
    for text in [
        format!("{slot:?}"),
        format!("{slot:#?}"),
        format!("{status:?}"),
        serde_json::to_string(&status).unwrap(),
    ] {
        assert_eq!(keys.found_in(&text), None, "{text}");
        assert!(text.contains("ns/foo/sa/web"), "{text}");
    }
    running.abort();
}
