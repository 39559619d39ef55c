use proptest::prelude::*;

use super::*;
use crate::identity::istio;

#[test]
fn the_canonical_form_parses_into_its_parts() {
    let id = SpiffeId::parse("spiffe://cluster.local/ns/foo/sa/web").unwrap();
    assert_eq!(id.trust_domain(), "cluster.local");
    assert_eq!(id.path(), "/ns/foo/sa/web");
    assert_eq!(id.istio_parts(), Some(("foo", "web")));
    assert_eq!(serde_json::to_string(&id).unwrap(), "\"spiffe://cluster.local/ns/foo/sa/web\"");
    let domain = SpiffeId::parse("spiffe://a_b..1").unwrap();
    assert_eq!((domain.trust_domain(), domain.path(), domain.istio_parts()), ("a_b..1", "", None));
}

#[test]
fn every_other_spelling_is_refused() {
    use SpiffeIdError::*;
    let cases = [
        ("", Scheme),
        ("SPIFFE://td/a", Scheme),
        ("spiffe:/td/a", Scheme),
        ("https://td/a", Scheme),
        ("spiffe://", NoTrustDomain),
        ("spiffe:///a", NoTrustDomain),
        ("spiffe://Td/a", TrustDomainCharacter('T')),
        ("spiffe://td:8080/a", TrustDomainCharacter(':')),
        ("spiffe://me@td/a", TrustDomainCharacter('@')),
        ("spiffe://td?q", TrustDomainCharacter('?')),
        ("spiffe://td/", TrailingSlash),
        ("spiffe://td/a/", TrailingSlash),
        ("spiffe://td//a", EmptySegment),
        ("spiffe://td/./a", DotSegment),
        ("spiffe://td/a/..", DotSegment),
        ("spiffe://td/a%20b", PathCharacter('%')),
        ("spiffe://td/a?b", PathCharacter('?')),
        ("spiffe://td/a#b", PathCharacter('#')),
        ("spiffe://td/é", PathCharacter('é')),
        ("spiffe://td/a\0", PathCharacter('\0')),
    ];
    for (text, why) in cases {
        assert_eq!(SpiffeId::parse(text), Err(why), "{text:?}");
    }
    assert!(SpiffeId::parse("spiffe://td/.../.x/A-b_c").is_ok());
}

#[test]
fn lengths_end_where_the_standard_ends() {
    let id = |n: usize| format!("spiffe://td/{}", "a".repeat(n - "spiffe://td/".len()));
    assert!(SpiffeId::parse(&id(2048)).is_ok());
    assert_eq!(SpiffeId::parse(&id(2049)), Err(SpiffeIdError::TooLong));
    assert!(TrustDomain::parse(&"a".repeat(255)).is_ok());
    assert_eq!(TrustDomain::parse(&"a".repeat(256)), Err(SpiffeIdError::TrustDomainTooLong));
}

#[test]
fn a_field_cannot_add_segments_to_an_istio_identity() {
    let domain = TrustDomain::parse("cluster.local").unwrap();
    let id = SpiffeId::istio(&domain, "foo", "web").unwrap();
    assert_eq!(id.as_str(), "spiffe://cluster.local/ns/foo/sa/web");
    for (namespace, account) in
        [("a/sa/admin", "b"), ("", "b"), ("a", "b/c"), ("a", ".."), ("a", "")]
    {
        let refused = SpiffeId::istio(&domain, namespace, account);
        assert!(matches!(refused, Err(SpiffeIdError::Name { .. })), "{namespace} {account}");
    }
}

#[test]
fn only_five_segments_are_an_istio_identity() {
    for text in ["spiffe://td/ns/a/sa", "spiffe://td/ns/a/sa/b/c", "spiffe://td/ns/a/x/b"] {
        assert_eq!(SpiffeId::parse(text).unwrap().istio_parts(), None, "{text}");
    }
}

#[test]
fn an_alias_changes_the_trust_domain_only() {
    let id = SpiffeId::parse("spiffe://old/ns/a/sa/b").unwrap();
    let new = id.with_trust_domain(&TrustDomain::parse("new.example").unwrap()).unwrap();
    assert_eq!(new.as_str(), "spiffe://new.example/ns/a/sa/b");
}

#[test]
fn an_at_sign_in_a_configured_trust_domain_is_a_dot() {
    let name = "kube@proj.iam.example";
    assert_eq!(TrustDomain::configured(name).unwrap().as_str(), "kube.proj.iam.example");
    assert_eq!(TrustDomain::parse(name), Err(SpiffeIdError::TrustDomainCharacter('@')));
}

