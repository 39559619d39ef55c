use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Barrier;
use std::time::Duration;

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::*;
use crate::identity::SpiffeId;
use crate::identity::ca::files::{DIRECTORY_MODE, FILE_MODE};

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn refusal(directory: &Path) -> String {
    open_or_make(directory, &domain(), KeyType::default())
        .err()
        .expect("must be refused")
        .to_string()
}

#[test]
fn daemons_that_start_together_share_one_root() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("deep/ca");
    let start = Barrier::new(20);
    let roots: BTreeSet<Vec<u8>> = std::thread::scope(|scope| {
        let open = || {
            start.wait();
            open_or_make(&directory, &domain(), KeyType::default()).unwrap().certificate().to_vec()
        };
        let threads: Vec<_> = (0..20).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(roots.len(), 1);
    assert_eq!(mode(&directory), 0o700);
    for file in [CERTIFICATE, KEY, LOCK] {
        assert_eq!(mode(&directory.join(file)), 0o600, "{file}");
    }
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 3, "no temporary file is left");
}

#[test]
fn a_ca_that_others_can_read_is_refused_with_the_fix() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("ca");
    open_or_make(&directory, &domain(), KeyType::default()).unwrap();
    for (path, wrong, right) in [
        (directory.clone(), 0o750, 0o700),
        (directory.join(KEY), 0o640, 0o600),
        (directory.join(CERTIFICATE), 0o604, 0o600),
    ] {
        set_mode(&path, wrong);
        let text = refusal(&directory);
        assert!(text.contains(&format!("chmod {right:04o} {}", path.display())), "{text}");
        set_mode(&path, right);
        open_or_make(&directory, &domain(), KeyType::default()).unwrap();
    }
}

/// A directory as a crash leaves it, with these files of a sound CA and these halves.
fn crashed(directory: &Path, whole: &[PathBuf], half: &[PathBuf]) {
    let (authority, certificate) =
        Authority::generate(&domain(), KeyType::default(), SystemTime::now()).unwrap();
    DirBuilder::new().mode(DIRECTORY_MODE).create(directory).unwrap();
    for (paths, part) in [(whole, 1), (half, 2)] {
        for path in paths {
            let is_key = path.to_string_lossy().contains("key");
            let text = if is_key { &authority.key_pem() } else { certificate.as_str() };
            fs::write(path, &text[..text.len() / part]).unwrap();
            set_mode(path, FILE_MODE);
        }
    }
}

#[test]
fn a_crash_at_any_step_of_the_making_is_repaired() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("ca");
    let (certificate, key) = (directory.join(CERTIFICATE), directory.join(KEY));
    let (new_certificate, new_key) = (temporary(&certificate), temporary(&key));
    let steps: [(&[PathBuf], &[PathBuf]); 4] = [
        (&[], std::slice::from_ref(&new_key)),
        (std::slice::from_ref(&new_key), std::slice::from_ref(&new_certificate)),
        (&[new_key.clone(), new_certificate.clone()], &[]),
        (&[new_key.clone(), certificate.clone()], &[]),
    ];
    for (whole, half) in steps {
        crashed(&directory, whole, half);
        let seen = fs::read_to_string(&certificate).ok();
        let root =
            open_or_make(&directory, &domain(), KeyType::default()).unwrap().certificate().clone();
        let again =
            open_or_make(&directory, &domain(), KeyType::default()).unwrap().certificate().clone();
        assert_eq!(root, again, "{whole:?} {half:?}");
        if let Some(seen) = seen {
            assert_eq!(seen, fs::read_to_string(&certificate).unwrap(), "somebody may trust it");
        }
        assert_eq!(mode(&key), FILE_MODE);
        assert!(!new_key.exists() && !new_certificate.exists(), "{whole:?} {half:?}");
        fs::remove_dir_all(&directory).unwrap();
    }
}

#[test]
fn half_of_a_pair_is_refused_and_nothing_is_overwritten() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("ca");
    let first =
        open_or_make(&directory, &domain(), KeyType::default()).unwrap().certificate().clone();
    let (certificate, key) = (directory.join(CERTIFICATE), directory.join(KEY));
    let kept = |path: &Path| fs::read_to_string(path).unwrap();
    let (certificate_text, key_text) = (kept(&certificate), kept(&key));

    let away = place.path().join("backup.pem");
    fs::rename(&certificate, &away).unwrap();
    let text = refusal(&directory);
    for words in [
        certificate.to_str().unwrap(),
        key.to_str().unwrap(),
        "restore the certificate from a backup",
        "move the key away",
    ] {
        assert!(text.contains(words), "{text}");
    }
    assert_eq!(kept(&key), key_text);
    assert!(!certificate.exists());
    fs::rename(&away, &certificate).unwrap();
    assert_eq!(
        open_or_make(&directory, &domain(), KeyType::default()).unwrap().certificate(),
        &first
    );

    fs::rename(&key, &away).unwrap();
    assert!(refusal(&directory).contains("put the key back"));
    assert_eq!(kept(&certificate), certificate_text);
    // A leftover of some other making is no replacement.
    let (other, _) = Authority::generate(&domain(), KeyType::default(), SystemTime::now()).unwrap();
    fs::write(temporary(&key), other.key_pem().as_bytes()).unwrap();
    set_mode(&temporary(&key), FILE_MODE);
    assert!(refusal(&directory).contains("its key is not the certificate's"));
    assert!(!key.exists());
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let (one, other) = (place.path().join("one"), place.path().join("other"));
    open_or_make(&one, &domain(), KeyType::default()).unwrap();
    open_or_make(&other, &domain(), KeyType::default()).unwrap();
    fs::copy(other.join(KEY), one.join(KEY)).unwrap();
    assert!(refusal(&one).contains("its key is not the certificate's"));
}

