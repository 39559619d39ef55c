//! The fuzzers' functions with inputs that a fixed seed makes: the same ones every time.

use super::*;

const ROUNDS: usize = 20_000;

/// Cuts, repeats, swaps and flips parts of `seeds`.
fn mutated(seeds: &[&[u8]], rounds: usize, mut check: impl FnMut(&[u8])) {
    let mut random = fastrand::Rng::with_seed(0x6d74_6c73);
    for _ in 0..rounds {
        let mut bytes = seeds[random.usize(..seeds.len())].to_vec();
        for _ in 0..random.usize(..6) {
            let at = random.usize(..=bytes.len());
            match random.u8(..5) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, random.u8(..)),
                2 if at < bytes.len() => bytes[at] ^= 1 << random.u8(..8),
                3 => {
                    let other = seeds[random.usize(..seeds.len())];
                    let from = random.usize(..=other.len());
                    bytes.splice(at..at, other[from..].iter().copied());
                }
                _ => {
                    let end = random.usize(at..=bytes.len());
                    let part = bytes[at..end].to_vec();
                    bytes.splice(at..at, part);
                }
            }
        }
        bytes.truncate(8 * 1024);
        check(&bytes);
    }
}

#[test]
fn any_http_head() {
    let seeds: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n",
        b"\r\nPOST /x?y HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;e=1\r\nhello\r\n0\r\nX: y\r\n\r\n",
        b"POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello",
        b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c, websocket\r\n\r\n",
        detect::PREFACE,
    ];
    mutated(seeds, ROUNDS, http_head);
}

#[test]
fn any_client_hello() {
    // A TLS 1.3 ClientHello with server name and ALPN, as RFC 8446 §4.1.2 lays it out.
    let mut hello = vec![1, 0, 0, 0, 3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0x13, 1, 1, 0]);
    let mut extensions = vec![0, 0, 0, 6, 0, 4, 0, 0, 1, b'a'];
    extensions.extend([0, 16, 0, 8, 0, 6, 5]);
    extensions.extend(b"istio");
    extensions.extend([0, 43, 0, 3, 2, 3, 4]);
    hello.extend(u16::try_from(extensions.len()).expect("short").to_be_bytes());
    hello.extend(extensions);
    let length = u32::try_from(hello.len() - 4).expect("short").to_be_bytes();
    hello[1..4].copy_from_slice(&length[1..]);
    let mut record = vec![0x16, 3, 1];
    record.extend(u16::try_from(hello.len()).expect("short").to_be_bytes());
    record.extend(hello);
    mutated(&[&record, b"GET / HTTP/1.1\r\n", &[0x16, 3, 1, 0xff, 0xff]], ROUNDS, client_hello);
}

#[test]
fn any_policy_file() {
    let seeds: &[&[u8]] = &[
        b"apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: b}\nspec:\n  selector: {matchLabels: {app: x}}\n  mtls: {mode: STRICT}\n  portLevelMtls: {8080: {mode: DISABLE}}\n",
        b"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: b}\nspec:\n  action: DENY\n  rules:\n  - from:\n    - source: {principals: ['cluster.local/ns/a/sa/b'], ipBlocks: [10.0.0.0/8]}\n    to:\n    - operation: {methods: [GET], paths: ['/a*']}\n    when:\n    - {key: source.namespace, notValues: [x]}\n",
        b"---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a, namespace: b}\nspec:\n  host: '*.b.svc.cluster.local'\n  trafficPolicy:\n    tls: {mode: ISTIO_MUTUAL}\n    portLevelSettings:\n    - port: {number: 80}\n",
        b"a: &x [*x, *x]\nb: !!binary x\n? [k]\n: |\n  text\n",
    ];
    mutated(seeds, ROUNDS / 10, policy_yaml);
}

#[test]
fn anything_that_a_ca_is_sent() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
    let csr = params.serialize_request(&key).unwrap();
    let uri = "spiffe://cluster.local/ns/a/sa/b".try_into().unwrap();
    params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    let certificate = params.self_signed(&key).unwrap();
    let pem = csr.pem().unwrap();
    let seeds: &[&[u8]] = &[
        csr.der(),
        pem.as_bytes(),
        certificate.der(),
        b"Basic x\nBearer mtls-join.0123456789ab.00\n",
        b"mtls-join.0123456789ab.00",
        br#"{"status":{"authenticated":true,"audiences":["istio-ca"],"user":{"username":"system:serviceaccount:a:b","groups":["system:serviceaccounts"],"extra":{}}}}"#,
    ];
    assert!(csr::public_key(&pem).is_ok() && parse_svid(&[certificate.der().clone()]).is_ok());
    mutated(seeds, ROUNDS / 10, ca_input);
}
