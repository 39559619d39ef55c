//! How long sessions are kept, and that nothing is said before a handshake is over.

use rustls::client::ClientConnection;
use rustls::{ClientConfig, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::super::sessions::Whom;
use super::revoked::Lists;
use super::*;
use crate::identity::revocations::Rules;

fn keeping() -> HandshakeSettings {
    HandshakeSettings { checks: Lists::new(Rules::default()).checks, resumption: true }
}

/// Whose sessions end `left` from now, although its certificate is good for an hour.
fn ending(ca: &TestCa, uri: &str, left: Duration) -> Arc<TlsIdentity> {
    let mut svid = ca.sign(uri, |_| {}).svid(uri);
    svid.not_after = SystemTime::now() + left;
    TlsIdentity::with(&svid, &ca.bundles(&["cluster.local"]), &keeping()).unwrap()
}

/// A place where `server` answers, again and again.
async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// Whether a connection between the two is resumed. A byte each way: the server's last handshake bytes
/// arrive, too.
async fn resumed(at: &TcpListener, client: &TlsIdentity, server: &TlsIdentity) -> bool {
    let near = TcpStream::connect(at.local_addr().unwrap()).await.unwrap();
    let far = at.accept().await.unwrap().0;
    let expected = expecting(&[server.id().as_str()]);
    let connecting = async {
        let (mut stream, _, summary) = connect(near, client, &expected, SNI).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.flush().await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        summary.resumed
    };
    let accepting = async {
        let (mut stream, _, summary) = accept(Replay::new(far), server, None).await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        stream.write_all(b"y").await.unwrap();
        stream.flush().await.unwrap();
        summary.resumed
    };
    let both = async { tokio::join!(connecting, accepting) };
    let (connected, accepted) = tokio::time::timeout(LIMIT, both).await.expect("in time");
    assert_eq!(connected, accepted);
    connected
}

#[tokio::test]
async fn a_session_ends_with_the_svid_of_either_side() {
    let (ca, life) = (TestCa::new(), Duration::from_secs(4));
    let (long, short) = (Duration::from_secs(3600), life);
    for (client, server) in [(short, long), (long, short)] {
        let (client, server) = (ending(&ca, CLIENT, client), ending(&ca, SERVER, server));
        let (at, begun) = (listen().await, SystemTime::now());
        assert!(!resumed(&at, &client, &server).await);
        let again = resumed(&at, &client, &server).await;
        assert!(again || begun.elapsed().unwrap() >= life, "while both are good");
        let left = life.saturating_sub(begun.elapsed().unwrap());
        tokio::time::sleep(left + Duration::from_millis(100)).await;
        // Nothing but the clock of the SVID has changed: its certificate is still believed.
        assert!(!resumed(&at, &client, &server).await, "its SVID has ended");
        assert!(!resumed(&at, &client, &server).await, "and keeps no more");
    }
}

/// Whether `config` may say something with its first bytes to whom it was connected before.
fn would_speak_early(config: Arc<ClientConfig>) -> bool {
    let name = ServerName::try_from(SNI).unwrap();
    ClientConnection::new(config, name).unwrap().early_data().is_some()
}

/// A connection on which the server says something: its client has been told all that it is to keep.
async fn told<C, S>(client: impl Future<Output = C>, server: impl Future<Output = S>)
where
    C: AsyncReadExt + Unpin,
    S: AsyncWriteExt + Unpin,
{
    let both = async {
        let (mut near, mut far) = tokio::join!(client, server);
        far.write_all(b"y").await.unwrap();
        far.flush().await.unwrap();
        near.read_exact(&mut [0]).await.unwrap();
    };
    tokio::time::timeout(LIMIT, both).await.expect("in time");
}

/// Early data can be replayed, and is there before anybody is verified.
#[tokio::test]
async fn a_client_that_comes_back_is_not_asked_for_early_data() {
    let ca = TestCa::new();
    let server = ending(&ca, SERVER, Duration::from_secs(3600));
    let shipped = server.server(None);
    let mut willing = ServerConfig::clone(&shipped);
    willing.max_early_data_size = 1024;
    // That a client would notice if it were, too.
    for (config, early) in [(shipped, false), (Arc::new(willing), true)] {
        let connector = stranger::connector(Some(ca.sign(CLIENT, |_| {})), &[b"istio"]);
        let mut client = ClientConfig::clone(connector.config());
        client.enable_early_data = true;
        let client = Arc::new(client);
        let (near, far) = pair().await;
        let name = ServerName::try_from(SNI).unwrap();
        let connecting = TlsConnector::from(client.clone()).connect(name, near);
        let accepting = TlsAcceptor::from(config).accept(Replay::new(far));
        let accepting = async { handshake::run_server(true, accepting).await.unwrap().0 };
        told(async { connecting.await.unwrap() }, accepting).await;
        assert_eq!(would_speak_early(client), early);
    }
}

#[tokio::test]
async fn a_server_that_would_take_early_data_gets_none() {
    let ca = TestCa::new();
    let client = ending(&ca, CLIENT, Duration::from_secs(3600));
    let mut server = ServerConfig::clone(stranger::acceptor(ca.sign(SERVER, |_| {})).config());
    server.max_early_data_size = 1024;
    // One for each question below, and more.
    server.send_tls13_tickets = 4;
    let (near, far) = pair().await;
    let (expected, address) = (expecting(&[SERVER]), near.peer_addr().unwrap());
    let connecting = async { connect(near, &client, &expected, SNI).await.unwrap().0 };
    let accepting = TlsAcceptor::from(Arc::new(server)).accept(far);
    told(connecting, async { accepting.await.unwrap() }).await;
    let whom = Whom { expected: expected.clone(), address, sni: SNI.into() };
    let shipped = client.client(whom).config;
    let mut willing = ClientConfig::clone(&shipped);
    willing.enable_early_data = true;
    assert!(!would_speak_early(shipped));
    assert!(would_speak_early(Arc::new(willing)), "the server would have taken it");
}
