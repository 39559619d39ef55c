use data_encoding::BASE64;
use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;

use super::*;

fn domain() -> TrustDomain {
    TrustDomain::parse("partner.example").unwrap()
}

fn certificate() -> CertificateDer<'static> {
    let key = KeyPair::generate().unwrap();
    CertificateParams::default().self_signed(&key).unwrap().into()
}

fn parse(document: &Value) -> Result<SpiffeBundle, BundleError> {
    SpiffeBundle::parse(domain(), document.to_string().as_bytes())
}

fn x509(values: &[&CertificateDer<'_>]) -> Value {
    let values: Vec<String> = values.iter().map(|der| BASE64.encode(der)).collect();
    json!({"use": "x509-svid", "kty": "EC", "x5c": values})
}

#[test]
fn a_document_is_read_for_the_trust_domain_that_it_comes_from() {
    let (one, two) = (certificate(), certificate());
    let bundle = parse(&json!({
        "keys": [
            x509(&[&one]),
            {"use": "jwt-svid", "kty": "EC", "kid": "k", "crv": "P-256", "x": "", "y": ""},
            x509(&[&two]),
            x509(&[&one]),
        ],
        "spiffe_sequence": 7,
        "spiffe_refresh_hint": 60,
        "spiffe_of_tomorrow": {},
    }))
    .unwrap();
    assert_eq!(bundle.bundle, Bundle { trust_domain: domain(), anchors: vec![one, two] });
    assert_eq!(bundle.sequence, Some(7));
    assert_eq!(bundle.refresh_hint, Some(Duration::from_secs(60)));
    assert_eq!(bundle.jwt_authorities, 1);
}

#[test]
fn no_keys_trust_nothing_and_a_missing_list_is_an_error() {
    let empty = parse(&json!({"keys": []})).unwrap();
    assert_eq!((empty.bundle.anchors.len(), empty.sequence, empty.refresh_hint), (0, None, None));
    for document in [json!({}), json!({"keys": null}), json!({"keys": {}}), json!([]), json!(1)] {
        assert!(matches!(parse(&document), Err(BundleError::Document(_))), "{document}");
    }
    assert!(SpiffeBundle::parse(domain(), b"").is_err());
}

/// Decided as the standard says; others refuse some of these (docs/identity.md).
#[test]
fn what_is_of_no_use_here_is_passed_over() {
    let (one, two) = (certificate(), certificate());
    let three = data_encoding::BASE64.encode(&certificate());
    let bundle = parse(&json!({"keys": [
        {"kty": "EC"},
        {"use": "wit-svid", "kty": "EC", "x5c": 3},
        {"use": 1},
        {"use": "jwt-svid", "kty": "EC"},
        {"use": "x509-svid", "kty": "EC"},
        {"use": "x509-svid", "kty": "of tomorrow", "x5c": [three]},
        {"use": "x509-svid", "kty": 1, "x5c": [three]},
        {"use": "x509-svid", "x5c": [three]},
        {"use": "x509-svid", "x5c": "of a kind that is not known"},
        x509(&[&one, &two]),
    ]}))
    .unwrap();
    assert_eq!(bundle.bundle.anchors, [one], "the first of two");
    assert_eq!(bundle.jwt_authorities, 0, "a key without an ID is nobody's");
}

#[test]
fn a_broken_entry_or_number_refuses_the_document() {
    let one = certificate();
    let broken = |x5c: Value| json!({"keys": [x509(&[&one]), {"use": "x509-svid", "kty": "EC", "x5c": x5c}]});
    let mut longer = one.to_vec();
    longer.push(0);
    for (x5c, why) in [
        (json!("text"), "no list"),
        (json!([1]), "no list"),
        (json!(["!"]), "not base64"),
        (json!([BASE64.encode(b"no certificate")]), "unusable"),
        (json!([BASE64.encode(&longer)]), "unusable"),
        (json!([BASE64.encode(&[one.as_ref(), one.as_ref()].concat())]), "bytes follow it"),
    ] {
        let error = parse(&broken(x5c)).unwrap_err().to_string();
        assert!(error.contains("key 2") && error.contains(why), "{error}");
    }
    for number in [json!("1"), json!(-1), json!(1.5)] {
        for field in ["spiffe_sequence", "spiffe_refresh_hint"] {
            let mut document = json!({"keys": []});
            document[field] = number.clone();
            assert!(parse(&document).is_err(), "{document}");
        }
    }
}

#[test]
fn an_older_document_takes_no_newer_ones_place() {
    let version = |sequence: Value| {
        let mut document = json!({"keys": []});
        document["spiffe_sequence"] = sequence;
        parse(&document).unwrap()
    };
    let (none, four, five) = (version(Value::Null), version(json!(4)), version(json!(5)));
    assert!(five.succeeds(&four) && five.succeeds(&five) && five.succeeds(&none));
    assert!(!four.succeeds(&five) && !none.succeeds(&four));
    assert!(none.succeeds(&none));
}

#[test]
fn a_file_of_certificates_is_a_bundle_too() {
    let key = KeyPair::generate().unwrap();
    let pem = CertificateParams::default().self_signed(&key).unwrap().pem();
    let read = |text: &str| Bundle::from_pem(domain(), text.as_bytes());
    assert_eq!(read(&pem.repeat(2)).unwrap().anchors.len(), 1, "the same one twice");
    assert_eq!(read(" \n").unwrap().anchors, []);
    assert_eq!(read("text").unwrap_err(), EncodingError::NoPem);
    assert_eq!(read(&key.serialize_pem()).unwrap_err(), EncodingError::NoCertificate);
    assert!(read(&format!("{pem}{}", &pem[..200])).is_err(), "half a certificate");
}

proptest! {
    #[test]
    fn any_document_is_read_or_refused_and_never_panics(
        text in "\\PC{0,64}",
        usage in "(x509-svid|jwt-svid|[a-z]{0,4})",
        x5c in proptest::collection::vec("[A-Za-z0-9+/=]{0,16}", 0..3),
        sequence in any::<i64>(),
    ) {
        let _ = SpiffeBundle::parse(domain(), text.as_bytes());
        let _ = Bundle::from_pem(domain(), text.as_bytes());
        let document = json!({"keys": [{"use": usage, "kty": "EC", "x5c": x5c}], "spiffe_sequence": sequence});
        if let Ok(bundle) = parse(&document) {
            prop_assert_eq!(bundle.sequence, u64::try_from(sequence).ok());
        }
    }
}
