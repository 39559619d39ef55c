//! Whatever is sent: a clear status, no crash, no certificate that should not be.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::*;
use crate::identity::ca::Authority;
use crate::identity::{NodeName, ca};

/// How many certificates the CA says it made.
fn issued(running: &Running) -> usize {
    running.audit.all().iter().filter(|line| line["verdict"] == "issued").count()
}

#[tokio::test]
async fn nobody_gets_nothing() {
    let running = Running::start().await;
    for token in [None, Some("garbage"), Some(""), Some("mtls-join.a.b"), Some("mtls-join.")] {
        refused(running.ask(token, Asked::own()).await);
    }
    assert_eq!(issued(&running), 0);
    assert_eq!(running.audit.all().len(), 5, "each one is written down");
}

#[tokio::test]
async fn a_bad_csr_is_named_to_a_caller_who_may_ask_and_to_nobody_else() {
    let running = Running::start().await;
    let good = Asked::own();
    let huge = "A".repeat(csr::LONGEST + 1);
    let p521 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
    let bad = [
        String::new(),
        "garbage".to_owned(),
        huge,
        good.csr.repeat(2),
        good.csr.replace("CERTIFICATE REQUEST", "CERTIFICATE"),
        super::csr(&p521),
    ];
    let count = bad.len();
    for csr in bad {
        let asked = Asked { csr, ..good.clone() };
        let status = running.ask(Some("shop/web"), asked.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        refused(running.ask(None, asked).await);
    }
    assert_eq!(running.audit.all().len(), 2 * count);
    assert_eq!(issued(&running), 0);
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused() {
    let running = Running::start().await;
    let asked = Asked { csr: "A".repeat(1 << 20), ..Asked::own() };
    let status = running.ask(Some("shop/web"), asked).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    running.ask(Some("shop/web"), Asked::own()).await.expect("it goes on");
}

#[tokio::test]
async fn bytes_that_are_no_protocol_end_their_own_connection_alone() {
    let running = Running::start().await;
    let open = running.channel(None).await;
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], b"\x16\x03\x01\xff\xff"] {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        // Some alert or none; in the end it is closed.
        stream.read_to_end(&mut rest).await.ok();
    }
    ask(open, Some("shop/web"), Asked::own()).await.expect("the other connection lives");
}

#[tokio::test]
async fn a_join_token_is_good_for_one_of_many_that_race() {
    let running = Running::start().await;
    let node = NodeName::parse("vm-1").unwrap();
    let made = token::create(
        running.ca.directory(),
        node,
        [id("spiffe://cluster.local/ns/shop/sa/web")],
        Duration::from_secs(60),
        SystemTime::now(),
    );
    let text = made.unwrap().1;
    let channel = running.channel(None).await;
    let mut racing = JoinSet::new();
    for _ in 0..20 {
        let (channel, text) = (channel.clone(), text.clone());
        racing.spawn(async move { ask(channel, Some(&text), Asked::own()).await.is_ok() });
    }
    let won = racing.join_all().await.into_iter().filter(|won| *won).count();
    assert_eq!((won, issued(&running)), (1, 1));
    refused(running.ask(Some(&text), Asked::own()).await);
    assert!(running.audit.last()["reason"].to_string().contains("was used before"));
}

#[tokio::test]
async fn a_join_token_is_no_key_to_others() {
    let running = Running::start().await;
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    let node = NodeName::parse("vm-1").unwrap();
    let hour = Duration::from_secs(3600);
    let directory = running.ca.directory();
    let made = token::create(directory, node, [id(web)], hour, SystemTime::now());
    let text = made.unwrap().1;
    refused(running.ask(Some(&text), Asked::of(web)).await);
    // A CSR that is refused spends no token.
    let garbage = Asked { csr: "garbage".to_owned(), ..Asked::own() };
    let status = running.ask(Some(&text), garbage).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    running.ask(Some(&text), Asked::own()).await.expect("its first use");
}

/// A client certificate that `authority` signed for `uri`.
fn shown(authority: &Authority, uri: &str) -> Svid {
    authority
        .issue(&id(uri), KeyType::default(), Duration::from_secs(60), SystemTime::now())
        .unwrap()
}

#[tokio::test]
async fn a_certificate_where_only_the_name_is_wrong_is_no_nodes() {
    let running = Running::start().await;
    let signing = running.ca.signing();
    for uri in [
        "spiffe://cluster.local/ns/shop/sa/web",
        "spiffe://cluster.local/node/stranger",
        "spiffe://cluster.local/node/a/b",
        "spiffe://cluster.local/ca/server",
    ] {
        let channel = running.channel(Some(&shown(&signing.authority, uri))).await;
        refused(ask(channel.clone(), None, Asked::own()).await);
        let web = Asked::of("spiffe://cluster.local/ns/shop/sa/web");
        refused(ask(channel, None, web).await);
    }
    assert_eq!(issued(&running), 0);

    let other = shown(&signing.authority, "spiffe://other.domain/node/vm-1");
    assert!(no_answer(&running, &other).await, "another trust domain is no client at all");
    let (stranger, _) =
        ca::Authority::generate(&domain(), KeyType::default(), SystemTime::now()).unwrap();
    let forged = shown(&stranger, "spiffe://cluster.local/node/vm-1");
    assert!(no_answer(&running, &forged).await, "another CA's");
    assert_eq!(issued(&running), 0);
}

/// In TLS 1.3 a client hears of its refusal with its first request.
async fn no_answer(running: &Running, svid: &Svid) -> bool {
    match running.try_channel(Some(svid)).await {
        Err(_) => true,
        Ok(channel) => ask(channel, None, Asked::own()).await.is_err(),
    }
}

#[tokio::test]
async fn a_thousand_requests_at_once_get_an_answer_each() {
    let running = Running::start().await;
    let mut channels = Vec::new();
    for _ in 0..10 {
        channels.push(running.channel(None).await);
    }
    let key = KeyPair::generate().unwrap();
    let good = Asked { csr: csr(&key), ..Asked::own() };
    let mut asking = JoinSet::new();
    for number in 0..1000 {
        let (channel, good) = (channels[number % channels.len()].clone(), good.clone());
        asking.spawn(async move {
            match number % 4 {
                0 => ask(channel, None, good).await.map_err(|it| it.code()),
                1 => {
                    let bad = Asked { csr: "x".to_owned(), ..good };
                    ask(channel, Some("shop/web"), bad).await.map_err(|it| it.code())
                }
                _ => ask(channel, Some("shop/web"), good).await.map_err(|it| it.code()),
            }
        });
    }
    let mut serials = std::collections::BTreeSet::new();
    let (mut unknown, mut bad) = (0, 0);
    for answer in asking.join_all().await {
        match answer {
            Ok(chain) => assert!(serials.insert(chain[0].clone()), "every one is another"),
            Err(Code::Unauthenticated) => unknown += 1,
            Err(Code::InvalidArgument) => bad += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!((serials.len(), unknown, bad), (500, 250, 250));
    assert_eq!((issued(&running), running.audit.all().len()), (500, 1000));
}
