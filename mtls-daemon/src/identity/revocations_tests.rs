use super::*;

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

fn entry(what: What) -> Revoked {
    Revoked { what, at: 1, reason: "stolen".to_owned(), until: None }
}

fn list(number: u64, issued: u64, entries: Vec<Revoked>) -> Compiled {
    let trust_domain = "cluster.local".to_owned();
    Compiled::new(&RevocationList { trust_domain, number, issued, entries }, &domain())
}

fn by_serial(serial: &str, issuer: Option<&str>) -> Revoked {
    let issuer = issuer.map(str::to_owned);
    entry(What::Certificate { serial: serial.to_owned(), issuer })
}

#[test]
fn a_certificate_is_refused_by_its_serial_and_issuer() {
    let web = id("spiffe://cluster.local/ns/foo/sa/web");
    let held = list(1, 0, vec![by_serial("0A:BC", Some("11")), by_serial("def", None)]);
    let ask = |serial, issuer| held.check(Certificate { serial, issuer, id: &web });
    let error = ask("abc", Some("11")).unwrap_err();
    assert!(
        error.to_string().contains("abc") && error.to_string().ends_with(": stolen"),
        "{error}"
    );
    assert!(ask("abc", Some("22")).is_ok(), "another CA's");
    assert!(ask("abc", None).is_err(), "it may be that CA's");
    assert!(ask("def", Some("22")).is_err(), "any CA's");
    assert!(ask("abcd", Some("11")).is_ok());
}

#[test]
fn an_identity_and_a_node_are_refused_whatever_the_serial() {
    let entries = vec![
        entry(What::Identity("spiffe://cluster.local/ns/foo/sa/web".to_owned())),
        entry(What::Node(NodeName::parse("vm-1").unwrap())),
    ];
    let held = list(1, 0, entries);
    let ask = |text| held.check(Certificate { serial: "1", issuer: None, id: &id(text) });
    assert!(matches!(
        ask("spiffe://cluster.local/ns/foo/sa/web"),
        Err(NotBelieved::Identity { .. })
    ));
    assert!(ask("spiffe://cluster.local/node/vm-1").is_err());
    assert!(ask("spiffe://cluster.local/ns/foo/sa/webs").is_ok());
    assert!(ask("spiffe://other.domain/node/vm-1").is_ok());
}

#[test]
fn a_list_covers_its_trust_domain_until_it_is_too_old() {
    let [web, foreign] = ["cluster.local", "other.domain"]
        .map(|domain| id(&format!("spiffe://{domain}/ns/foo/sa/web")));
    let of = |id| Certificate { serial: "1", issuer: None, id };
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let lenient = Revocations::new(Rules::default());
    assert_eq!(lenient.covers(of(&web), at(1000)), Ok(false));
    assert!(!lenient.is_required());
    let strict =
        Revocations::new(Rules { max_age: Some(Duration::from_secs(60)), ..Rules::default() });
    assert_eq!(strict.covers(of(&web), at(1000)), Ok(false));
    assert!(strict.is_required());
    strict.replace(list(1, 1000, Vec::new()));
    assert_eq!(strict.covers(of(&web), at(1060)), Ok(true));
    assert_eq!(strict.covers(of(&foreign), at(1060)), Ok(false), "it is another CA's");
    let error = strict.covers(of(&web), at(1061)).unwrap_err();
    assert!(error.to_string().contains("1m 1s old") && !error.is_revoked(), "{error}");
    lenient.replace(list(1, 1000, Vec::new()));
    assert_eq!(lenient.covers(of(&web), at(1_000_000)), Ok(true), "an absent CA breaks nothing");
}

#[test]
fn only_a_new_number_is_a_change() {
    let held = Revocations::new(Rules::default());
    let mut changed = held.changed();
    held.replace(list(1, 1, Vec::new()));
    assert!(changed.has_changed().unwrap());
    changed.mark_unchanged();
    held.replace(list(1, 2, Vec::new()));
    assert!(!changed.has_changed().unwrap(), "signed again");
    held.replace(list(2, 3, Vec::new()));
    assert!(changed.has_changed().unwrap());
}

#[test]
fn serials_have_one_form() {
    for (given, normal) in
        [("0A:bC", "abc"), ("0x00ff", "ff"), ("00", "0"), ("", "0"), ("1234", "1234")]
    {
        assert_eq!(normal_serial(given), normal, "{given}");
    }
}
