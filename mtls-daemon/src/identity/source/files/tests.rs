use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::KeyPair;
use rustls_pki_types::PrivateKeyDer;

use super::*;
use crate::identity::ca::Authority;
use crate::identity::{KeyType, SvidStore};
use crate::tls::HandshakeSettings;

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::istio(&domain(), "shop", account).unwrap()
}

fn authority() -> Authority {
    Authority::generate(&domain(), KeyType::default(), SystemTime::now()).unwrap().0
}

fn pem_of(label: &str, der: &[u8]) -> String {
    pem::encode(&pem::Pem::new(label, der))
}

/// An SVID as files hold it: certificate, key, roots.
struct Texts {
    certificate: String,
    key: String,
    roots: String,
    serial: String,
}

fn texts(ca: &Authority, account: &str) -> Texts {
    lasting(ca, account, Duration::from_secs(3600))
}

fn lasting(ca: &Authority, account: &str, life: Duration) -> Texts {
    let svid = ca.issue(&id(account), KeyType::default(), life, SystemTime::now()).unwrap();
    Texts {
        certificate: svid.chain.iter().map(|it| pem_of("CERTIFICATE", it)).collect(),
        key: pem_of("PRIVATE KEY", svid.key.secret_der()),
        roots: pem_of("CERTIFICATE", ca.certificate()),
        serial: normal_serial(&svid.serial),
    }
}

impl Texts {
    fn write(&self, directory: &Path, [certificate, key, roots]: [&str; 3]) {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join(certificate), &self.certificate).unwrap();
        fs::write(directory.join(key), &self.key).unwrap();
        fs::write(directory.join(roots), &self.roots).unwrap();
    }
}

const SECRET: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];

fn files(directory: &Path) -> Files {
    Files::new(directory, domain()).unwrap()
}

fn refused(source: &Files, account: &str) -> String {
    let error = source.obtain(&id(account)).expect_err("must be refused");
    let text = error.to_string();
    let absent = text.contains("no certificate in") && !text.contains("not usable");
    assert_eq!(error.reason(), if absent { Reason::Absent } else { Reason::Invalid }, "{text}");
    text
}

#[test]
fn every_layout_is_found_by_what_the_certificate_says() {
    let (place, ca) = (tempfile::tempdir().unwrap(), authority());
    let root = place.path();
    let names = [
        ("shop/web", ["cert-chain.pem", "key.pem", "root-cert.pem"]),
        ("shop/db", SECRET),
        // Not a name that says anything.
        ("x", ["svid.pem", "svid_key.pem", "svid_bundle.pem"]),
        (".", ["flat.crt", "flat.key", "ca.pem"]),
        (".", ["cfssl.pem", "cfssl-key.pem", "ca.pem"]),
    ];
    for (account, (directory, names)) in ["a", "b", "c", "d", "e"].iter().zip(names) {
        texts(&ca, account).write(&root.join(directory), names);
    }
    let source = files(root);
    for account in ["a", "b", "c", "d", "e"] {
        let (svid, bundle) = source.obtain(&id(account)).unwrap();
        assert_eq!((&svid.id, bundle.anchors.len()), (&id(account), 1));
    }
    assert_eq!(source.bundle().unwrap().anchors, [ca.certificate().clone()]);
    assert!(refused(&source, "nobody").contains("no certificate in"));
    let stranger = SpiffeId::parse("spiffe://other.example/ns/shop/sa/a").unwrap();
    assert!(source.obtain(&stranger).unwrap_err().to_string().contains("cluster.local"));
}

#[test]
fn roots_above_count_where_there_are_none_beside() {
    let (place, ca) = (tempfile::tempdir().unwrap(), authority());
    let root = place.path();
    let all = texts(&ca, "web");
    all.write(&root.join("shop/web"), SECRET);
    fs::remove_file(root.join("shop/web/ca.crt")).unwrap();
    assert!(refused(&files(root), "web").contains("no file of roots"));
    fs::write(root.join("ca.crt"), &all.roots).unwrap();
    files(root).obtain(&id("web")).unwrap();
    // Nearer ones count alone: they are never merged.
    fs::write(root.join("shop/ca.crt"), texts(&authority(), "web").roots).unwrap();
    let error = refused(&files(root), "web");
    assert!(error.contains("tls.crt") && error.contains("shop/ca.crt"), "{error}");
}

