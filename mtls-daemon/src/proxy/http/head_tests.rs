use super::*;

#[test]
fn a_head_says_how_its_body_ends_and_whether_it_switches() {
    let head = |text: &str| check(text.as_bytes());
    let plain = |framing| Ok(Head { framing, switches: false });
    let none = Framing::Length(0);
    assert_eq!(head("GET /a?b HTTP/1.1\r\nHost: a\r\n\r\n"), plain(none));
    assert_eq!(head("GET / HTTP/1.0\r\n\r\n"), plain(none));
    assert_eq!(head("GET http://A:80/ HTTP/1.1\r\nhost: a:80\r\n\r\n"), plain(none));
    assert_eq!(head("OPTIONS * HTTP/1.1\r\nHost:\r\n\r\n"), plain(none));
    let length = "POST / HTTP/1.1\r\nHost: [::1]:80\r\ncontent-LENGTH: \t007 \r\n\r\n";
    assert_eq!(head(length), plain(Framing::Length(7)));
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n";
    assert_eq!(head(chunked), plain(Framing::Chunked));
    let switching = Ok(Head { framing: none, switches: true });
    assert_eq!(head("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n"), switching);
    assert_eq!(head("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n"), switching);
    let old = "GET / HTTP/1.0\r\nUpgrade: x\r\n\r\n";
    assert_eq!(head(old), plain(none), "HTTP/1.0 knows no upgrades");
}

#[test]
fn a_head_ends_where_it_ends_in_whatever_pieces_it_comes() {
    let bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET";
    let mut scanned = 0;
    for length in 0..bytes.len() - 3 {
        assert_eq!(end(&bytes[..length], &mut scanned), Ok(None), "{length}");
    }
    assert_eq!(end(bytes, &mut scanned), Ok(Some(bytes.len() - 3)));
    assert!(end(b"GET / HTTP/1.1\n", &mut 0).is_err());
    assert_eq!(end(&vec![b'a'; MAX_HEAD + 1], &mut 0), Err(Refusal::TOO_LARGE));
}
