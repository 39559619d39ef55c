use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn directory() -> (tempfile::TempDir, StateDir) {
    let place = tempfile::tempdir().unwrap();
    let directory = StateDir::open(&place.path().join("ca")).unwrap();
    (place, directory)
}

fn made(directory: &StateDir) -> (String, Zeroizing<String>) {
    let web = SpiffeId::parse("spiffe://cluster.local/ns/foo/sa/web").unwrap();
    create(directory, NodeName::parse("vm-1").unwrap(), [web], HOUR, SystemTime::now()).unwrap()
}

#[test]
fn a_token_is_good_once_and_only_its_hash_is_kept() {
    let (_place, directory) = directory();
    let (id, text) = made(&directory);
    let secret = text.rsplit_once('.').unwrap().1;
    let file = std::fs::read_to_string(directory.path(FILE)).unwrap();
    assert!(file.contains(&id) && !file.contains(secret));

    let now = SystemTime::now();
    let (found, token) = check(&directory, &text, now).unwrap().unwrap();
    assert_eq!((found.as_str(), token.node.as_str()), (id.as_str(), "vm-1"));
    assert!(check(&directory, &text, now).unwrap().is_ok(), "looking does not use it up");
    let turn = directory.turn().unwrap();
    let by = |spki| use_up(&turn, &id, Use { spki, serial: "1" }, now, |_| Ok(())).unwrap();
    assert_eq!(by(b"ours"), Ok(UsedUp::First));
    assert_eq!(by(b"another's"), Err(TokenError::Used(id.clone())));
    let state = |now| directory.read::<Tokens>(FILE).unwrap().0[&id].state(now);
    assert_eq!((state(now), state(now + HOUR)), ("used", "used"));
}

#[test]
fn the_key_that_used_a_token_may_ask_again_for_a_while() {
    let (_place, directory) = directory();
    let (id, text) = made(&directory);
    let now = SystemTime::now();
    let at = |seconds| now + Duration::from_secs(seconds);
    let again = |spki: &[u8], serial, now| {
        let turn = directory.turn().unwrap();
        use_up(&turn, &id, Use { spki, serial }, now, |_| panic!("that was done")).unwrap()
    };
    let turn = directory.turn().unwrap();
    let first = Use { spki: b"ours", serial: "1" };
    // What cannot be done spends nothing.
    let fault = || CaError::Sign("the disk is full".to_owned());
    assert!(use_up(&turn, &id, first, now, |_| Err(fault())).is_err());
    assert_eq!(use_up(&turn, &id, first, now, |_| Ok(())).unwrap(), Ok(UsedUp::First));
    drop(turn);
    assert!(check(&directory, &text, at(899)).unwrap().is_ok());
    let serials = |named: &[&str]| named.iter().map(|it| (*it).to_owned()).collect();
    assert_eq!(again(b"ours", "2", at(1)), Ok(UsedUp::Again { serials: serials(&["1"]) }));
    // By a clock that was put back.
    let before = again(b"ours", "3", now - Duration::from_secs(899));
    assert_eq!(before, Ok(UsedUp::Again { serials: serials(&["1", "2"]) }));
    let used = Err(TokenError::Used(id.clone()));
    assert_eq!(again(b"another's", "4", at(1)), used);
    for late in [at(900), now - Duration::from_secs(900)] {
        assert_eq!(again(b"ours", "4", late), used);
        assert_eq!(check(&directory, &text, late).unwrap().map(|_| ()), used.clone().map(|_| ()));
    }
    for _ in 3..ANSWERS {
        assert!(again(b"ours", "4", at(2)).is_ok());
    }
    assert_eq!(again(b"ours", "5", at(2)), used, "that is no lost answer");
}

#[test]
fn a_wrong_secret_for_a_used_token_counts() {
    let (_place, directory) = directory();
    let (id, text) = made(&directory);
    let (now, used) = (SystemTime::now(), Use { spki: b"ours", serial: "1" });
    let turn = directory.turn().unwrap();
    use_up(&turn, &id, used, now, |_| Ok(())).unwrap().unwrap();
    drop(turn);
    let wrong = format!("{PREFIX}{id}.{}", "0".repeat(64));
    for _ in 0..ATTEMPTS {
        let error = check(&directory, &wrong, now).unwrap().unwrap_err();
        assert_eq!(error, TokenError::Secret(id.clone()));
    }
    assert_eq!(check(&directory, &text, now).unwrap().unwrap_err(), TokenError::Void(id));
}

#[test]
fn a_token_expires() {
    let (_place, directory) = directory();
    let (id, text) = made(&directory);
    let late = SystemTime::now() + HOUR;
    assert_eq!(check(&directory, &text, late).unwrap().unwrap_err(), TokenError::Expired(id));
}

#[test]
fn wrong_secrets_make_a_token_void() {
    let (_place, directory) = directory();
    let (id, text) = made(&directory);
    let wrong = format!("{PREFIX}{id}.{}", "0".repeat(64));
    let now = SystemTime::now();
    for _ in 0..ATTEMPTS {
        let error = check(&directory, &wrong, now).unwrap().unwrap_err();
        assert_eq!(error, TokenError::Secret(id.clone()));
    }
    assert_eq!(check(&directory, &text, now).unwrap().unwrap_err(), TokenError::Void(id));
}

#[test]
fn a_token_that_was_taken_back_is_unknown() {
    let (_place, directory) = directory();
    let (id, text) = made(&directory);
    assert!(revoke(&directory, &id).unwrap());
    assert!(!revoke(&directory, &id).unwrap());
    let error = check(&directory, &text, SystemTime::now()).unwrap().unwrap_err();
    assert_eq!(error, TokenError::Unknown(id));
}

#[test]
fn what_has_no_tokens_form_is_refused() {
    let (_place, directory) = directory();
    for text in ["", "mtls-join.", "mtls-join.abc", "mtls-join.a b.c", "eyJ.eyJ.x"] {
        let found = check(&directory, text, SystemTime::now()).unwrap().unwrap_err();
        assert!(matches!(found, TokenError::Form), "{text}");
    }
    let long = format!("mtls-join.{}.x", "a".repeat(1000));
    assert!(matches!(check(&directory, &long, SystemTime::now()).unwrap(), Err(TokenError::Form)));
}

#[test]
fn an_invented_name_does_not_wait_for_the_lock() {
    let (_place, directory) = directory();
    let (id, _) = made(&directory);
    let _turn = directory.turn().unwrap();
    let text = format!("{PREFIX}0123456789ab.00");
    let found = check(&directory, &text, SystemTime::now()).unwrap().unwrap_err();
    assert_eq!(found, TokenError::Unknown("0123456789ab".to_owned()));
    assert_ne!(id, "0123456789ab");
}
