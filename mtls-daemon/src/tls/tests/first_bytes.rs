//! Looking at first bytes, and giving them back.

use super::*;
use crate::tls::hello::{Alpn, Hello};

#[tokio::test]
async fn first_bytes_are_looked_at_and_then_shaken_hands_with() {
    let ca = TestCa::new();
    let (client, server) = (ca.identity(CLIENT), ca.identity(SERVER));
    let (near, far) = pair().await;
    let expected = expecting(&[SERVER]);
    let serve = async {
        let mut far = Replay::new(far);
        let kind = first_bytes(&mut far).await.unwrap();
        let alpn = Alpn { mesh: true, http: None, answer: None };
        assert_eq!(kind, Kind::Tls(Hello { alpn, sni: Some(SNI.to_owned()) }));
        assert!(far.peeked().len() > 1200, "with a post-quantum key share");
        assert_eq!(first_bytes(&mut far).await.unwrap(), kind, "asked again, the same answer");
        accept(far, &server, None).await
    };
    let (connected, accepted) = tokio::join!(connect(near, &client, &expected, SNI), serve);
    assert!(connected.is_ok());
    assert_eq!(accepted.unwrap().1.id(), &id(CLIENT));
}

#[tokio::test]
async fn a_hello_that_comes_in_pieces_is_recognised_and_shaken_hands_with() {
    let ca = TestCa::new();
    let (client, server) = (ca.identity(CLIENT), ca.identity(SERVER));
    let (near, relay_near) = pair().await;
    let (mut relay_far, far) = pair().await;
    relay_far.set_nodelay(true).unwrap();
    // Passes the first 600 bytes one segment of 50 at a time.
    let relay = tokio::spawn(async move {
        let mut relay_near = relay_near;
        for _ in 0..12 {
            let mut piece = [0; 50];
            relay_near.read_exact(&mut piece).await.unwrap();
            relay_far.write_all(&piece).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        tokio::io::copy_bidirectional(&mut relay_near, &mut relay_far).await.ok();
    });
    let expected = expecting(&[SERVER]);
    let serve = async {
        let mut far = Replay::new(far);
        let kind = first_bytes(&mut far).await.unwrap();
        assert!(matches!(&kind, Kind::Tls(hello) if hello.alpn.mesh), "{kind:?}");
        accept(far, &server, None).await
    };
    let (connected, accepted) = tokio::join!(connect(near, &client, &expected, SNI), serve);
    assert!(connected.is_ok());
    assert_eq!(accepted.unwrap().1.id(), &id(CLIENT));
    relay.abort();
}

#[tokio::test]
async fn plaintext_is_given_back_whole() {
    for text in
        [&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], b"\x16\x03\x01\x00\x05\x02rest", b"\x16"]
    {
        let (mut near, far) = pair().await;
        let mut far = Replay::new(far);
        near.write_all(text).await.unwrap();
        near.shutdown().await.unwrap();
        assert_eq!(first_bytes(&mut far).await.unwrap(), Kind::NotTls);
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, text);
    }
    let (near, far) = pair().await;
    drop(near);
    assert_eq!(first_bytes(&mut Replay::new(far)).await.unwrap(), Kind::Closed);
}

#[tokio::test]
async fn a_timeout_while_looking_loses_nothing() {
    let (mut near, far) = tokio::io::duplex(64);
    let mut far = Replay::new(far);
    let look = Duration::from_millis(20);
    assert!(tokio::time::timeout(look, first_bytes(&mut far)).await.is_err());
    assert!(far.peeked().is_empty());
    near.write_all(b"\x16\x03\x01").await.unwrap();
    assert!(tokio::time::timeout(look, first_bytes(&mut far)).await.is_err());
    assert_eq!(far.peeked(), b"\x16\x03\x01");
    near.write_all(b"\x00\x40").await.unwrap();
    // Even a look that has no time at all keeps what it saw.
    let _ = tokio::time::timeout(Duration::ZERO, first_bytes(&mut far)).await;
    near.write_all(b" and so on").await.unwrap();
    near.shutdown().await.unwrap();
    let mut got = [0; 3];
    far.read_exact(&mut got).await.unwrap();
    let (mut stream, kept) = far.into_parts();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!([&got[..], &kept, &rest].concat(), b"\x16\x03\x01\x00\x40 and so on");
}

mod replay {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_byte_is_lost_or_doubled(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            tls_like in any::<bool>(),
            cuts in proptest::collection::vec(1usize..80, 1..12),
            reads in 1usize..64,
        ) {
            let bytes = match tls_like {
                true => [b"\x16\x03\x01\x01\x00\x01\x00\x00", &bytes[..]].concat(),
                false => bytes,
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let got = runtime.block_on(async {
                let (mut near, far) = tokio::io::duplex(37);
                let sent = bytes.clone();
                let send = async move {
                    let mut rest = &sent[..];
                    for cut in cuts.iter().cycle() {
                        if rest.is_empty() {
                            break;
                        }
                        let (piece, after) = rest.split_at(rest.len().min(*cut));
                        near.write_all(piece).await.unwrap();
                        tokio::task::yield_now().await;
                        rest = after;
                    }
                    near.shutdown().await.unwrap();
                };
                let receive = async {
                    let mut far = Replay::new(far);
                    let mut got = Vec::new();
                    let look = tokio::time::timeout(Duration::ZERO, first_bytes(&mut far)).await;
                    if look.is_err() {
                        let _ = first_bytes(&mut far).await.unwrap();
                    }
                    let mut piece = vec![0; reads];
                    loop {
                        let count = far.read(&mut piece).await.unwrap();
                        if count == 0 {
                            return got;
                        }
                        got.extend_from_slice(&piece[..count]);
                    }
                };
                tokio::join!(send, receive).1
            });
            prop_assert_eq!(got, bytes);
        }
    }
}