#[test]
fn parts_make_an_id_and_none_can_add_another() {
    let domain = TrustDomain::parse("td").unwrap();
    let path = |path| SpiffeId::from_path(&domain, path);
    assert_eq!(path("").unwrap().as_str(), "spiffe://td");
    assert_eq!(path("/a/b").unwrap().as_str(), "spiffe://td/a/b");
    assert_eq!(path("a"), Err(SpiffeIdError::LeadingSlash));
    assert_eq!(path("/"), Err(SpiffeIdError::TrailingSlash));
    let segments =
        |segments: &[&'static str]| SpiffeId::from_segments(&domain, segments.iter().copied());
    assert_eq!(segments(&[]).unwrap().as_str(), "spiffe://td");
    assert_eq!(segments(&["a", "b"]).unwrap(), path("/a/b").unwrap());
    for segment in ["", ".", "..", "a/b", "/a", "a/", "%2f", "é"] {
        assert!(matches!(segments(&["a", segment]), Err(SpiffeIdError::Name { .. })), "{segment}");
    }
}

#[test]
fn a_member_is_of_exactly_this_trust_domain() {
    let domain = TrustDomain::parse("td").unwrap();
    let is_member = |id| SpiffeId::parse(id).unwrap().is_member_of(&domain);
    assert!(is_member("spiffe://td") && is_member("spiffe://td/a"));
    assert!(!is_member("spiffe://td.example/a") && !is_member("spiffe://t/td"));
}

/// Istio's parser is looser than ours, and nothing that ours takes is read in another way by it.
#[test]
fn istios_own_parser_is_looser() {
    let parse = |id| IstioIdentity::parse(id).map(|it| (it.namespace, it.service_account));
    assert_eq!(parse("spiffe://td/ns/a/sa/b"), Some(("a", "b")));
    assert_eq!(parse("spiffe://td/ns//sa/"), Some(("", "")));
    assert_eq!(parse("spiffe://T%d/ns/a b/sa/c"), Some(("a b", "c")));
    for id in
        ["td/ns/a/sa/b", "spiffe://td/ns/a/sa", "spiffe://td/ns/a/sa/b/", "spiffe://ns/a/sa/b"]
    {
        assert_eq!(parse(id), None, "{id}");
    }
    assert!(SpiffeId::parse("spiffe://td/ns//sa/b").is_err());
}

#[test]
fn names_are_expanded_by_aliases_if_they_are_of_istios_form() {
    let aliases = ["old.example", "older.example"].map(|name| TrustDomain::parse(name).unwrap());
    let expanded =
        istio::expand(["spiffe://td/ns/a/sa/b", "spiffe://td/other", "web.example"], &aliases);
    let expected = [
        "spiffe://old.example/ns/a/sa/b",
        "spiffe://older.example/ns/a/sa/b",
        "spiffe://td/ns/a/sa/b",
        "spiffe://td/other",
        "web.example",
    ];
    assert_eq!(expanded.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    assert_eq!(istio::expand(["spiffe://td/ns/a/sa/b"], &[]).len(), 1);
}

proptest! {
    #[test]
    fn any_text_parses_or_is_refused_and_never_panics(text in "\\PC{0,64}") {
        if let Ok(id) = SpiffeId::parse(&text) {
            prop_assert_eq!(id.as_str(), text.as_str());
        }
        let _ = TrustDomain::parse(&text);
        let _ = TrustDomain::configured(&text);
    }

    #[test]
    fn what_parses_is_put_together_again_from_its_parts(
        text in "spiffe://[a-zA.\\-_0-9:@%]{0,12}(/[a-zA-Z.\\-_%]{0,4}){0,6}",
    ) {
        if let Ok(id) = SpiffeId::parse(&text) {
            prop_assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
            prop_assert!(TrustDomain::parse(id.trust_domain()).is_ok());
            prop_assert_eq!(id.istio_identity(), IstioIdentity::parse(id.as_str()));
            let segments = id.path().split('/').skip(1);
            let domain = TrustDomain::parse(id.trust_domain()).unwrap();
            prop_assert_eq!(SpiffeId::from_segments(&domain, segments).unwrap(), id.clone());
            if let Some((namespace, account)) = id.istio_parts() {
                let domain = TrustDomain::parse(id.trust_domain()).unwrap();
                prop_assert_eq!(SpiffeId::istio(&domain, namespace, account).unwrap(), id);
            }
        }
    }
}
