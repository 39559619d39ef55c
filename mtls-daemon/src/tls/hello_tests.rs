use proptest::prelude::*;

use super::*;

/// A ClientHello made here, byte by byte: one record, or `records` of about the same size.
fn hello(alpn: &[&[u8]], sni: Option<&str>, padding: usize, records: usize) -> Vec<u8> {
    let vector16 = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
    let extension = |kind: u16, value: &[u8]| [&kind.to_be_bytes()[..], &vector16(value)].concat();
    let mut extensions = extension(51, &vec![7; padding]);
    if !alpn.is_empty() {
        let names: Vec<u8> =
            alpn.iter().flat_map(|name| [&[name.len() as u8][..], name].concat()).collect();
        extensions.extend(extension(EXTENSION_ALPN, &vector16(&names)));
    }
    if let Some(name) = sni {
        let entry = [&[0][..], &vector16(name.as_bytes())].concat();
        extensions.extend(extension(EXTENSION_SERVER_NAME, &vector16(&entry)));
    }
    let mut body = vec![3, 3];
    body.extend([9; 32]);
    body.extend([0]);
    body.extend(vector16(&[0x13, 0x01, 0x13, 0x02]));
    body.extend([1, 0]);
    body.extend(vector16(&extensions));
    let mut message = vec![CLIENT_HELLO];
    message.extend(&(body.len() as u32).to_be_bytes()[1..]);
    message.extend(body);
    let step = message.len().div_ceil(records);
    message
        .chunks(step)
        .flat_map(|piece| [&[HANDSHAKE, 3, 1][..], &vector16(piece)].concat())
        .collect()
}

/// Feeds `bytes` in pieces of `step`; the verdict and how many bytes it took.
fn feed(bytes: &[u8], step: usize) -> (Seen, usize) {
    let mut scan = Scan::default();
    let mut end = 0;
    loop {
        let seen = scan.look(&bytes[..end]);
        if seen != Seen::Incomplete || end == bytes.len() {
            return (seen, end);
        }
        end = (end + step).min(bytes.len());
    }
}

/// What `openssl s_client -alpn istio -servername httpbin.foo` of OpenSSL 3.0 sends.
const OPENSSL: &str = concat!(
    "16030101440100014003032654103fdbdb8b061cc7a8fce78c45be4d02b2f118be55a9287ec531d71c69df20b1dc",
    "aaf07474d4234752103883cf0d1afc0100964298c20a1149e5dedeaaf145003e130213031301c02cc030009fcca9",
    "cca8ccaac02bc02f009ec024c028006bc023c0270067c00ac0140039c009c0130033009d009c003d003c0035002f",
    "00ff010000b900000010000e00000b6874747062696e2e666f6f000b000403000102000a00160014001d0017001e",
    "00190018010001010102010301040023000000100008000605697374696f0016000000170000000d002a00280403",
    "05030603080708080809080a080b080408050806040105010601030303010302040205020602002b000908030403",
    "0303020301002d00020101003300260024001d0020a6f6a718be7b59ae68a5ebe628b675a26aef72ecdda27d12f4",
    "d7d7225012f059",
);

#[test]
fn openssls_hello_is_read() {
    let digits = |at: usize| u8::from_str_radix(&OPENSSL[at..at + 2], 16).unwrap();
    let bytes: Vec<u8> = (0..OPENSSL.len()).step_by(2).map(digits).collect();
    let expected = Hello { alpn: mesh(), sni: Some("httpbin.foo".to_owned()) };
    assert_eq!(feed(&bytes, 100), (Seen::Hello(expected), bytes.len()));
}

#[test]
fn every_mesh_protocol_is_seen_wherever_it_stands_in_the_list() {
    for name in MESH_ALPN {
        let Seen::Hello(found) = feed(&hello(&[b"h2", name], Some("a.b"), 9, 1), 9999).0 else {
            panic!("no hello with {name:?}");
        };
        assert_eq!((found.alpn.mesh, found.sni.as_deref()), (true, Some("a.b")));
    }
}

/// `istio` and nothing of HTTP.
fn mesh() -> Alpn {
    Alpn { mesh: true, http: None, answer: None }
}

