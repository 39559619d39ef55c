use std::borrow::Cow;

use proptest::prelude::*;

use super::Normalisation::{Base, DecodeAndMergeSlashes, MergeSlashes};
use super::{BadPath, Normalisation, normalise};

fn check(how: Normalisation, rows: &[(&str, &str)]) {
    for (path, expected) in rows {
        assert_eq!(normalise(path, how).as_deref(), Ok(*expected), "{path} {how:?}");
    }
}

#[test]
fn rule_4_6_base_resolves_dots_and_unescapes_what_needs_no_escape() {
    check(
        Base,
        &[
            ("/", "/"),
            ("/a/b?x=/../y", "/a/b?x=/../y"),
            ("/a/../b", "/b"),
            ("/a/./b", "/a/b"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/..", "/"),
            ("/../../etc", "/etc"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e/b?%2e%2e", "/b?%2e%2e"),
            ("/%61dmin/%7Euser", "/admin/~user"),
            ("\\da", "/da"),
            ("/a\\..\\b", "/b"),
            ("/a//b", "/a//b"),
            ("/a//../b", "/a/b"),
            ("/a%2Fb%5cc", "/a%2Fb%5cc"),
            ("/.hidden/...", "/.hidden/..."),
            ("/a%20b%C3%A9", "/a%20b%C3%A9"),
            ("/a/..;/b", "/a/..;/b"),
        ],
    );
}

#[test]
fn escapes_that_are_none_stay_and_hide_nothing() {
    check(
        Base,
        &[
            ("/100%", "/100%"),
            ("/%zz/%2", "/%zz/%2"),
            ("/a/%252e%252e/b", "/a/%252e%252e/b"),
            // What is left after one decoding would be a `..` for whoever decodes again.
            ("/a/%%32e%%32e/b", "/b"),
            ("/a/%2%65%2%65/b", "/b"),
        ],
    );
}

#[test]
fn slashes_merge_and_decode_only_where_asked() {
    check(
        MergeSlashes,
        &[("//a///b//", "/a/b/"), ("/a//../b", "/a/b"), ("/a%2Fb", "/a%2Fb"), ("/a\\\\b", "/a/b")],
    );
    check(
        DecodeAndMergeSlashes,
        &[
            ("/a%2fb", "/a/b"),
            ("/a%5C..%2Fb", "/b"),
            ("/a/%2E%2E%2F%2Fb", "/b"),
            ("/a%252Fb", "/a%252Fb"),
        ],
    );
}

#[test]
fn without_normalisation_and_without_segments_nothing_changes() {
    check(Normalisation::None, &[("/a/../b", "/a/../b"), ("/%41", "/%41")]);
    check(Base, &[("*", "*"), ("", ""), ("a/../b", "a/../b")]);
    assert!(matches!(normalise("/plain/path.txt?q", Base), Ok(Cow::Borrowed(_))));
}

#[test]
fn what_has_no_safe_form_is_refused() {
    for how in [Normalisation::None, Base, MergeSlashes, DecodeAndMergeSlashes] {
        for path in ["/a b", "/a\r\nX: y", "/a\0", "/\x7f", "/a?b c"] {
            assert_eq!(normalise(path, how), Err(BadPath::Control), "{path:?}");
        }
        assert_eq!(normalise("/a#b", how), Err(BadPath::Fragment));
        // Also where nothing is normalised: an application decodes it all the same.
        assert_eq!(normalise("/a%00b", how), Err(BadPath::Nul));
        assert_eq!(normalise("/a%00b?c", how), Err(BadPath::Nul));
        assert_eq!(normalise("a%00b", how), Err(BadPath::Nul));
    }
    assert_eq!(normalise("/a%%300b", Base), Err(BadPath::Nul));
    // Each level is spelled with the next: work that grows with the square of the length.
    let mut nested = "/%2e".to_owned();
    for _ in 0..10 {
        nested = nested.replace('2', "%32");
    }
    assert_eq!(normalise(&nested, Base), Err(BadPath::Nested));
}

fn levels() -> impl Strategy<Value = Normalisation> {
    prop_oneof![Just(Base), Just(MergeSlashes), Just(DecodeAndMergeSlashes)]
}

proptest! {
    #[test]
    fn a_normal_path_is_its_own_normal_form(
        path in r"(/|\\|\.|\.\.|%|2|e|E|f|F|5|c|6|[a-c]|%2e|%2F|%5c|\?){0,24}",
        how in levels(),
    ) {
        let path = format!("/{path}");
        if let Ok(normal) = normalise(&path, how) {
            let again = normalise(&normal, how);
            prop_assert_eq!(again.as_deref(), Ok(&*normal));
            let head = normal.split('?').next().unwrap_or_default();
            prop_assert!(head.starts_with('/'));
            prop_assert!(!head.contains('\\'));
            prop_assert!(!head.split('/').any(|segment| segment == "." || segment == ".."));
            if how != Base {
                prop_assert!(!head.contains("//"));
            }
        }
    }
}
