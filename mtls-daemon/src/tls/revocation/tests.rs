//! Lists in files, and both kinds of lists together. Handshakes: `tls/tests/revoked.rs`.

use std::path::PathBuf;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber,
};
use rustls_pki_types::UnixTime;
use time::OffsetDateTime;
use webpki::KeyUsage;

use super::super::verify::SvidVerifier;
use super::*;
use crate::identity::revocations::{Compiled, RevocationList, Revoked, What};
use crate::identity::{Bundle, TrustDomain};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const HOUR: Duration = Duration::from_secs(3600);

struct Ca {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

impl Ca {
    fn root(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        Self { certificate: ca_params(name).self_signed(&key).unwrap().into(), key }
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_ca_cert_der(&self.certificate, &self.key).unwrap()
    }

    fn below(&self, name: &str, serial: &[u8]) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = ca_params(name);
        params.serial_number = Some(SerialNumber::from_slice(serial));
        Self { certificate: params.signed_by(&key, &self.issuer()).unwrap().into(), key }
    }

    fn leaf(&self, serial: &[u8]) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(WEB.try_into().unwrap())];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(serial));
        let key = KeyPair::generate().unwrap();
        params.signed_by(&key, &self.issuer()).unwrap().into()
    }

    /// Of now plus `from`, until `from` an hour later.
    fn crl(&self, number: u64, from: Duration, serials: &[&[u8]]) -> CrlText {
        let this_update = OffsetDateTime::now_utc() + from;
        let revoked = |serial: &&[u8]| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: this_update,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update,
            next_update: this_update + HOUR,
            crl_number: number.into(),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let crl = params.signed_by(&self.issuer()).unwrap();
        CrlText { pem: crl.pem().unwrap(), der: crl.der().to_vec() }
    }
}

struct CrlText {
    pem: String,
    der: Vec<u8>,
}

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// As an operator would: in one step.
    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        let partial = self.path().join(".partial");
        std::fs::write(&partial, bytes).unwrap();
        std::fs::rename(partial, &path).unwrap();
        path
    }
}

fn revocations(required: bool) -> Arc<Revocations> {
    Revocations::new(Rules { required, ..Rules::default() })
}

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