#[test]
fn files_that_hold_no_usable_root_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("ca");
    let authority = open_or_make(&directory, &domain(), KeyType::default()).unwrap();
    let good = fs::read_to_string(directory.join(CERTIFICATE)).unwrap();
    fs::write(directory.join(CERTIFICATE), "rubbish").unwrap();
    assert!(refusal(&directory).contains("is not PEM"));

    let key = authority.key_pem();
    let late = authority.not_after() + Duration::from_secs(1);
    assert!(Authority::parse(&good, &key, late).err().unwrap().contains("expired"));
    let early = SystemTime::now() - Duration::from_secs(3600);
    assert!(Authority::parse(&good, &key, early).err().unwrap().contains("clock"));

    let pair = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::default().self_signed(&pair).unwrap().pem();
    let parsed = Authority::parse(&leaf, &pair.serialize_pem(), SystemTime::now());
    assert!(parsed.err().unwrap().contains("not a CA's"));
}

#[test]
fn an_svid_has_istios_profile() {
    let (authority, _) =
        Authority::generate(&domain(), KeyType::default(), SystemTime::now()).unwrap();
    let id = SpiffeId::istio(&domain(), "foo", "web").unwrap();
    let now = SystemTime::now();
    let svid =
        authority.issue(&id, KeyType::default(), Duration::from_secs(24 * 3600), now).unwrap();
    let (_, leaf) = X509Certificate::from_der(&svid.chain[0]).unwrap();
    assert_eq!(leaf.issuer().to_string(), "O=cluster.local");
    assert_eq!(leaf.subject().iter().count(), 0);
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    assert_eq!(names.value.general_names, [GeneralName::URI(id.as_str())]);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    assert_eq!(usage.value.flags, 0b101, "digitalSignature and keyEncipherment alone");
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth);
    let constraints = leaf.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca);
    assert_eq!(leaf.serial.to_str_radix(16), svid.serial);
    assert_eq!(svid.serial.len(), 32);
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(seconds(svid.not_before), seconds(now) - 120);
    assert_eq!(seconds(svid.not_after), seconds(now) + 24 * 3600);
    assert_eq!(leaf.validity().not_after.timestamp() as u64, seconds(svid.not_after));
}

#[test]
fn an_svid_ends_with_its_signer_at_the_latest() {
    let (authority, _) =
        Authority::generate(&domain(), KeyType::default(), SystemTime::now()).unwrap();
    let id = SpiffeId::istio(&domain(), "foo", "web").unwrap();
    let century = Duration::from_secs(100 * 365 * 24 * 3600);
    let svid = authority.issue(&id, KeyType::default(), century, SystemTime::now()).unwrap();
    assert_eq!(svid.not_after, authority.not_after());
    assert!(authority.issue(&id, KeyType::default(), Duration::ZERO, SystemTime::now()).is_err());
    let domain_itself = SpiffeId::parse("spiffe://cluster.local").unwrap();
    assert!(
        authority.issue(&domain_itself, KeyType::default(), century, SystemTime::now()).is_err()
    );
}

#[test]
fn every_key_type_makes_an_authority_that_is_read_again_and_svids() {
    let id = SpiffeId::istio(&domain(), "foo", "web").unwrap();
    let minute = Duration::from_secs(60);
    for (key_type, bits) in
        [(KeyType::EcdsaP256, 256), (KeyType::EcdsaP384, 384), (KeyType::Rsa2048, 2048)]
    {
        let place = tempfile::tempdir().unwrap();
        open_or_make(place.path().join("ca").as_path(), &domain(), key_type).unwrap();
        // Another type later changes SVIDs, never the CA's own key.
        let again = open_or_make(&place.path().join("ca"), &domain(), KeyType::default()).unwrap();
        let size = |der: &[u8]| {
            let (_, certificate) = X509Certificate::from_der(der).unwrap();
            certificate.public_key().parsed().unwrap().key_size()
        };
        assert_eq!(size(again.certificate()), bits, "{key_type:?}");
        let svid = again.issue(&id, key_type, minute, SystemTime::now()).unwrap();
        assert_eq!(size(&svid.chain[0]), bits, "{key_type:?}");
        let anchors = vec![again.certificate().clone()];
        let bundles = [crate::identity::Bundle::new(domain(), anchors)];
        crate::tls::TlsIdentity::new(&svid, &bundles).unwrap();
        let now = SystemTime::now();
        crate::tls::svid::verify_svid(&svid.chain, &bundles, None, now).unwrap();
    }
}
