use proptest::prelude::*;
use serde_json::Value;

use super::*;

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

/// Cases collected from other implementations, when a folder of them is given.
#[test]
fn other_implementations_cases_agree() {
    let Some(folder) = std::env::var_os("MTLS_CONFORMANCE") else {
        eprintln!("MTLS_CONFORMANCE is not set: 0 rows");
        return;
    };
    let read = |file: &str| -> Vec<Value> {
        let path = std::path::Path::new(&folder).join(file);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        serde_json::from_str::<Value>(&text).unwrap()["cases"].as_array().unwrap().clone()
    };
    let mut rows = 0;
    for row in read("spiffe-id.json") {
        let input = row["input"].as_str().unwrap();
        let parsed = SpiffeId::parse(input);
        rows += 1;
        if row.get("disputed").is_some() {
            // Ours: upper case and more than 2048 bytes are refused.
            assert!(parsed.is_err(), "{}", row["name"]);
            continue;
        }
        assert_eq!(parsed.is_ok(), row["valid"].as_bool().unwrap(), "{}", row["name"]);
        if let Ok(id) = parsed {
            assert_eq!(id.trust_domain(), row["trust_domain"].as_str().unwrap());
            assert_eq!(id.path(), row["path"].as_str().unwrap());
        }
    }
    for row in read("spiffe-trustdomain.json") {
        // These rows also take a whole ID where a name is meant.
        let input = row["input"].as_str().unwrap();
        let parsed = match input.contains(":/") {
            true => SpiffeId::parse(input).map(|id| id.trust_domain().to_owned()),
            false => TrustDomain::parse(input).map(|domain| domain.as_str().to_owned()),
        };
        rows += 1;
        let valid = row["valid"].as_bool().unwrap();
        assert_eq!(parsed.is_ok(), valid, "{}", row["name"]);
        if let Ok(domain) = parsed {
            assert_eq!(domain, row["trust_domain"].as_str().unwrap(), "{}", row["name"]);
        }
    }
    for row in read("istio-identity.json") {
        rows += istio_row(&row);
    }
    eprintln!("{rows} rows");
}

fn istio_row(row: &Value) -> usize {
    let text = |key: &str| row[key].as_str().unwrap();
    let list = |key: &str| -> Vec<&str> {
        row[key].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
    };
    match text("op") {
        "parse_identity" => {
            let id = SpiffeId::parse(text("input")).ok();
            let parts = id.as_ref().and_then(|id| id.istio_parts());
            let expected = row["expected"].as_object().map(|expected| {
                (
                    expected["namespace"].as_str().unwrap(),
                    expected["service_account"].as_str().unwrap(),
                )
            });
            assert_eq!(parts, expected, "{}", row["name"]);
        }
        "gen_uri" => {
            let domain = TrustDomain::configured(text("trust_domain")).unwrap();
            let id = SpiffeId::istio(&domain, text("namespace"), text("service_account")).unwrap();
            assert_eq!(id.as_str(), text("expected"), "{}", row["name"]);
        }
        "expand_san" => {
            let mut ids: Vec<SpiffeId> = Vec::new();
            for san in list("san") {
                let id = SpiffeId::parse(san).unwrap();
                for domain in list("trust_domains") {
                    if id.istio_parts().is_some() {
                        let domain = TrustDomain::configured(domain).unwrap();
                        ids.push(id.with_trust_domain(&domain).unwrap());
                    }
                }
                ids.push(id);
            }
            ids.sort();
            let got: Vec<&str> = ids.iter().map(SpiffeId::as_str).collect();
            assert_eq!(got, list("expected"), "{}", row["name"]);
        }
        op => panic!("a row of an unknown kind: {op}"),
    }
    1
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
            if let Some((namespace, account)) = id.istio_parts() {
                let domain = TrustDomain::parse(id.trust_domain()).unwrap();
                prop_assert_eq!(SpiffeId::istio(&domain, namespace, account).unwrap(), id);
            }
        }
    }
}