fn verify_at(
    checks: &Arc<Checks>,
    roots: &[&Ca],
    chain: &[CertificateDer<'_>],
    after: Duration,
) -> Result<(), String> {
    let anchors = roots.iter().map(|root| root.certificate.clone()).collect();
    let bundle = Bundle { trust_domain: domain(), anchors };
    let verifier = SvidVerifier::new(&[bundle], checks).unwrap();
    let now = UnixTime::since_unix_epoch(UnixTime::now().as_secs_duration() + after);
    let verified = verifier.verify(&chain[0], &chain[1..], now, KeyUsage::client_auth(), None);
    verified.map(|_| ()).map_err(|refusal| refusal.to_string())
}

trait Seconds {
    fn as_secs_duration(&self) -> Duration;
}

impl Seconds for UnixTime {
    fn as_secs_duration(&self) -> Duration {
        Duration::from_secs(self.as_secs())
    }
}

fn verify(checks: &Arc<Checks>, roots: &[&Ca], chain: &[CertificateDer<'_>]) -> Result<(), String> {
    verify_at(checks, roots, chain, Duration::ZERO)
}

#[test]
fn a_file_of_either_form_revokes_what_its_issuer_signed() {
    let (root, place) = (Ca::root("root"), Place::new());
    let (bad, good) = (root.leaf(&[0x5f, 1]), root.leaf(&[0x5f, 2]));
    let crl = root.crl(1, Duration::ZERO, &[&[0x5f, 1]]);
    for (name, bytes) in [("a.pem", crl.pem.as_bytes()), ("a.crl", &crl.der)] {
        let file = place.put(name, bytes);
        let checks = Checks::with_files(revocations(false), &file).unwrap();
        let error = verify(&checks, &[&root], std::slice::from_ref(&bad)).unwrap_err();
        assert!(error.contains("serial 5f01") && error.contains("O=root"), "{name}: {error}");
        verify(&checks, &[&root], std::slice::from_ref(&good)).unwrap();
    }
}

#[test]
fn a_ca_between_leaf_and_root_is_revoked_by_the_roots_list() {
    let (root, place) = (Ca::root("root"), Place::new());
    let (bad, good) = (root.below("below", &[0x51]), root.below("below", &[0x52]));
    place.put("root.pem", root.crl(1, Duration::ZERO, &[&[0x51]]).pem);
    let checks = Checks::with_files(revocations(false), &place.path()).unwrap();
    let error = verify(&checks, &[&root], &[bad.leaf(&[7]), bad.certificate.clone()]).unwrap_err();
    assert!(error.contains("a CA's certificate (serial 51)"), "{error}");
    let chain = [good.leaf(&[7]), good.certificate.clone()];
    verify(&checks, &[&root], &chain).unwrap();

    // Required: each certificate of the path needs its issuer's list.
    let strict = Checks::with_files(revocations(true), &place.path()).unwrap();
    let error = verify(&strict, &[&root], &chain).unwrap_err();
    assert!(error.contains("no revocation list") && error.contains("--crl-file"), "{error}");
    place.put("below.crl", good.crl(1, Duration::ZERO, &[&[8]]).der);
    strict.tick(SystemTime::now());
    verify(&strict, &[&root], &chain).unwrap();
    let other = [good.leaf(&[8]), good.certificate.clone()];
    assert!(verify(&strict, &[&root], &other).unwrap_err().contains("its certificate"));
}

#[test]
fn a_list_speaks_only_of_what_its_own_key_signed() {
    // One name, two keys: a root that was replaced, or somebody who wrote a list himself.
    let (old, new, place) = (Ca::root("root"), Ca::root("root"), Place::new());
    place.put("forged.pem", new.crl(9, Duration::from_secs(60), &[&[1]]).pem);
    let checks = Checks::with_files(revocations(false), &place.path()).unwrap();
    verify(&checks, &[&old], &[old.leaf(&[1])]).unwrap();
    // Also beside the right list, although it is the newer one.
    place.put("old.pem", old.crl(1, Duration::ZERO, &[&[2]]).pem);
    checks.tick(SystemTime::now());
    assert!(verify(&checks, &[&old, &new], &[old.leaf(&[2])]).is_err());
    assert!(verify(&checks, &[&old, &new], &[new.leaf(&[1])]).is_err());
    verify(&checks, &[&old, &new], &[new.leaf(&[2])]).unwrap();
    let strict = Checks::with_files(revocations(true), &place.path().join("forged.pem"));
    let error = verify(&strict.unwrap(), &[&old], &[old.leaf(&[1])]).unwrap_err();
    assert!(error.contains("no revocation list"), "{error}");
}

#[test]
fn a_list_that_is_overdue_refuses_all_that_its_issuer_signed() {
    let (root, other, place) = (Ca::root("root"), Ca::root("other"), Place::new());
    let file = place.put("a.pem", root.crl(1, Duration::ZERO, &[&[1]]).pem);
    let checks = Checks::with_files(revocations(false), &file).unwrap();
    let later = HOUR + Duration::from_secs(1);
    verify_at(&checks, &[&root], &[root.leaf(&[2])], HOUR - Duration::from_secs(5)).unwrap();
    let error = verify_at(&checks, &[&root], &[root.leaf(&[2])], later).unwrap_err();
    assert!(error.contains("should have been followed"), "{error}");
    verify_at(&checks, &[&other], &[other.leaf(&[2])], later).unwrap();

    // Nothing but the clock changed, and open connections are judged again.
    let mut changed = checks.changed();
    checks.tick(SystemTime::now());
    assert!(!changed.has_changed().unwrap());
    checks.tick(SystemTime::now() + later);
    assert!(changed.has_changed().unwrap());
    changed.mark_unchanged();
    checks.tick(SystemTime::now() + later);
    assert!(!changed.has_changed().unwrap(), "once");
}

#[test]
fn a_change_is_read_and_a_bad_one_keeps_the_last_good() {
    let (root, place) = (Ca::root("root"), Place::new());
    let [first, second, third] = [[1], [2], [3]].map(|serial| root.leaf(&serial));
    let file = place.put("a.pem", root.crl(1, Duration::ZERO, &[&[1]]).pem);
    let checks = Checks::with_files(revocations(false), &file).unwrap();
    let mut changed = checks.changed();
    let refused = || {
        [&first, &second, &third]
            .map(|leaf| verify(&checks, &[&root], std::slice::from_ref(leaf)).is_err())
    };
    assert_eq!(refused(), [true, false, false]);
    let minute = Duration::from_secs(60);
    place.put("a.pem", root.crl(2, minute, &[&[1], &[2]]).pem);
    checks.tick(SystemTime::now());
    assert!(changed.has_changed().unwrap());
    assert_eq!(refused(), [true, true, false]);
    changed.mark_unchanged();

    let whole = root.crl(3, minute * 2, &[&[1], &[2], &[3]]);
    let problems = || checks.crls().unwrap().problems().join("; ");
    for (spoilt, why) in [
        (&whole.pem.as_bytes()[..whole.pem.len() / 2], "PEM"),
        (b"", "cannot be used"),
        (&whole.der[..whole.der.len() - 9], "cannot be used"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no revocation list"),
        (root.crl(1, Duration::ZERO, &[]).pem.as_bytes(), "older than ours"),
    ] {
        place.put("a.pem", spoilt);
        checks.tick(SystemTime::now());
        assert!(problems().contains(why), "{why}: {}", problems());
        assert_eq!(refused(), [true, true, false], "{why}");
    }
    std::fs::remove_file(&file).unwrap();
    checks.tick(SystemTime::now());
    assert!(problems().contains("cannot be read"), "{}", problems());
    assert_eq!(refused(), [true, true, false]);
    place.put("a.pem", &whole.der);
    checks.tick(SystemTime::now());
    assert_eq!((problems().as_str(), refused()), ("", [true, true, true]));
    let facts = checks.crls().unwrap().facts();
    assert_eq!((facts.len(), facts[0].entries, &*facts[0].issuer), (1, 3, "O=root"));
}

#[test]
fn a_directory_is_followed_file_by_file() {
    let (one, two, place) = (Ca::root("one"), Ca::root("two"), Place::new());
    place.put("1.pem", one.crl(1, Duration::ZERO, &[&[1]]).pem);
    let checks = Checks::with_files(revocations(false), &place.path()).unwrap();
    let refused = |ca: &Ca| verify(&checks, &[ca], &[ca.leaf(&[1])]).is_err();
    assert_eq!((refused(&one), refused(&two)), (true, false));
    // A file with two lists, and one that is not looked at.
    let both = [&one, &two].map(|ca| ca.crl(2, Duration::from_secs(9), &[&[1]]).pem).concat();
    place.put("2.pem", both);
    place.put(".hidden", "nothing");
    checks.tick(SystemTime::now());
    assert_eq!((refused(&one), refused(&two)), (true, true));
    std::fs::remove_file(place.path().join("2.pem")).unwrap();
    checks.tick(SystemTime::now());
    assert_eq!((refused(&one), refused(&two)), (true, false), "a CA that is no more");
    // An empty directory is a mount that is not there.
    std::fs::remove_file(place.path().join("1.pem")).unwrap();
    checks.tick(SystemTime::now());
    assert!(refused(&one));
    assert!(!checks.crls().unwrap().problems().is_empty());
}

#[test]
fn at_the_start_nothing_may_be_wrong() {
    let place = Place::new();
    let open = |path: &Path| Checks::with_files(revocations(false), path).unwrap_err().to_string();
    assert!(open(&place.path().join("none")).contains("cannot be read"));
    assert!(open(&place.path()).contains("no file"));
    let file = place.put("a.pem", "-----BEGIN X509 CRL-----\n");
    assert!(open(&file).contains("PEM"));
    // A list of a part says nothing of the rest, and would look as if it did.
    let root = Ca::root("root");
    let mut params = CertificateRevocationListParams {
        this_update: OffsetDateTime::now_utc(),
        next_update: OffsetDateTime::now_utc() + HOUR,
        crl_number: 1.into(),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.issuing_distribution_point = Some(rcgen::CrlIssuingDistributionPoint {
        distribution_point: rcgen::CrlDistributionPoint { uris: vec!["http://crl.test/1".into()] },
        scope: None,
    });
    let part = params.signed_by(&root.issuer()).unwrap();
    assert!(open(&place.put("b", part.der())).contains("only of a part"));
}

#[test]
fn the_cas_list_names_leaves_signers_and_identities_and_covers_its_trust_domain() {
    let root = Ca::root("root");
    let below = root.below("below", &[0x51]);
    let chain = [below.leaf(&[7]), below.certificate.clone()];
    let list = Revocations::new(Rules { required: true, ..Rules::default() });
    let checks = Checks::new(list.clone());
    let ask = || verify(&checks, &[&root], &chain);
    assert!(ask().unwrap_err().contains("no revocation list"), "never had");
    assert_eq!(checks.awaited().as_deref(), Some("a revocation list"));
    let mut number = 0;
    let mut put = |what: Option<What>| {
        number += 1;
        let entry = |what| Revoked { what, at: 1, reason: "lost".into(), until: None };
        let entries = what.map(entry).into_iter().collect();
        let trust_domain = "cluster.local".to_owned();
        let list_now = RevocationList { trust_domain, number, issued: 1, entries };
        list.replace(Compiled::new(&list_now, &domain()));
    };
    put(None);
    assert_eq!((ask(), checks.awaited()), (Ok(()), None));
    let certificate = |serial: &str, issuer: Option<String>| {
        Some(What::Certificate { serial: serial.to_owned(), issuer })
    };
    let key_id = |der: &CertificateDer<'_>| Some(hex(&svid_rules::authority_key_id(der).unwrap()));
    put(certificate("7", key_id(&chain[0])));
    assert!(ask().unwrap_err().contains("its certificate (serial 7) was revoked: lost"));
    put(certificate("7", key_id(&chain[1])));
    assert_eq!(ask(), Ok(()), "another CA's");
    put(certificate("51", key_id(&chain[1])));
    assert!(ask().unwrap_err().contains("a CA's certificate above it (serial 51)"));
    put(Some(What::Identity(WEB.to_owned())));
    assert!(ask().unwrap_err().contains("was revoked"));
}

/// `--revocation-max-age` is about the CA's list: files are no reason to do without it.
#[test]
fn files_do_not_stand_in_for_a_list_that_must_be_of_some_age() {
    let (place, root) = (Place::new(), Ca::root("root"));
    let chain = [root.leaf(&[7])];
    let file = place.put("root.pem", root.crl(1, Duration::ZERO, &[&[9]]).pem);
    let checks = |max_age| {
        let rules = Rules { required: true, max_age, ..Rules::default() };
        Checks::with_files(Revocations::new(rules), &file).unwrap()
    };
    let without = checks(None);
    assert_eq!((verify(&without, &[&root], &chain), without.awaited()), (Ok(()), None));
    let with = checks(Some(HOUR));
    let error = verify(&with, &[&root], &chain).unwrap_err();
    assert!(error.contains("no revocation list"), "{error}");
    assert_eq!(with.awaited().as_deref(), Some("the CA's revocation list"));
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let trust_domain = "cluster.local".to_owned();
    let list = RevocationList { trust_domain, number: 1, issued: seconds, entries: Vec::new() };
    with.list().replace(Compiled::new(&list, &domain()));
    assert_eq!((verify(&with, &[&root], &chain), with.awaited()), (Ok(()), None));
}
