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
    let error = strict.covers(of(&web), at(1000)).unwrap_err();
    assert!(matches!(error, NotBelieved::NoList(_)), "also where lists in files speak: {error}");
    assert!(strict.is_required());
    strict.replace_at(list(1, 1000, Vec::new()), at(1000), Instant::now());
    assert_eq!(strict.covers(of(&web), at(1060)), Ok(true));
    assert_eq!(strict.covers(of(&foreign), at(1060)), Ok(false), "it is another CA's");
    let error = strict.covers(of(&web), at(1061)).unwrap_err();
    assert!(error.to_string().contains("1m 1s old") && !error.is_revoked(), "{error}");
    lenient.replace(list(1, 1000, Vec::new()));
    assert_eq!(lenient.covers(of(&web), at(1_000_000)), Ok(true), "an absent CA breaks nothing");
}

#[test]
fn whoever_puts_the_clock_back_makes_no_list_younger() {
    let web = id("spiffe://cluster.local/ns/foo/sa/web");
    let web = Certificate { serial: "1", issuer: None, id: &web };
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let max_age = Some(Duration::from_secs(60));
    let held = Revocations::new(Rules { max_age, ..Rules::default() });
    let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
    let issued = 100_000;
    let put = |ago| held.replace_at(list(1, issued, Vec::new()), at(issued + 10), ago);
    put(ago(40));
    assert_eq!(held.covers(web, at(issued)), Ok(true), "a little");
    put(ago(52));
    let error = held.covers(web, at(issued)).unwrap_err();
    assert!(matches!(error, NotBelieved::TooOld { .. }), "{error}");
    assert!(
        held.current().unwrap().age(at(issued)) >= Duration::from_secs(62),
        "as status says it"
    );
    put(ago(0));
    let error = held.covers(web, at(issued - 3600)).unwrap_err();
    assert!(error.to_string().contains("clocks") && !error.is_revoked(), "{error}");
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

#[test]
fn a_list_is_followed_by_itself_and_by_later_ones() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    let until = |serial: &str, until| Revoked { until: Some(until), ..by_serial(serial, None) };
    let ours = list(5, 100, vec![by_serial("aa", Some("11")), until("bb", 150)]);
    let next = |number, issued, entries| ours.check_next(&list(number, issued, entries), now);
    let same = || vec![by_serial("00:AA", Some("11")), until("bb", 150)];
    assert_eq!(next(5, 101, same()), Ok(()), "signed again");
    assert_eq!(next(5, 150, same()[..1].to_vec()), Ok(()), "bb has expired");
    assert_eq!(next(6, 50, Vec::new()), Ok(()), "whatever is in it");
    let older = |number| Err(StepBack::Older { number, ours: 5 });
    assert_eq!(next(5, 99, same()), older(5));
    assert_eq!(next(4, 200, same()), older(4));
    // As from a backup of before, in which the number was used for something else.
    for another in [
        vec![until("bb", 150)],
        same()[..1].to_vec(),
        [same(), vec![by_serial("cc", None)]].concat(),
        vec![by_serial("aa", None), until("bb", 150)],
    ] {
        assert_eq!(next(5, 101, another), Err(StepBack::Another(5)));
    }
    // A signature from the future gives way to one of now.
    let ahead = list(5, 5000, same());
    assert_eq!(ahead.check_next(&list(5, 1001, same()), now), Ok(()));
    assert_eq!(ahead.check_next(&list(5, 999, same()), now), Ok(()), "clocks differ");
    assert_eq!(ahead.check_next(&list(5, 699, same()), now), older(5));
    assert!(ahead.is_from_the_future(now) && !list(5, 1200, same()).is_from_the_future(now));
}

#[test]
fn an_identity_is_revoked_under_every_name_of_the_trust_domain() {
    let aliases = ["old.example", "older.example"].map(|it| TrustDomain::parse(it).unwrap());
    let held = Revocations::new(Rules { aliases: aliases.to_vec(), ..Rules::default() });
    let paths = ["ns/a/sa/own", "ns/a/sa/old", "ns/a/sa/foreign"];
    let named = ["cluster.local", "old.example", "other.example"].into_iter().zip(paths);
    let entries =
        named.map(|(domain, path)| entry(What::Identity(format!("spiffe://{domain}/{path}"))));
    held.replace(list(1, 1, entries.collect()));
    let ask = |domain: &str, path: &str| {
        let id = id(&format!("spiffe://{domain}/{path}"));
        held.covers(Certificate { serial: "1", issuer: None, id: &id }, SystemTime::now())
    };
    for domain in ["cluster.local", "old.example", "older.example"] {
        for path in &paths[..2] {
            let error = ask(domain, path).unwrap_err().to_string();
            assert!(error.contains(&format!("spiffe://{domain}/{path} was revoked")), "{error}");
        }
        assert_eq!(ask(domain, paths[2]), Ok(true), "another trust domain's");
    }
    assert!(ask("other.example", paths[2]).is_err());
    assert_eq!(ask("other.example", paths[0]), Ok(false));
}