#[test]
fn what_is_wrong_is_named_with_its_file() {
    let (place, ca) = (tempfile::tempdir().unwrap(), authority());
    let root = place.path();
    let (good, other) = (texts(&ca, "web"), texts(&ca, "web"));
    let source = files(root);
    let broken = |change: &dyn Fn()| {
        good.write(root, SECRET);
        change();
        refused(&source, "web")
    };
    let write = |name: &str, text: &str| fs::write(root.join(name), text).unwrap();
    for (file, text, why) in [
        ("tls.key", other.key.as_str(), "key"),
        ("tls.key", &good.key[..good.key.len() / 2], "still being written"),
        ("tls.key", "", "no private key"),
        (
            "tls.key",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n-----END ENCRYPTED PRIVATE KEY-----",
            "encrypted",
        ),
        ("tls.key", &good.certificate, "no private key"),
        ("tls.crt", &good.certificate[..good.certificate.len() / 2], "PEM"),
        ("tls.crt", "", "PEM"),
        ("ca.crt", "nothing", "PEM"),
    ] {
        let error = broken(&|| write(file, text));
        assert!(error.contains(file) && error.contains(why), "{file}: {why}: {error}");
        assert!(!error.contains(&good.key[40..60]), "{error}");
    }
    let error = broken(&|| fs::remove_file(root.join("tls.key")).unwrap());
    assert!(error.contains("tls.key") && error.contains("cannot be read"), "{error}");
    let error = broken(&|| write("ca.crt", &texts(&authority(), "web").roots));
    assert!(error.contains("tls.crt") && error.contains("ca.crt"), "{error}");
    fs::remove_file(root.join("tls.crt")).unwrap();
    lasting(&ca, "web", Duration::from_secs(1)).write(root, SECRET);
    std::thread::sleep(Duration::from_millis(2100));
    let error = refused(&source, "web");
    assert!(error.contains("expired"), "{error}");
}

#[test]
fn two_certificates_for_one_identity_do_not_depend_on_the_order_of_the_directory() {
    let (place, ca) = (tempfile::tempdir().unwrap(), authority());
    let first = texts(&ca, "web");
    first.write(place.path(), ["a.crt", "a.key", "ca.crt"]);
    texts(&ca, "web").write(place.path(), ["b.crt", "b.key", "ca.crt"]);
    let source = files(place.path());
    assert_eq!(source.obtain(&id("web")).unwrap().0.serial, first.serial);
    let scan = source.scan();
    assert!(scan.problems[0].to_string().contains("b.crt"), "{:?}", scan.problems);
    assert!(scan.problems[0].why.contains("a.crt"), "{:?}", scan.problems);
}

#[test]
fn keys_are_read_in_the_forms_that_tools_write() {
    let ca = authority();
    for key_type in [KeyType::default(), KeyType::EcdsaP384, KeyType::Rsa2048] {
        let place = tempfile::tempdir().unwrap();
        let life = Duration::from_secs(3600);
        let svid = ca.issue(&id("web"), key_type, life, SystemTime::now()).unwrap();
        let pkcs8 = pem_of("PRIVATE KEY", svid.key.secret_der());
        fs::write(place.path().join("tls.crt"), pem_of("CERTIFICATE", &svid.chain[0])).unwrap();
        fs::write(place.path().join("ca.crt"), pem_of("CERTIFICATE", ca.certificate())).unwrap();
        fs::write(place.path().join("pkcs8"), &pkcs8).unwrap();
        let traditional = std::process::Command::new("openssl")
            .args(["pkey", "-traditional", "-in"])
            .arg(place.path().join("pkcs8"))
            .output()
            .expect("openssl");
        let traditional = String::from_utf8(traditional.stdout).unwrap();
        assert!(traditional.contains("EC PRIVATE KEY") || traditional.contains("RSA PRIVATE KEY"));
        // As `openssl ecparam -genkey` writes it.
        let with_parameters = format!(
            "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n{traditional}"
        );
        let windows = pkcs8.replace('\n', "\r\n");
        for text in [pkcs8, traditional, with_parameters, windows] {
            fs::write(place.path().join("tls.key"), text).unwrap();
            let (read, _) = files(place.path()).obtain(&id("web")).unwrap();
            let same = KeyPair::try_from(svid.key.secret_der()).unwrap();
            if let PrivateKeyDer::Pkcs8(der) = &read.key {
                let ours = KeyPair::try_from(der).unwrap();
                assert_eq!(ours.public_key_raw(), same.public_key_raw());
            }
        }
    }
}

