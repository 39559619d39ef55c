use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair};

use super::*;

fn pair() -> (CertificateDer<'static>, String, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::default().self_signed(&key).unwrap();
    let pem = certificate.pem();
    (certificate.into(), pem, key)
}

#[test]
fn certificates_and_keys_may_share_a_file_in_any_order() {
    let ((one, one_pem, key), (two, two_pem, _)) = (pair(), pair());
    let key_pem = key.serialize_pem();
    for text in [
        format!("{one_pem}{two_pem}{key_pem}"),
        format!("{key_pem}\n# a comment\n{one_pem}{two_pem}"),
    ] {
        let certificates = certificates_from_pem(text.as_bytes()).unwrap();
        assert_eq!(certificates, [one.clone(), two.clone()]);
        let read = key_from_pem(text.as_bytes()).unwrap();
        assert_eq!(read.secret_der(), key.serialized_der());
    }
    let der = [one.as_ref(), two.as_ref()].concat();
    assert_eq!(certificates_from_der(&der).unwrap(), [one, two]);
}

#[test]
fn what_is_missing_is_told_from_what_is_broken() {
    let (certificate, pem, key) = pair();
    let key_pem = key.serialize_pem();
    let read = |text: &str| certificates_from_pem(text.as_bytes()).unwrap_err();
    assert_eq!(read(""), EncodingError::NoPem);
    assert_eq!(read("rubbish"), EncodingError::NoPem);
    assert_eq!(read(&key_pem), EncodingError::NoCertificate);
    assert_eq!(key_from_pem(b"rubbish").unwrap_err(), EncodingError::NoPem);
    assert_eq!(key_from_pem(pem.as_bytes()).unwrap_err(), EncodingError::NoKey);
    let cut = &pem[..pem.len() / 2];
    assert!(matches!(read(cut), EncodingError::Pem(_)), "{:?}", read(cut));
    let other = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(matches!(read(other), EncodingError::Certificate { number: 1, .. }));

    assert_eq!(certificates_from_der(b""), Err(EncodingError::NoCertificate));
    let mut long = certificate.to_vec();
    long.extend([0, 1, 2, 3]);
    let error = certificates_from_der(&long).unwrap_err();
    assert!(matches!(error, EncodingError::Certificate { number: 2, .. }), "{error}");
}

#[test]
fn an_error_repeats_nothing_of_a_key() {
    let key = pair().2.serialize_pem();
    let body = key.lines().nth(1).unwrap();
    for text in [key.replace(body, &format!("{body}!")), key[..key.len() - 20].to_owned()] {
        let error = key_from_pem(text.as_bytes()).unwrap_err();
        for shown in [error.to_string(), format!("{error:?}")] {
            assert!(!shown.contains(&body[..8]), "{shown}");
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused_and_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..256),
    ) {
        let _ = certificates_from_der(&bytes);
        let _ = certificates_from_pem(&bytes);
        let _ = key_from_pem(&bytes);
    }

    /// One byte changed in a real certificate reaches further into the parsers than noise does.
    #[test]
    fn a_changed_certificate_is_read_or_refused_and_never_panics(at in 0usize..4096, to: u8) {
        let mut der = SAMPLE.clone();
        let at = at % der.len();
        der[at] = to;
        if let Ok(read) = certificates_from_der(&der) {
            let _ = crate::tls::svid::parse_svid(&read);
        }
    }
}

static SAMPLE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
    let domain = crate::identity::TrustDomain::parse("td").unwrap();
    let now = std::time::SystemTime::now();
    let kind = crate::identity::KeyType::default();
    let (authority, _) = crate::identity::ca::Authority::generate(&domain, kind, now).unwrap();
    let id = crate::identity::SpiffeId::istio(&domain, "foo", "web").unwrap();
    let hour = std::time::Duration::from_secs(3600);
    authority.issue(&id, kind, hour, now).unwrap().chain[0].to_vec()
});
