use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair, PublicKeyData};

use clap::ValueEnum;

use super::*;
use crate::identity::KeyType;

fn csr(key: &KeyPair) -> String {
    CertificateParams::new(vec!["ignored.example".to_owned()])
        .unwrap()
        .serialize_request(key)
        .unwrap()
        .pem()
        .unwrap()
}

#[test]
fn a_key_of_every_accepted_kind_comes_through() {
    for kind in KeyType::value_variants() {
        let key = kind.generate().unwrap();
        let found = public_key(&csr(&key)).unwrap_or_else(|error| panic!("{kind:?}: {error}"));
        assert_eq!(found.subject_public_key_info(), key.subject_public_key_info(), "{kind:?}");
    }
}

#[test]
fn other_keys_are_refused() {
    let edwards = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    assert!(matches!(public_key(&csr(&edwards)), Err(CsrError::Key(_))));
    let p521 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
    assert!(matches!(public_key(&csr(&p521)), Err(CsrError::Key(_))));
}

/// What our own library would not make.
fn openssl(arguments: &[&str]) -> String {
    let mut command = std::process::Command::new("openssl");
    command.args(["req", "-new", "-nodes", "-subj", "/CN=x", "-keyout", "/dev/null"]);
    let output = command.args(arguments).output().expect("openssl is installed");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn weak_keys_and_weak_signatures_are_refused() {
    public_key(&openssl(&["-newkey", "rsa:2048"])).expect("one that is long enough");
    let short = public_key(&openssl(&["-newkey", "rsa:1024"])).unwrap_err();
    assert_eq!(short, CsrError::Key("RSA of 1024 bits".to_owned()));
    let sha1 = public_key(&openssl(&["-newkey", "rsa:2048", "-sha1"])).unwrap_err();
    assert_eq!(sha1, CsrError::Sha1);
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-sha1"];
    assert!(public_key(&openssl(&curve)).is_err());
}

#[test]
fn a_key_that_the_sender_does_not_hold_is_refused() {
    let [own, other] = [(); 2].map(|()| KeyPair::generate().unwrap());
    let der = CertificateParams::default().serialize_request(&own).unwrap().der().to_vec();
    // Somebody else's public key under our signature.
    let (mine, theirs) = (own.public_key_raw(), other.public_key_raw());
    let at = der.windows(mine.len()).position(|window| window == mine).unwrap();
    let mut forged = der.clone();
    forged[at..at + mine.len()].copy_from_slice(theirs);
    let pem = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", forged));
    assert_eq!(public_key(&pem).unwrap_err(), CsrError::Signature);
}

#[test]
fn anything_but_one_request_is_refused() {
    let good = csr(&KeyPair::generate().unwrap());
    assert!(public_key(&good).is_ok());
    let certificate = good.replace("CERTIFICATE REQUEST", "CERTIFICATE");
    for (pem, why) in [
        (String::new(), CsrError::NotOne),
        ("rubbish".to_owned(), CsrError::NotOne),
        (format!("{good}{good}"), CsrError::NotOne),
        (format!("{good}{certificate}"), CsrError::NotOne),
        (certificate, CsrError::NotOne),
        (format!("{good}{}", "\n".repeat(LONGEST)), CsrError::TooLong(good.len() + LONGEST)),
        (good.replace("END", "DNE"), CsrError::NoPem),
        (
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
                .to_owned(),
            CsrError::Unreadable,
        ),
    ] {
        assert_eq!(public_key(&pem).err(), Some(why), "{pem}");
    }
}

proptest! {
    #[test]
    fn garbage_is_refused_without_a_crash(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let pem = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", bytes));
        prop_assert!(public_key(&pem).is_err());
    }

    #[test]
    fn no_changed_byte_passes(at in 0_usize..200, bit in 0_u8..8) {
        let key = KeyPair::generate().unwrap();
        let mut der = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        let at = at % der.len();
        der[at] ^= 1 << bit;
        let pem = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der));
        // A signature may have another encoding that is as good; the key is the same even then.
        if let Ok(found) = public_key(&pem) {
            prop_assert_eq!(found.subject_public_key_info(), key.subject_public_key_info());
        }
    }
}