#[test]
fn a_key_that_others_can_read_is_told_once() {
    let (place, ca) = (tempfile::tempdir().unwrap(), authority());
    texts(&ca, "web").write(place.path(), SECRET);
    let key = place.path().join("tls.key");
    let source = files(place.path());
    let open = || source.seen.lock().unwrap().open.len();
    for (mode, told) in [(0o644, 1), (0o660, 1), (0o640, 0), (0o600, 0), (0o604, 1)] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        source.obtain(&id("web")).unwrap();
        assert_eq!(open(), told, "{mode:o}");
    }
}

/// A mounted secret: names are links through `..data`, which is exchanged in one step.
fn swap(mount: &Path, version: &str, texts: &Texts) {
    texts.write(&mount.join(version), SECRET);
    let new = mount.join("..data_tmp");
    symlink(version, &new).unwrap();
    fs::rename(new, mount.join("..data")).unwrap();
    for name in SECRET {
        if !mount.join(name).is_symlink() {
            symlink(Path::new("..data").join(name), mount.join(name)).unwrap();
        }
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let began = std::time::Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(20), "did not come: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    began.elapsed()
}

#[tokio::test]
async fn changed_files_take_effect_and_bad_ones_leave_what_is_there() {
    let (place, ca) = (tempfile::tempdir().unwrap(), authority());
    let mount = place.path().join("shop/web");
    let first = texts(&ca, "web");
    swap(&mount, "..1", &first);
    let source = Arc::new(files(place.path()));
    let store = SvidStore::new(source.clone(), Vec::new(), HandshakeSettings::plain());
    let slot = store.slot(&id("web"));
    let running = tokio::spawn(store.clone().run());
    let told = Arc::new(AtomicUsize::new(0));
    let (tell, looking) = (told.clone(), store.clone());
    let following = tokio::spawn(source.follow(move |ids| {
        tell.fetch_add(1, Ordering::SeqCst);
        looking.changed(ids);
    }));
    assert_eq!(slot.wait(Duration::from_secs(20)).await.unwrap().serial(), first.serial);
    until("the first look", || told.load(Ordering::SeqCst) == 1).await;
    let serial = || slot.current().map(|it| it.serial().to_owned());

    let second = texts(&ca, "web");
    swap(&mount, "..2", &second);
    until("the second", || serial().as_deref() == Some(&second.serial)).await;
    assert_eq!(store.issued_ok(), 2, "looking at the same again is no issue");

    // Somebody forgot the key.
    let third = texts(&ca, "web");
    let wrong = Texts { key: second.key.clone(), ..texts(&ca, "web") };
    swap(&mount, "..3", &wrong);
    until("an error", || store.status()[0].last_error.is_some()).await;
    let error = store.status()[0].last_error.clone().unwrap();
    assert!(error.contains("shop/web/tls.key"), "{error}");
    assert_eq!(serial().as_deref(), Some(&*second.serial), "the last good one stays");
    swap(&mount, "..4", &third);
    until("the third", || serial().as_deref() == Some(&third.serial)).await;
    assert_eq!(store.status()[0].last_error, None);

    // Roots alone are a change, too.
    let before = slot.current().unwrap();
    let both = Texts { roots: third.roots.clone() + &texts(&authority(), "x").roots, ..third };
    swap(&mount, "..5", &both);
    until("new roots", || !Arc::ptr_eq(&before, &slot.current().unwrap())).await;
    assert_eq!(serial().as_deref(), Some(&*both.serial));

    // Files that went: nothing can be had, what is there is good until its end.
    fs::remove_dir_all(&mount).unwrap();
    until("an error", || store.status()[0].last_error.is_some()).await;
    assert_eq!(serial().as_deref(), Some(&*both.serial));
    following.abort();
    running.abort();
}

#[tokio::test]
async fn files_in_place_and_an_identity_that_comes_later() {
    let (place, ca) = (tempfile::tempdir().unwrap(), authority());
    let source = Arc::new(files(place.path()));
    let store = SvidStore::new(source.clone(), Vec::new(), HandshakeSettings::plain());
    let slot = store.slot(&id("web"));
    let running = tokio::spawn(store.clone().run());
    let looking = store.clone();
    let following = tokio::spawn(source.follow(move |ids| looking.changed(ids)));
    // So many failures that the next retry by itself would be far away.
    until("failures", || store.issued_failed() > 2).await;
    let web = texts(&ca, "web");
    web.write(&place.path().join("new"), SECRET);
    let took = until("the SVID", || slot.current().is_some()).await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    // A short one: it is looked at again, and not renewed by asking.
    let short = lasting(&ca, "web", Duration::from_secs(8));
    short.write(&place.path().join("new"), SECRET);
    until("the short one", || slot.current().unwrap().serial() == short.serial).await;
    assert!(store.status()[0].next_renewal.is_some());
    let issued = store.issued_ok();
    until("its end", || slot.current().is_none()).await;
    assert_eq!(store.issued_ok(), issued);
    until("an error", || store.status()[0].last_error.is_some()).await;
    assert!(store.status()[0].last_error.as_deref().unwrap().contains("expired"));
    following.abort();
    running.abort();
}

#[tokio::test]
async fn roots_that_were_all_taken_away_are_believed_no_more() {
    let (place, ca) = (tempfile::tempdir().unwrap(), authority());
    let web = texts(&ca, "web");
    web.write(&place.path().join("web"), SECRET);
    let client = ca
        .issue(&id("client"), KeyType::default(), Duration::from_secs(3600), SystemTime::now())
        .unwrap();
    let source = Arc::new(files(place.path()));
    let store = SvidStore::new(source.clone(), Vec::new(), HandshakeSettings::plain());
    let slot = store.slot(&id("web"));
    let running = tokio::spawn(store.clone().run());
    let looking = store.clone();
    let following = tokio::spawn(source.follow(move |ids| looking.changed(ids)));
    let refusal = |identity: Arc<crate::tls::TlsIdentity>| {
        identity.would_believe(&client.chain).err().map(|error| error.to_string())
    };
    let first = slot.wait(Duration::from_secs(20)).await.unwrap();
    assert_eq!(refusal(first), None);

    fs::write(place.path().join("web/ca.crt"), "\n").unwrap();
    until("the empty bundle", || {
        refusal(slot.current().unwrap()).is_some_and(|why| why.contains("is empty"))
    })
    .await;
    assert!(store.trust().roots.is_empty());
    fs::write(place.path().join("web/ca.crt"), &web.roots).unwrap();
    until("the roots again", || refusal(slot.current().unwrap()).is_none()).await;
    // Half of a file is none.
    fs::write(place.path().join("web/ca.crt"), &web.roots[..web.roots.len() / 2]).unwrap();
    until("an error", || store.status()[0].last_error.is_some()).await;
    assert_eq!(refusal(slot.current().unwrap()), None, "the last good one stays");
    let trust = store.trust();
    assert_eq!((trust.identities, trust.roots.len(), trust.roots[0].identities), (1, 1, 1));
    assert!(trust.roots[0].subject.contains("cluster.local"), "{trust:?}");
    following.abort();
    running.abort();
}
