use super::*;

#[test]
fn whatever_might_be_taken_for_a_request_is_http() {
    let check = |bytes: &[u8], expected| {
        assert_eq!(spoken(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
    };
    for line in [
        "GET / HTTP/1.1\r\n",
        "\r\n\r\n\nGET / HTTP/1.0\n",
        " \tGET / HTTP/1.1\r\n",
        "G!T / HTTP/1.1\r\n",
        "G@T / http/1.1 \r\n",
        "GET\t/a b c\x01\tHTTP/1.7\r\n",
        "get /\u{e9} HTTP/1.1\r\n",
        "\x0b\x0cGET / HTTP/1.1\r\n",
        "GET / HTTP/2.0\r\n",
        "GET /\r\n",
        "get /admin\n",
        "GET /admin RTSP/1.0\r\n",
        "GET /admin HTTP/1.1 x\r\n",
    ] {
        check(line.as_bytes(), Spoken::Http1);
        // However it is cut into pieces, no piece makes it another protocol.
        for end in 0..line.len() - 1 {
            check(&line.as_bytes()[..end], Spoken::Unfinished);
        }
    }
    let method = format!("{} / HTTP/1.1\r\n", "A".repeat(1000));
    check(method.as_bytes(), Spoken::Http1);
    let long = format!("GET /{}", "a".repeat(LONGEST_LINE));
    check(&long.as_bytes()[..LONGEST_LINE], Spoken::Unfinished);
    check(long.as_bytes(), Spoken::Http1);
    check(PREFACE, Spoken::Http2);
    check(&PREFACE[..10], Spoken::Unfinished);
    check(b"PRI * HTTP/1.1\r\n", Spoken::Http1);
}

#[test]
fn other_protocols_are_told_by_their_first_bytes() {
    for bytes in [
        &b"*1\r\n$4\r\nPING\r\n"[..],
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"EHLO example.org\r\n",
        b"USER x\r\n",
        b"get key\r\n",
        b"GET key\r\n",
        b"DESCRIBE rtsp://a/b RTSP/1.0\r\n",
        b"INVITE sip:a@b SIP/2.0\r\n",
        &[0x16, 3, 1, 2, 0],
        &[0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f],
        b"AMQP\0\0\x09\x01",
        &[0x3a, 0, 0, 0],
        &[0x80, 1],
        "日本\n".as_bytes(),
    ] {
        assert_eq!(spoken(bytes), Spoken::Other, "{:?}", String::from_utf8_lossy(bytes));
    }
    let blob = vec![b'A'; LONGEST_LINE + 1];
    assert_eq!(spoken(&blob), Spoken::Other);
    let command = [&b"SET key "[..], &blob].concat();
    assert_eq!(spoken(&command), Spoken::Other);
    assert_eq!(is_http(b""), None);
    assert_eq!(is_http(b"GET"), None);
}

#[test]
fn only_usual_requests_are_waited_for() {
    for bytes in [&b"G"[..], b"GET", b"GET /a", b"\r\nPOS", b"PRI * H", b"OPTIONS *"] {
        assert!(begins_usually(bytes), "{:?}", String::from_utf8_lossy(bytes));
    }
    for bytes in [&b""[..], b"\r\n", b"hello", b"GETS", b"PING", b"SET a", b"\x16\x03"] {
        assert!(!begins_usually(bytes), "{:?}", String::from_utf8_lossy(bytes));
    }
}
