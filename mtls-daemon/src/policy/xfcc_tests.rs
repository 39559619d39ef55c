use proptest::prelude::*;

use super::*;

fn client() -> Client {
    Client {
        hash: "00ff".into(),
        subject: Some(String::new()),
        uri: Some("spiffe://td/ns/a/sa/b".into()),
        certificate: None,
        dns_names: vec!["b.a.svc".into(), "b".into()],
    }
}

const OWN: Option<&str> = Some("spiffe://td/ns/x/sa/y");
const WHOLE: &str =
    "By=spiffe://td/ns/x/sa/y;Hash=00ff;Subject=\"\";URI=spiffe://td/ns/a/sa/b;DNS=b.a.svc;DNS=b";

#[test]
fn rule_5_1_the_element_names_both_ends() {
    assert_eq!(element(&client(), OWN), WHOLE);
    let anonymous = element(&client(), Some(""));
    assert!(anonymous.starts_with("Hash=00ff;"), "{anonymous}");
    let named = Client { subject: Some("CN=b,O=Acme\\, Inc.".into()), ..client() };
    assert!(element(&named, None).contains(";Subject=\"CN=b,O=Acme\\, Inc.\";"));
}

#[test]
fn rule_5_2_and_5_3_what_the_client_sent_is_kept_only_where_it_may_be() {
    use Forward::*;
    let check = |how, client: Option<&Client>, received, expected: Option<&str>| {
        let got = forwarded(how, client, OWN, received);
        assert_eq!(got.as_deref(), expected, "{how:?} {received:?}");
    };
    let client = client();
    const FORGED: &str = "URI=spiffe://td/ns/admin/sa/admin";
    let forged = Some(FORGED);
    let appended = format!("{FORGED},{WHOLE}");
    for how in [Sanitize, ForwardOnly, AppendForward, SanitizeSet] {
        check(how, None, forged, None);
        check(how, None, None, None);
    }
    check(AlwaysForwardOnly, None, forged, forged);
    check(Sanitize, Some(&client), forged, None);
    check(ForwardOnly, Some(&client), forged, forged);
    check(SanitizeSet, Some(&client), forged, Some(WHOLE));
    check(SanitizeSet, Some(&client), None, Some(WHOLE));
    check(AppendForward, Some(&client), forged, Some(&appended));
    check(AppendForward, Some(&client), None, Some(WHOLE));
}

#[test]
fn names_in_a_certificate_cannot_leave_their_place() {
    let check = |text: &str, expected: &str| assert_eq!(escaped(text), expected, "{text:?}");
    check("CN=a", "CN=a");
    check("CN=\"x\";URI=y", "CN=\\\"x\\\";URI=y");
    check("CN=already \\\" escaped", "CN=already \\\" escaped");
    check("CN=ends\\", "CN=ends\\\\");
    check("CN=\r\nX: y", "CN=\\0D\\0AX: y");
    check("CN=\u{e9}", "CN=\\C3\\A9");
    let hostile = Client { dns_names: vec!["a;URI=spiffe://td/admin,Hash=0".into()], ..client() };
    let hops = parse(&element(&hostile, OWN)).expect("one hop");
    assert_eq!(hops.len(), 1);
    assert_eq!(hops[0].uris, ["spiffe://td/ns/a/sa/b"]);
    assert_eq!(hops[0].dns_names, hostile.dns_names);
}

#[test]
fn a_header_is_read_hop_by_hop() {
    let header = format!("Hash=1;Subject=\"CN=first,OU=x;y\";URI=u;DNS=d,{WHOLE}");
    let hops = parse(&header).expect("two hops");
    let identities: Vec<_> = hops.iter().flat_map(Element::identities).collect();
    assert_eq!(identities, ["u", "d", "first", "spiffe://td/ns/a/sa/b", "b.a.svc", "b"]);
    assert_eq!(common_name("/C=US/CN=old.form"), Some("old.form"));
    assert_eq!(common_name("O=x\\,CN=no"), None);
    assert_eq!(parse(" "), Err(BadHeader::Missing));
    for bad in ["nonsense", "URI=\"open", "URI=a\"b", "What=1", "URI=u,,URI=v"] {
        assert!(matches!(parse(bad), Err(BadHeader::Format(_))), "{bad}");
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back_as_it_was(
        subject in any::<String>(), uri in r"[a-z:/.]{0,20}", dns in prop::collection::vec(any::<String>(), 0..3),
        own in r"[ -~]{1,20}",
    ) {
        let client = Client {
            hash: "ab".into(), subject: Some(subject.clone()), uri: Some(uri.clone()),
            certificate: None, dns_names: dns.clone(),
        };
        let text = element(&client, Some(&own));
        prop_assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        let hops = parse(&text).expect("what we write we can read");
        prop_assert_eq!(hops.len(), 1);
        let hop = &hops[0];
        prop_assert_eq!(hop.subject.as_deref(), Some(&*escaped(&subject)));
        prop_assert_eq!(&hop.uris, &[uri]);
        prop_assert_eq!(&hop.hash, &Some("ab".to_owned()));
        let escaped_dns: Vec<_> = dns.iter().map(|name| escaped(name)).collect();
        prop_assert_eq!(&hop.dns_names, &escaped_dns);
        let escaped_own = escaped(&own);
        prop_assert_eq!(escaped(&escaped_own), escaped_own.clone());
        prop_assert_eq!(&hop.by, &[escaped_own]);
    }

    #[test]
    fn any_header_is_read_or_refused(text in any::<String>()) {
        let _read = parse(&text).is_ok();
    }
}
