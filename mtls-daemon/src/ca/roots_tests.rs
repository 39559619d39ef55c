use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

fn directory() -> (tempfile::TempDir, StateDir) {
    let place = tempfile::tempdir().unwrap();
    let directory = StateDir::open(&place.path().join("ca")).unwrap();
    (place, directory)
}

fn sealing(place: &tempfile::TempDir, name: &str, byte: u8) -> SealingKey {
    let path = place.path().join(name);
    std::fs::write(&path, [byte; 32]).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    SealingKey::read(&path).unwrap()
}

#[test]
fn a_root_is_made_once_and_is_private() {
    let (_place, directory) = directory();
    let now = SystemTime::now();
    make(&directory, &domain(), KeyType::EcdsaP256, None, now).unwrap();
    let first = load(&directory, None, now).unwrap();
    make(&directory, &domain(), KeyType::EcdsaP256, None, now).unwrap();
    let again = load(&directory, None, now).unwrap();
    assert_eq!(first.anchors, again.anchors);
    assert_eq!(first.anchors, [first.authority.certificate().clone()]);
    for name in ["root-1.key", "root-1.pem", FILE] {
        assert_eq!(
            std::fs::metadata(directory.path(name)).unwrap().mode() & 0o777,
            0o600,
            "{name}"
        );
    }
}

#[test]
fn a_sealed_key_needs_its_file() {
    let (place, directory) = directory();
    let now = SystemTime::now();
    let key = sealing(&place, "kek", 1);
    make(&directory, &domain(), KeyType::EcdsaP256, Some(&key), now).unwrap();
    let text = std::fs::read_to_string(directory.path("root-1.key")).unwrap();
    assert!(!text.contains("PRIVATE KEY"), "{text}");
    assert!(load(&directory, Some(&key), now).is_ok());
    let refused = |key| load(&directory, key, now).err().unwrap().to_string();
    assert!(refused(None).contains("--key-encryption-file"));
    assert!(refused(Some(&sealing(&place, "other", 2))).contains("another key-encryption file"));
}

#[test]
fn a_plain_key_is_sealed_when_a_file_is_given() {
    let (place, directory) = directory();
    let now = SystemTime::now();
    make(&directory, &domain(), KeyType::EcdsaP256, None, now).unwrap();
    let before = load(&directory, None, now).unwrap().anchors;
    let key = sealing(&place, "kek", 1);
    make(&directory, &domain(), KeyType::EcdsaP256, Some(&key), now).unwrap();
    let text = std::fs::read_to_string(directory.path("root-1.key")).unwrap();
    assert!(!text.contains("PRIVATE KEY"), "{text}");
    assert_eq!(load(&directory, Some(&key), now).unwrap().anchors, before);
}

#[test]
fn a_rotation_takes_three_steps_in_order() {
    let (_place, directory) = directory();
    let now = SystemTime::now();
    make(&directory, &domain(), KeyType::EcdsaP256, None, now).unwrap();
    let anchors = || load(&directory, None, now).unwrap().anchors;
    let [old] = &anchors()[..] else { panic!("one root") };
    let old = old.clone();

    assert!(matches!(switch(&directory, true, now), Err(StepError::Order(_))));
    assert!(matches!(retire(&directory, true, now), Err(StepError::Order(_))));
    prepare(&directory, &domain(), KeyType::EcdsaP384, None, now).unwrap();
    assert!(matches!(
        prepare(&directory, &domain(), KeyType::EcdsaP256, None, now),
        Err(StepError::Order(_))
    ));
    let both = anchors();
    assert_eq!((both.len(), &both[0]), (2, &old), "both are trusted, the old one signs");

    assert!(matches!(retire(&directory, true, now), Err(StepError::Order(_))));
    switch(&directory, false, now).expect("nothing was signed: nobody has to hear");
    let new = anchors();
    assert_eq!((&new[0], &new[1]), (&both[1], &old), "the new one signs");
    assert_eq!(load(&directory, None, now).unwrap().authority.certificate(), &both[1]);

    retire(&directory, false, now).unwrap();
    assert_eq!(anchors(), [both[1].clone()]);
    assert!(!directory.path("root-1.key").exists() && !directory.path("root-1.pem").exists());
}

#[test]
fn a_step_waits_until_clients_have_renewed() {
    let (_place, directory) = directory();
    let now = SystemTime::now();
    make(&directory, &domain(), KeyType::EcdsaP256, None, now).unwrap();
    note_lifetime(&directory.turn().unwrap(), Duration::from_secs(3600)).unwrap();
    prepare(&directory, &domain(), KeyType::EcdsaP256, None, now).unwrap();
    let soon = now + Duration::from_secs(1805);
    let error = switch(&directory, false, soon).unwrap_err().to_string();
    assert!(error.contains("30m 5s ago") && error.contains("30m more"), "{error}");
    let end = now + Duration::from_secs(3600);
    assert!(switch(&directory, false, end).is_err(), "whoever serves hears a moment later");
    switch(&directory, false, end + SLACK).unwrap();
    retire(&directory, true, now).expect("forced");
}

#[test]
fn a_new_key_is_kept_as_the_others_are() {
    let (place, directory) = directory();
    let now = SystemTime::now();
    let (key, other) = (sealing(&place, "kek", 1), sealing(&place, "other", 2));
    let prepare = |sealing| prepare(&directory, &domain(), KeyType::EcdsaP256, sealing, now);
    make(&directory, &domain(), KeyType::EcdsaP256, None, now).unwrap();
    assert!(matches!(prepare(Some(&key)), Err(StepError::SealedAlone)));
    make(&directory, &domain(), KeyType::EcdsaP256, Some(&key), now).unwrap();
    let error = prepare(None).unwrap_err();
    assert!(error.to_string().contains("--key-encryption-file"), "{error}");
    assert!(matches!(prepare(Some(&other)), Err(StepError::OtherSealing)));
    assert!(!directory.path("root-2.key").exists(), "nothing is left of the refused ones");
    prepare(Some(&key)).unwrap();
    let text = std::fs::read_to_string(directory.path("root-2.key")).unwrap();
    assert!(sealed::is_sealed(&text), "{text}");
}

#[test]
fn a_key_in_the_clear_does_not_sign_where_keys_are_encrypted() {
    let (place, directory) = directory();
    let now = SystemTime::now();
    make(&directory, &domain(), KeyType::EcdsaP256, None, now).unwrap();
    let key = sealing(&place, "kek", 1);
    let error = load(&directory, Some(&key), now).err().expect("refused").to_string();
    assert!(error.contains("root-1.key") && error.contains("not encrypted"), "{error}");
}

#[test]
fn roots_have_names_that_tell_them_apart() {
    let (_place, directory) = directory();
    let now = SystemTime::now();
    make(&directory, &domain(), KeyType::EcdsaP256, None, now).unwrap();
    prepare(&directory, &domain(), KeyType::EcdsaP256, None, now).unwrap();
    let subjects: Vec<String> = anchors(&directory)
        .unwrap()
        .iter()
        .map(|root| {
            use x509_parser::prelude::FromDer;
            let (_, root) = x509_parser::certificate::X509Certificate::from_der(root).unwrap();
            root.subject().to_string()
        })
        .collect();
    assert_eq!(subjects[0], "O=cluster.local");
    assert!(subjects[1].starts_with("O=cluster.local, CN=root-2 20"), "{subjects:?}");
    let loaded = load(&directory, None, now).unwrap();
    assert_eq!(loaded.authority.organization(), Some("cluster.local"));
}
