//! What strangers send, read by whoever decides whether to believe them: join tokens, and an API server's
//! answers. Whatever it is, nobody is believed who should not be.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::Value as Json;

use super::*;
use crate::ca::authenticate::token_review::{
    AUDIENCE, Account, PodReference, ReviewError, account,
};
use crate::ca::state::StateDir;
use crate::ca::token::{self, PREFIX, TokenError};
use crate::identity::NodeName;

const GROUP: &str = "system:serviceaccounts";
const USER: &str = "system:serviceaccount:";

fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        "\\PC{0,12}".prop_map(Json::from),
        Just(Json::from(GROUP)),
        Just(Json::from("system:serviceaccount:shop:web")),
    ];
    // The names that mean something, and others.
    let name = prop_oneof![
        Just("status".to_owned()),
        Just("authenticated".to_owned()),
        Just("user".to_owned()),
        Just("username".to_owned()),
        Just("groups".to_owned()),
        Just("error".to_owned()),
        Just("audiences".to_owned()),
        "[a-z]{1,4}",
    ];
    leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Json::from),
            btree_map(name.clone(), inner, 0..6).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

/// What could make another answer of a good one.
fn telling_json() -> impl Strategy<Value = Json> {
    prop::sample::select(vec![
        json!(false),
        json!("boom"),
        json!([]),
        json!(["vault"]),
        json!(["system:authenticated"]),
        json!("system:serviceaccount:a:b:c"),
        json!("system:serviceaccount::web"),
        json!("system:serviceaccount:shop:"),
        json!("system:node:n1"),
        json!({}),
    ])
}

fn good(namespace: &str, name: &str) -> Json {
    json!({ "status": {
        "error": "",
        "authenticated": true,
        "user": {
            "username": format!("{USER}{namespace}:{name}"),
            "groups": ["system:authenticated", GROUP],
            "extra": {
                "authentication.kubernetes.io/pod-name": [format!("{name}-0")],
                "authentication.kubernetes.io/pod-uid": ["uid"],
            },
        },
        "audiences": [AUDIENCE],
    }})
}

/// Everything that must hold of an answer that names `found`.
fn vouches(review: &Json, found: &Account) -> bool {
    let status = &review["status"];
    let has = |list: &Json, what: &str| list.as_array().is_some_and(|it| it.contains(&what.into()));
    let user = &status["user"];
    status["authenticated"] == true
        && status["error"].as_str().unwrap_or_default().is_empty()
        && (status["audiences"].is_null() || has(&status["audiences"], AUDIENCE))
        && has(&user["groups"], GROUP)
        && user["username"] == format!("{USER}{}:{}", found.namespace, found.name)
        && [&found.namespace, &found.name].iter().all(|it| !it.is_empty() && !it.contains(':'))
}

fn directory() -> (tempfile::TempDir, StateDir) {
    let place = tempfile::tempdir().unwrap();
    let directory = StateDir::open(&place.path().join("ca")).unwrap();
    (place, directory)
}

fn made(directory: &StateDir) -> (String, String) {
    let node = NodeName::parse("vm-1").unwrap();
    let web = id("spiffe://cluster.local/ns/foo/sa/web");
    let hour = Duration::from_secs(3600);
    let (id, text) = token::create(directory, node, [web], hour, SystemTime::now()).unwrap();
    (id, text.to_string())
}

fn check(directory: &StateDir, text: &str) -> Result<String, TokenError> {
    token::check(directory, text, SystemTime::now()).unwrap().map(|(id, _)| id)
}

#[test]
fn a_list_is_no_object_whatever_its_items_say() {
    let good = good("shop", "web");
    let user = json!([format!("{USER}shop:web"), [GROUP], {}]);
    let status = json!(["", true, user, [AUDIENCE]]);
    for (place, value) in [("/status/user", user.clone()), ("/status", status.clone())] {
        let mut spoilt = good.clone();
        *spoilt.pointer_mut(place).unwrap() = value;
        let found = account(&spoilt, AUDIENCE);
        assert!(matches!(found, Err(ReviewError::Unreadable(_))), "{place}: {found:?}");
    }
    assert!(account(&json!([status]), AUDIENCE).is_err());
}

proptest! {
    #[test]
    fn an_answer_of_any_shape_names_nobody_whom_it_does_not_vouch_for(review in any_json()) {
        if let Ok(found) = account(&review, AUDIENCE) {
            prop_assert!(vouches(&review, &found), "{review}: {found:?}");
        }
    }

    #[test]
    fn a_good_answer_names_its_account_and_a_spoilt_one_nobody_else(
        namespace in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?",
        name in "[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?",
        place in prop::sample::select(&[
            "/status",
            "/status/error",
            "/status/authenticated",
            "/status/audiences",
            "/status/user",
            "/status/user/username",
            "/status/user/groups",
            "/status/user/extra",
        ][..]),
        value in prop_oneof![any_json(), telling_json()],
    ) {
        let review = good(&namespace, &name);
        let pod = Some(PodReference { name: format!("{name}-0"), uid: "uid".to_owned() });
        let own = Account { namespace, name, pod };
        prop_assert_eq!(account(&review, AUDIENCE), Ok(own));

        let mut spoilt = review;
        *spoilt.pointer_mut(place).unwrap() = value;
        if let Ok(found) = account(&spoilt, AUDIENCE) {
            prop_assert!(vouches(&spoilt, &found), "{spoilt}: {found:?}");
        }
    }
}

proptest! {
    // Each makes files.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_text_that_nobody_made_is_no_token_and_costs_no_token_an_attempt(
        texts in vec(prop_oneof![
            ".{0,80}",
            "mtls-join\\.[a-z0-9]{0,60}",
            "mtls-join\\.[a-z0-9]{0,60}\\.[a-z0-9]{0,80}",
            "mtls-join\\.[a-z0-9/.\u{e9}-]{0,40}\\.[a-z0-9.]{0,80}",
        ], 1..20),
    ) {
        let (_place, directory) = directory();
        let (id, good) = made(&directory);
        let kept = std::fs::read(directory.path(token::FILE)).unwrap();
        for text in &texts {
            match check(&directory, text) {
                Err(TokenError::Form) => {}
                // What goes into a log is short, and plain.
                Err(TokenError::Unknown(named)) => {
                    prop_assert!(named.len() <= 32 && named != id, "{text:?}");
                    prop_assert!(named.bytes().all(|it| it.is_ascii_alphanumeric()), "{text:?}");
                    let prefix = format!("{PREFIX}{named}.");
                    prop_assert!(text.starts_with(&prefix));
                }
                other => prop_assert!(false, "{text:?}: {other:?}"),
            }
        }
        prop_assert_eq!(std::fs::read(directory.path(token::FILE)).unwrap(), kept);
        prop_assert_eq!(check(&directory, &good), Ok(id));
    }

    #[test]
    fn a_token_with_anything_else_in_it_is_not_that_token(
        // The ends above all.
        at in prop_oneof![Just(0), Just(usize::MAX), 0..96_usize],
        other in prop_oneof![any::<char>(), Just(' '), Just('\n'), Just('\0')],
        instead in any::<bool>(),
    ) {
        let (_place, directory) = directory();
        let (id, good) = made(&directory);
        let at = at.min(good.len() - usize::from(instead));
        let mut text = good.clone();
        text.replace_range(at..at + usize::from(instead), &other.to_string());
        prop_assume!(text != good);
        let found = check(&directory, &text);
        prop_assert!(found.is_err(), "{text:?} passes for {good:?}");
        prop_assert_eq!(check(&directory, &good), Ok(id));
    }
}
