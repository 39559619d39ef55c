use super::*;
use crate::identity::ca::{Authority, Subject};

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

fn web() -> SpiffeId {
    SpiffeId::istio(&domain(), "shop", "web").unwrap()
}

fn pem_of(certificate: &[u8]) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", certificate))
}

/// What a CA answers for `id` to a node that holds `key`.
fn answered(authority: &Authority, key: &KeyPair, id: &SpiffeId) -> Vec<String> {
    let subject = Subject { id, dns_names: &[] };
    let life = Duration::from_secs(3600);
    let signed = authority.sign(key, subject, life, SystemTime::now()).unwrap();
    let mut answer: Vec<String> = signed.chain.iter().map(|it| pem_of(it)).collect();
    answer.push(pem_of(authority.certificate()));
    answer
}

fn authority() -> Authority {
    Authority::generate(&domain(), KeyType::default(), SystemTime::now()).unwrap().0
}

#[test]
fn an_answer_for_our_key_and_identity_is_taken() {
    let (ca, key) = (authority(), KeyPair::generate().unwrap());
    let elements = answered(&ca, &key, &web());
    let answer = read_answer(&web(), &domain(), Wiped(key), &elements).unwrap();
    assert_eq!(answer.svid.id, web());
    assert_eq!(answer.svid.chain.len(), 1);
    assert_eq!(answer.roots, elements[1]);
    assert!(answer.svid.not_after > SystemTime::now() + Duration::from_secs(3590));
}

#[test]
fn an_answer_that_is_not_what_was_asked_for_is_refused() {
    let (ca, stranger) = (authority(), authority());
    let refused = |change: &dyn Fn(&KeyPair) -> Vec<String>| {
        let key = KeyPair::generate().unwrap();
        let elements = change(&key);
        read_answer(&web(), &domain(), Wiped(key), &elements).err().expect("must be refused")
    };
    let another = KeyPair::generate().unwrap();
    let error = refused(&|_| answered(&ca, &another, &web()));
    assert!(error.contains("another key"), "{error}");
    let db = SpiffeId::istio(&domain(), "shop", "db").unwrap();
    let error = refused(&|key| answered(&ca, key, &db));
    assert!(error.contains("sa/db"), "{error}");
    let error =
        refused(&|key| vec![answered(&ca, key, &web()).remove(0), pem_of(stranger.certificate())]);
    assert!(error.contains("does not verify"), "{error}");
    for elements in [vec![], vec!["x".to_owned()], vec!["x".to_owned(), "y".to_owned()]] {
        refused(&|_| elements.clone());
    }
    refused(&|key| answered(&ca, key, &web())[..1].to_vec());
}

/// Also where nobody answers: the guard is what goes.
#[test]
fn a_key_that_is_not_used_is_wiped() {
    let mut key = new_key(KeyType::default()).unwrap();
    assert!(key.0.serialize_der().iter().any(|byte| *byte != 0));
    key.wipe();
    assert!(key.0.serialize_der().iter().all(|byte| *byte == 0));
    assert!(std::mem::needs_drop::<Wiped>());
}