#[test]
fn http_inside_is_announced_and_answered_only_by_a_name_that_was_offered() {
    let check = |names: &[&[u8]], http, answer| {
        let Seen::Hello(found) = feed(&hello(names, None, 0, 1), 9999).0 else {
            panic!("no hello with {names:?}");
        };
        assert_eq!((found.alpn.http, found.alpn.answer), (http, answer), "{names:?}");
    };
    let (one, two) = (Some(Http::One), Some(Http::Two));
    // What Istio's sidecars offer for HTTP/1.1, HTTP/2, HTTP/1.0 and TCP (policy.md 3.2).
    check(&[b"istio-http/1.1", b"istio", b"http/1.1"], one, one);
    check(&[b"istio-h2", b"istio", b"h2"], two, two);
    check(&[b"istio-http/1.0", b"istio", b"http/1.0"], one, None);
    check(&[b"istio-peer-exchange", b"istio"], None, None);
    check(&[b"istio-h2"], two, None);
    check(&[b"istio", b"h2", b"http/1.1"], None, None);
    check(&[b"h2", b"http/1.1"], None, None);
}

#[test]
fn other_clients_are_tls_but_not_mesh() {
    for names in [&[b"h2" as &[u8], b"http/1.1"][..], &[], &[b"istio2"], &[b"xistio"]] {
        let expected = Hello::default();
        assert_eq!(feed(&hello(names, None, 0, 1), 9999).0, Seen::Hello(expected), "{names:?}");
    }
}

#[test]
fn a_hello_in_many_segments_and_records_is_one_hello() {
    for records in [1, 2, 3, 40] {
        for step in [1, 2, 5, 700, 9999] {
            let bytes = hello(&[b"istio"], Some("web.full"), 1700, records);
            let (seen, used) = feed(&bytes, step);
            let expected = Hello { alpn: mesh(), sni: Some("web.full".to_owned()) };
            assert_eq!(seen, Seen::Hello(expected), "{records} records, {step} at a time");
            assert_eq!(used, bytes.len());
        }
    }
}

#[test]
fn what_cannot_be_a_hello_is_known_at_its_first_wrong_byte() {
    let cases: [(&[u8], usize); 8] = [
        (b"GET / HTTP/1.1\r\n", 1),
        (b"\x16GET", 2),
        (b"\x16\x03\x09", 3),
        (b"\x16\x03\x01\x00\x00", 5),
        (b"\x16\x03\x01\xff\xff", 5),
        (b"\x16\x03\x01\x02\x00\x02", 6),
        (b"\x16\x03\x01\x02\x00\x01\x01", 7),
        (b"\x17\x03\x03\x00\x10", 1),
    ];
    for (bytes, at) in cases {
        assert_eq!(feed(bytes, 1), (Seen::NotTls, at), "{bytes:?}");
    }
}

#[test]
fn a_hello_broken_inside_is_none() {
    let whole = hello(&[b"istio"], Some("a"), 20, 1);
    let mut odd_suites = whole.clone();
    odd_suites[5 + 4 + 35 + 1] = 3;
    assert_eq!(feed(&odd_suites, 9999).0, Seen::NotTls);
    let mut long_extension = whole.clone();
    let first_extension = 5 + 4 + 35 + 6 + 2 + 2;
    long_extension[first_extension + 2] = 0xff;
    assert_eq!(feed(&long_extension, 9999).0, Seen::NotTls);
}

#[test]
fn reading_is_bounded() {
    // A hello said to be 60 KiB that comes in records of one byte never ends before the bound.
    let mut bytes =
        b"\x16\x03\x01\x00\x01\x01\x16\x03\x01\x00\x01\x00\x16\x03\x01\x00\x01\xf0".to_vec();
    while bytes.len() <= MAX_HELLO {
        bytes.extend(b"\x16\x03\x01\x00\x01\x07");
    }
    let mut scan = Scan::default();
    assert_eq!(scan.look(&bytes[..600]), Seen::Incomplete);
    bytes.extend(b"\x16");
    assert_eq!(scan.look(&bytes), Seen::NotTls);
}

proptest! {
    #[test]
    fn any_bytes_get_a_verdict_and_none_panics(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        step in 1usize..50,
    ) {
        let _ = feed(&bytes, step);
        let _ = feed(&[b"\x16\x03\x01\x00\x80\x01\x00\x00\x7c\x03\x03", &bytes[..]].concat(), step);
    }

    #[test]
    fn how_the_bytes_are_cut_changes_nothing(
        records in 1usize..8,
        step in 1usize..400,
        padding in 0usize..2000,
        flip in proptest::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let mut bytes = hello(&[b"h2", b"istio"], Some("x.y"), padding, records);
        if let Some((at, value)) = flip {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        prop_assert_eq!(feed(&bytes, step).0, feed(&bytes, usize::MAX / 4).0);
    }
}
